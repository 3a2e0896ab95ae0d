"""Facts about a key in addition to its type: markers for `typing.Annotated`.

    storage: Annotated[str, Location()] = "runs"

A marker on a section applies to all keys in the section.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from maestro_dist.config.annotations import section_of


@dataclass(frozen=True)
class Location:
    """The text, or each text of a list, is a local path or a URL. A run makes local paths absolute.

    service  the text may also be the name of a service (`databricks`), which stays unchanged
    """

    service: bool = False


@dataclass(frozen=True)
class Execution:
    """The key decides where and how a run executes, not its results. It may change when a run is resumed."""


@dataclass(frozen=True)
class DefinesWeights:
    """The value decides the meaning of a model's weights. Weights only fit a model with the same value."""


Marker = TypeVar("Marker", Location, Execution, DefinesWeights)


def marker_of(info: FieldInfo, kind: type[Marker]) -> Marker | None:
    """The marker of this class on a field; None if there is none."""
    return next((item for item in info.metadata if isinstance(item, kind)), None)


def walk(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """(key, field) of all fields in the schema's order: each section, then its fields, also for optional sections."""
    for name, info in model.model_fields.items():
        yield prefix + name, info
        section = section_of(info)
        if section:
            yield from walk(section, f"{prefix}{name}.")


def marked(model: type[BaseModel], kind: type[Marker]) -> list[str]:
    """The keys of a section that have a marker themselves, in the schema's order."""
    return [key for key, info in walk(model) if marker_of(info, kind) is not None]
