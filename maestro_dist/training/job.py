"""What a driver gives to its workers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Job:
    """What a driver hands to its workers: plain values only.

    `config` is the resolved configuration as plain JSON; the rest says where the run lives and is tracked. `start` is
    the place of the weights that it begins with, if there are any.
    """

    config: dict[str, Any]
    run_url: str
    attempt: int
    tracking_uri: str
    mlflow_run: str
    start_ms: int
    start: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for Ray's train loop configuration."""
        return asdict(self)
