"""Settings of storage for all of a process: how long to wait, and how to reach S3.

`configure` is the one way in. The driver and each worker call it with their configuration; a reader process gets the
settings of its parent. A `Storage` object holds its URL only, so it uses the settings of the process that it is in.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from maestro_dist.config.schema import Config

_CONNECT_S, _ANSWER_S, _LEAST_S = 5, 30, 1


@dataclass(frozen=True)
class StorageSettings:
    """How long a failed remote call is retried (seconds), and how S3 is reached (see the section `s3`)."""

    patience_s: float = 300.0
    endpoint_url: str | None = None
    region: str | None = None
    profile: str | None = None
    anonymous: bool = False
    client: str = "s3fs"

    @classmethod
    def of(cls, config: Config) -> StorageSettings:
        """The settings in a configuration."""
        return cls(patience_s=config.run.storage_patience_s, **config.s3.model_dump())

    @property
    def time_limits_s(self) -> tuple[int, int]:
        """Seconds that one attempt may take to connect, and to get the next bytes; no longer than the patience."""
        most = max(_LEAST_S, int(self.patience_s))
        return min(_CONNECT_S, most), min(_ANSWER_S, most)

    @property
    def region_or_environment(self) -> str | None:
        """The region; without one, that of AWS_REGION, which botocore does not read itself."""
        return self.region or os.environ.get("AWS_DEFAULT_REGION") or os.environ.get("AWS_REGION")

    @property
    def endpoint_or_environment(self) -> str | None:
        """The URL of the server; None: that of AWS for the region."""
        return self.endpoint_url or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


_settings = StorageSettings()


def configure(settings: StorageSettings | Config) -> None:
    """Use these settings in this process from now on."""
    global _settings
    _settings = settings if isinstance(settings, StorageSettings) else StorageSettings.of(settings)


def storage_settings() -> StorageSettings:
    """The settings of this process."""
    return _settings
