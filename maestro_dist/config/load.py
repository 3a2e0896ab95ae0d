"""From a YAML file and `section.key=value` overrides to a `Config`."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from maestro_dist.config.annotations import section_of
from maestro_dist.config.coerce import NULL, coerce
from maestro_dist.config.credentials import CREDENTIALS, has_credentials, refuse_credentials
from maestro_dist.config.dump import flatten_config
from maestro_dist.config.paths import expand_home
from maestro_dist.config.renamed import RENAMED, current
from maestro_dist.config.schema import Config
from maestro_dist.config.yaml_text import Plain, Typed, child_of, from_yaml
from maestro_dist.errors import ConfigError

_MOST_CHARACTERS = 1 << 20  # characters of a configuration file


def load_config(path: str | None, overrides: Sequence[str] = ()) -> Config:
    """Read the YAML file `path`, apply `section.key=value` overrides in order, validate.

    Raises `ConfigError`, one line that names the file or override and the key, and suggests a correction.
    """
    tree = {} if path is None else read_tree(path)
    if path and current(tree) != tree and _belongs_to_run(path):
        tree = current(tree)
    for override in overrides:
        apply_override(tree, override)
    return parse(tree, path or "overrides")


def parse(tree: dict[str, Any], where: str) -> Config:
    """Validate a tree of plain values or of texts as they were written. `where` names its source in errors."""
    values = coerce(tree, Config)
    unknown = list(_unknown_keys(values, Config))
    if unknown:
        raise ConfigError(f"{where}: {'; '.join(unknown)}")
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        problems: dict[str, str] = {}
        for item in error.errors():
            problems.setdefault(*_problem(item, values, tree))
        deepest = {key: text for key, text in problems.items() if not any(k.startswith(f"{key}.") for k in problems)}
        raise ConfigError(f"{where}: {'; '.join(f'{key}: {text}' for key, text in deepest.items())}") from None


def is_file(argument: str) -> bool:
    """Whether an argument of the command line names a configuration file. Its name may hold `=`.

    `run.name=x.yaml` is an override, because `run.name` is a key.
    """
    key, equals, _ = argument.partition("=")
    if not equals:
        return True
    if key.partition(".")[0] in Config.model_fields:
        return False
    return "/" in key or argument.endswith((".yaml", ".yml")) or os.path.exists(argument)


def read_tree(path: str) -> dict[str, Any]:
    """A YAML file or URL as dicts, lists and texts as they were written, for `coerce`.

    Raises `ConfigError`, which names the file, and the line where it is not valid YAML.
    """
    if has_credentials(path):
        raise ConfigError(f"the configuration's URL {CREDENTIALS}")
    if not path:
        raise ConfigError("the name of the configuration file is empty")
    path = expand_home(path, "the configuration")
    try:
        text = _text(path)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file{_hint(path)}") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: this is a folder; give a file in it{_hint(os.path.join(path, ''))}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8 text, so not a configuration") from None
    except Exception as error:  # each fsspec backend has its own classes
        raise ConfigError(f"{path}: cannot be read: {' '.join(str(error).split())[:200]}") from None
    if len(text) > _MOST_CHARACTERS:
        raise ConfigError(f"{path}: more than {_MOST_CHARACTERS:,} characters, so not a configuration")
    try:
        tree = from_yaml(text)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{path}{line}: {(error.problem or 'not valid YAML').removeprefix('but ')}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())[:200]}") from None
    if isinstance(tree, Plain) and tree in NULL:
        return {}
    if not isinstance(tree, dict):
        kind = "a list" if isinstance(tree, list) else "text"
        raise ConfigError(f"{path}: expected sections (run:, data:, model: ...), found {kind}")
    refuse_credentials(tree, f"{path}: ")
    return tree


def _belongs_to_run(path: str) -> bool:
    """Whether a configuration file is in the folder of a run. The run wrote it, maybe with old names of keys."""
    record = os.path.join(os.path.dirname(expand_home(path, "the configuration")), "run.json")
    if "://" not in record:
        return os.path.exists(record)
    import fsspec

    files, key = fsspec.url_to_fs(record)
    return bool(files.exists(key))


def _text(path: str) -> str:
    if "://" not in path:
        with Path(path).open(encoding="utf-8-sig") as local:
            return local.read(_MOST_CHARACTERS + 1)
    import fsspec

    with fsspec.open(path, encoding="utf-8-sig", mode="r") as file:
        return str(file.read(_MOST_CHARACTERS + 1))


def _hint(path: str) -> str:
    """A hint: the file in the same folder with a similar name, else all YAML files there."""
    folder, name = os.path.split(path)
    if "://" in path or not os.path.isdir(folder or "."):
        return ""
    names = {file.stem: file.name for file in sorted(Path(folder).iterdir()) if file.suffix in (".yaml", ".yml")}
    near = difflib.get_close_matches(Path(name).stem, names, n=1, cutoff=0.7)
    if near:
        return f"; did you mean {os.path.join(folder, names[near[0]])}?"
    shown = ", ".join(list(names.values())[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    return f"; there are {shown}" if names else "; there is no *.yaml"


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Put `section.key=value` into a tree. The value stays in its typed form.

    Raises `ConfigError` if the override has another form, or holds credentials.
    """
    key, equals, text = override.partition("=")
    if has_credentials(override) or has_credentials(text):
        raise ConfigError(f"{'an override' if has_credentials(key) else key}: {CREDENTIALS}")
    if not equals or not key:
        raise ConfigError(f"{override!r}: an override has the form section.key=value")
    *path, last = key.split(".")
    node = tree
    for part in path:
        child = child_of(node, part)
        if not isinstance(child, dict):
            child = node[part] = {}
        node = child
    node[last] = Typed(text, key)


def _unknown_keys(tree: Any, model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    if not isinstance(tree, dict):
        return
    for name, value in tree.items():
        info = model.model_fields.get(name) if isinstance(name, str) else None
        if f"{prefix}{name}" in RENAMED:
            yield f"{prefix}{name} was renamed: use {RENAMED[f'{prefix}{name}']}"
        elif info is None:
            shown = str(name) if str(name).isprintable() else repr(name)
            yield f"{prefix}{shown[:100]}: unknown key{_suggest(str(name), model, prefix)}"
        elif inner := section_of(info):
            yield from _unknown_keys(value, inner, f"{prefix}{name}.")


def _suggest(name: str, model: type[BaseModel], prefix: str) -> str:
    near = difflib.get_close_matches(name, model.model_fields, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {prefix}{near[0]}?"
    keys = [*flatten_config(Config()), *RENAMED]
    elsewhere = [RENAMED.get(key, key) for key in keys if key.rpartition(".")[2] == name]
    if elsewhere:
        return f"; did you mean {elsewhere[0]}?"
    return f"; there are {', '.join(model.model_fields)}"


def _problem(item: Any, values: Any, tree: Any) -> tuple[str, str]:
    """One error of pydantic as (key, text).

    A union gives an error for each alternative, with its name in the location; the returned key omits that name.
    """
    keys, node = [], values
    for part in item["loc"]:
        if isinstance(node, dict) and (part in node or item["type"] == "missing"):
            keys.append(str(part))
            node = node.get(part)
        elif isinstance(node, list) and isinstance(part, int):
            node = node[part] if part < len(node) else None
    message = item["msg"].removeprefix("Value error, ")
    return ".".join(keys), f"{message[:1].lower()}{message[1:]}{_given(item, tree)}"


def _given(item: Any, tree: Any) -> str:
    """The value of a key, in the form written in `tree`."""
    value = item.get("input")
    if not isinstance(value, str | int | float | bool | type(None)):
        return ""
    node = tree
    for part in item["loc"]:
        if not (part in node if isinstance(node, dict) else isinstance(node, list) and part in range(len(node))):
            break
        node = node[part]
    inner = str(node).lstrip().startswith(("[", "{"))  # one item of a typed list or mapping
    shown = str(node).strip() if isinstance(node, Plain) and not inner and not isinstance(value, str) else repr(value)
    if has_credentials(shown):
        return " (not shown: it holds credentials)"
    return f" (got {shown[:100]}{'...' if len(shown) > 100 else ''})"
