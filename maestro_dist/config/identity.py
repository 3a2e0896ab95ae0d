"""The identity of a run: the values that decide its result. They may not change when the run is resumed."""

from __future__ import annotations

import json
from collections.abc import Collection
from functools import cache
from typing import Any

from pydantic import BaseModel

from maestro_dist.config.annotations import section_of
from maestro_dist.config.dump import flatten_config
from maestro_dist.config.metadata import Execution, marker_of
from maestro_dist.config.renamed import current
from maestro_dist.config.schema import Config
from maestro_dist.errors import ConfigError

EARLIER_DEFAULTS: dict[str, Any] = {"data.lanes": 1}
"""Newer keys: what runs did before the key existed, where the default is something else."""


@cache
def is_identity_key(key: str) -> bool:
    """Whether a key, `section.key`, is part of a run's identity: neither it nor a section above it is `Execution`.

    A key that the schema does not have is part of it.
    """
    section: type[BaseModel] | None = Config
    for part in key.split("."):
        info = section.model_fields.get(part) if section else None
        if info is None:
            return True
        if marker_of(info, Execution):
            return False
        section = section_of(info)
    return True


def run_identity(config: Config) -> dict[str, Any]:
    """The flat values that decide the result of a run, as plain JSON."""
    flat = {key: value for key, value in flatten_config(config).items() if is_identity_key(key)}
    return json.loads(json.dumps(flat, default=_identity_of))


def _identity_of(item: BaseModel) -> dict[str, Any]:
    """The values of a section in a list, as plain JSON, without those that are `Execution`."""
    fields = type(item).model_fields
    return item.model_dump(mode="json", exclude={name for name, info in fields.items() if marker_of(info, Execution)})


def check_resume(config: Config, saved: dict[str, Any], without_effect: Collection[str] = ()) -> None:
    """Raise `ConfigError`, which lists the differences, if `config` is not the run that `saved` describes.

    saved           `run_identity` of the run at its start, maybe with old names of keys. A missing key is newer than
                    the run; the run then used the default of this key, or its value in `EARLIER_DEFAULTS`
    without_effect  keys whose value changes nothing for the run's data
    """
    now = run_identity(config)
    saved = {key: value for key, value in current(saved).items() if is_identity_key(key)}
    saved = run_identity(Config()) | EARLIER_DEFAULTS | saved
    changed = [
        f"{key} {saved.get(key)!r} -> {now.get(key)!r}"
        for key in sorted({*saved, *now} - {*without_effect})
        if saved.get(key) != now.get(key)
    ]
    if changed:
        raise ConfigError(
            f"run {config.run.name!r} was begun with another configuration: {'; '.join(changed)}; "
            "choose another run.name or the old values"
        )
