"""The help of the command line, made from the schema: every key with its type, default and docstring."""

from __future__ import annotations

import types
import typing
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from maestro_dist.config.annotations import items_of, section_of
from maestro_dist.config.coerce import RULES
from maestro_dist.config.schema import Config


def describe_keys() -> str:
    """How values are read, and every key with its type, default and docstring."""
    lines = [RULES, "\nkeys (type) = default"]
    for section, info in Config.model_fields.items():
        items = items_of(info)
        kind = f" ({_type_name(info.annotation)}){default_of(info)}" if items else ""
        lines.append(f"\n{section}{kind}: {info.description}")
        lines += _describe_section(items or section_of(info), f"{section}[]." if items else f"{section}.")
    return "\n".join(lines)


def _describe_section(model: type[BaseModel] | None, prefix: str) -> list[str]:
    lines: list[str] = []
    for name, info in model.model_fields.items() if model else ():
        inner = section_of(info)
        if inner:
            lines.append(f"  {prefix}{name}: {info.description}")
            lines += _describe_section(inner, f"{prefix}{name}.")
        else:
            lines.append(f"  {prefix}{name} ({_type_name(info.annotation)}){default_of(info)}")
            lines += [f"      {line}" for line in (info.description or "").splitlines()]
    return lines


def default_of(info: FieldInfo) -> str:
    """` = default` of a key, as a person would type it."""
    if info.is_required():
        return ", required"
    if isinstance(info.default, str):
        return f" = {info.default}".rstrip()
    value = list(info.default) if isinstance(info.default, tuple) else info.default
    return " = " + yaml.safe_dump(value, default_flow_style=True).replace("\n...", "").strip()


def _type_name(annotation: Any) -> str:
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _type_name(typing.get_args(annotation)[0])
    if origin is typing.Literal:
        return " | ".join(map(str, typing.get_args(annotation)))
    if origin in (typing.Union, types.UnionType):
        return " | ".join(_type_name(a) for a in typing.get_args(annotation))
    if origin in (list, tuple, dict):
        return f"{origin.__name__} of {', '.join(_type_name(a) for a in typing.get_args(annotation))}"
    return "null" if annotation is type(None) else getattr(annotation, "__name__", str(annotation))
