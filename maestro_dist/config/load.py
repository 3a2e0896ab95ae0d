"""YAML file + `key=value` overrides -> `Config`; and the help text, made from the schema."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from maestro_dist.config.schema import Config
from maestro_dist.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """A safe loader that refuses a key given twice, which plain YAML would settle silently."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if key in seen:
            raise yaml.MarkedYAMLError(problem=f"key {key!r} is given twice", problem_mark=key_node.start_mark)
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def load_config(path: str | None, overrides: Sequence[str] = ()) -> Config:
    """Read `path` (YAML), apply `section.key=value` overrides in order, validate.

    Raises `ConfigError` with one line that names the file or override and the key, and suggests what was meant.
    """
    tree = read_tree(path) if path else {}
    for override in overrides:
        apply_override(tree, override)
    return parse(tree, path or "overrides")


def parse(tree: dict[str, Any], where: str) -> Config:
    """Validate a tree of plain values; `where` names its source in errors."""
    unknown = list(_unknown_keys(tree, Config))
    if unknown:
        raise ConfigError(f"{where}: {'; '.join(unknown)}")
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        problems: dict[str, str] = {}  # one a key: a union reports each alternative
        for item in error.errors():
            problems.setdefault(*_problem(item))
        raise ConfigError(f"{where}: {'; '.join(f'{key}: {text}' for key, text in problems.items())}") from None


def to_yaml(config: Config) -> str:
    """The resolved configuration as YAML that `load_config` reads back to an equal one."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def flatten(config: BaseModel, prefix: str = "") -> dict[str, Any]:
    """`{"model.width": 64, ...}`, in the schema's order."""
    flat: dict[str, Any] = {}
    for name in type(config).model_fields:
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat


def describe() -> str:
    """Every key with its type, default and docstring."""
    lines: list[str] = []
    for section, info in Config.model_fields.items():
        lines.append(f"\n{section}: {info.description}")
        lines += _describe_section(_section_of(info), f"{section}.")
    return "\n".join(lines).lstrip("\n")


def _describe_section(model: type[BaseModel] | None, prefix: str) -> list[str]:
    lines: list[str] = []
    for name, info in model.model_fields.items() if model else ():
        inner = _section_of(info)
        if inner:
            lines.append(f"  {prefix}{name}: {info.description}")
            lines += _describe_section(inner, f"{prefix}{name}.")
        else:
            lines.append(f"  {prefix}{name} ({_type_name(info.annotation)}){_default(info)}")
            lines.append(f"      {info.description}")
    return lines


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return ", required"
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


def _section_of(info: FieldInfo) -> type[BaseModel] | None:
    """The model class of a field that is a section, also an optional one."""
    options = typing.get_args(info.annotation) or (info.annotation,)
    return next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)


def has_credentials(url: str) -> bool:
    """Whether a URL holds a user name or password (`scheme://user:password@host`)."""
    _, separator, rest = url.partition("://")
    return bool(separator) and "@" in rest.partition("/")[0]


def _text(path: str) -> str:
    if "://" not in path:
        return Path(path).read_text(encoding="utf-8")
    import fsspec

    with fsspec.open(path, encoding="utf-8", mode="r") as file:
        return str(file.read())


def read_tree(path: str) -> dict[str, Any]:
    """The plain values of a YAML file or URL. Raises `ConfigError`, which names it."""
    if has_credentials(path):
        raise ConfigError("the configuration's URL holds credentials; give them in the environment")
    try:
        text = _text(path)
    except FileNotFoundError:
        near = (
            []
            if "://" in path
            else difflib.get_close_matches(path, [str(p) for p in Path(path).parent.glob("*.yaml")], n=1)
        )
        raise ConfigError(f"{path}: no such file{f'; did you mean {near[0]}?' if near else ''}") from None
    except Exception as error:  # each fsspec backend has its own classes
        raise ConfigError(f"{path}: cannot be read: {' '.join(str(error).split())[:200]}") from None
    try:
        tree = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{path}{line}: {error.problem or 'not valid YAML'}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected sections (run:, data:, model: ...), found {type(tree).__name__}")
    return tree


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Put `section.key=value` into a tree of plain values. Raises `ConfigError` where it has not that form."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"{override!r}: overrides have the form section.key=value")
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        raise ConfigError(f"{override!r}: the value is not valid YAML") from None
    *path, last = key.split(".")
    node = tree
    for part in path:
        child = node.get(part)
        if not isinstance(child, dict):
            child = node[part] = {}
        node = child
    node[last] = value


def _unknown_keys(tree: Any, model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    if not isinstance(tree, dict):
        return
    for name, value in tree.items():
        info = model.model_fields.get(name) if isinstance(name, str) else None
        if info is None:
            yield f"{prefix}{name}: unknown key{_suggest(str(name), model, prefix)}"
        elif inner := _section_of(info):
            yield from _unknown_keys(value, inner, f"{prefix}{name}.")


def _suggest(name: str, model: type[BaseModel], prefix: str) -> str:
    near = difflib.get_close_matches(name, model.model_fields, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {prefix}{near[0]}?"
    elsewhere = [path for path in flatten(Config()) if path.rsplit(".", 1)[-1] == name]
    if elsewhere:
        return f"; did you mean {elsewhere[0]}?"
    return f"; there are {', '.join(model.model_fields)}"


def _problem(item: Any) -> tuple[str, str]:
    # pydantic appends a list's index and the tried alternative of a union ("constrained-int", "dict[...]")
    parts = [str(part) for part in item["loc"]]
    while len(parts) > 1 and (not parts[-1].isidentifier() or parts[-1] in {"int", "str", "float"}):
        parts.pop()
    message = item["msg"].removeprefix("Value error, ")
    given = item.get("input")
    shown = f" (got {given!r})" if isinstance(given, str | int | float | bool | type(None)) else ""
    return ".".join(parts), f"{message[:1].lower()}{message[1:]}{shown}"
