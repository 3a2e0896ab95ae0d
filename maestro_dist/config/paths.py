"""Local paths in a configuration: home folders filled in, relative paths made absolute."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from maestro_dist.config.metadata import Location, marker_of
from maestro_dist.config.schema import Config
from maestro_dist.config.sections import Section
from maestro_dist.errors import ConfigError

_SERVICE = re.compile(r"databricks|uc\b|[\w+.-]+:(?!///)")  # MLflow's names of services, and URIs with a server
_SQLITE = "sqlite:///"


def expand_home(path: str, key: str) -> str:
    """A local path with `~` and `~user` replaced by their folders.

    key  the key or option that holds the path, for the error

    Raises `ConfigError` if the user has no known home folder.
    """
    try:
        return str(Path(path).expanduser()) if path.startswith("~") else path
    except RuntimeError:
        raise ConfigError(
            f"{key}: {path}: no home folder is known for {path.partition('/')[0]}; write the full path, or ./{path} "
            "for a folder of that name"
        ) from None


def absolute_path(path: str, key: str) -> str:
    """A local path made absolute, with home folders filled in, also after `sqlite:///`. A URL stays unchanged.

    Raises `ConfigError` as `expand_home` does.
    """
    if path.startswith(_SQLITE):
        return _SQLITE + absolute_path(path.removeprefix(_SQLITE), key)
    return path if "://" in path else str(Path(expand_home(path, key)).absolute())


def with_absolute_paths(config: Config) -> Config:
    """The configuration with all local paths absolute. Workers may have another current folder.

    Raises `ConfigError` as `expand_home` does.
    """
    return config.model_copy(update=_absolute_values(config, ""))


def _absolute_values(section: Section, prefix: str) -> dict[str, Any]:
    """The values of a section that hold a path, made absolute; sections in it that hold one are copied."""
    changed: dict[str, Any] = {}
    for name, info in type(section).model_fields.items():
        key, value, location = f"{prefix}{name}", getattr(section, name), marker_of(info, Location)
        if isinstance(value, Section):
            inner = _absolute_values(value, f"{key}.")
            if inner:
                changed[name] = value.model_copy(update=inner)
        elif location is None or not value:
            continue
        elif isinstance(value, list) and value and isinstance(value[0], Section):
            copies = [(item, _absolute_values(item, f"{key}.{number}.")) for number, item in enumerate(value)]
            changed[name] = [item.model_copy(update=inner) for item, inner in copies]
        elif isinstance(value, str):
            if not (location.service and _SERVICE.match(value)):
                changed[name] = absolute_path(value, key)
        else:
            changed[name] = [absolute_path(item, key) for item in value]
    return changed
