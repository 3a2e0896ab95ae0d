"""A configuration as plain values: one flat dict, or YAML."""

from __future__ import annotations

import re
from typing import Any

import yaml
from pydantic import BaseModel

from maestro_dist.config.schema import Config


class _Dumper(yaml.SafeDumper):
    """Puts quotes around all texts that `load_config` would read as null."""


_Dumper.add_implicit_resolver("tag:yaml.org,2002:null", re.compile("None$"), ["N"])


def to_yaml(config: Config) -> str:
    """The resolved configuration as YAML. `load_config` reads it back to an equal one."""
    return str(yaml.dump(config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False))


def flatten_config(config: BaseModel, prefix: str = "") -> dict[str, Any]:
    """`{"model.width": 64, ...}`, in the schema's order. A section that is None is one key."""
    flat: dict[str, Any] = {}
    for name in type(config).model_fields:
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            flat.update(flatten_config(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat
