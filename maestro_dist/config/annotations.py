"""Reading the type annotations of the schema."""

from __future__ import annotations

import types
import typing
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo


def alternatives(kind: Any) -> list[Any]:
    """The members of a union; for any other type, a list with only that type."""
    if typing.get_origin(kind) is typing.Annotated:
        return alternatives(typing.get_args(kind)[0])
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return [inner for member in typing.get_args(kind) for inner in alternatives(member)]
    return [kind]


def is_section(kind: Any) -> bool:
    """Whether a type is a section of the configuration."""
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def section_of(info: FieldInfo) -> type[BaseModel] | None:
    """The class of a field that is a section or an optional section; None for other fields."""
    return next((kind for kind in alternatives(info.annotation) if is_section(kind)), None)


def items_of(info: FieldInfo) -> type[BaseModel] | None:
    """The class of the items of a field that is a list of sections; None for other fields."""
    inside = [item for kind in alternatives(info.annotation) for item in typing.get_args(kind)]
    return next((kind for kind in inside if is_section(kind)), None)
