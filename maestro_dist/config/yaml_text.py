"""YAML with values as text, in the form in which they were written.

YAML 1.1 guesses the type of a value without quotes (`no` is false, `0042` is 34, `1e-3` is text). Here it keeps its
text, and `config/coerce.py` converts it to the type of its key.
"""

from __future__ import annotations

from typing import Any

import yaml

from maestro_dist.errors import ConfigError

_MOST_VALUES = 100_000
_PLAIN, _TAG = "!plain", "tag:yaml.org,2002:"
_SCALARS = {_PLAIN, *(f"{_TAG}{name}" for name in ("int", "float", "bool", "null"))}  # `!!float 1e-3`


class Plain(str):
    """A value without quotes. The type of its key decides what it means."""


class Typed(Plain):
    """The value of `key=value` on the command line: text if the key takes text, else YAML."""

    key: str

    def __new__(cls, text: str, key: str) -> Typed:
        """`key` is the full name `section.key`, for errors."""
        typed = super().__new__(cls, text)
        typed.key = key
        return typed

    def parsed(self) -> Any:
        """The value read as YAML. Raises `ConfigError` if it is not valid YAML."""
        try:
            return from_yaml(self)
        except yaml.YAMLError:
            raise ConfigError(
                f"{f'{self.key}={self}'!r}: the value is not valid YAML; in a list or mapping, a text with other "
                "characters than letters and digits may need quotes"
            ) from None


class _Loader(yaml.SafeLoader):
    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        if kind is yaml.ScalarNode and implicit[0]:
            return _PLAIN
        return super().resolve(kind, value, implicit)


def from_yaml(text: str) -> Any:
    """The dicts, lists and texts of a YAML document. Texts are `Plain` without quotes, `str` with quotes.

    Keys of dicts are `str`. An alias (`*name`) becomes a copy. Raises `yaml.YAMLError` if the text is not valid, a
    key is given twice, a tag would make an object, or there are more than 100,000 values with all aliases copied.
    """
    remaining = _MOST_VALUES

    def value(node: yaml.Node) -> Any:
        nonlocal remaining
        remaining -= 1
        if remaining < 0:
            raise _error(node, f"more than {_MOST_VALUES:,} values")
        if isinstance(node, yaml.ScalarNode) and node.tag in _SCALARS:
            return Plain(node.value)
        if isinstance(node, yaml.ScalarNode) and node.tag == f"{_TAG}str":
            return str(node.value)
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
            return [value(item) for item in node.value]
        if isinstance(node, yaml.MappingNode) and node.tag == f"{_TAG}map":
            return mapping(node)
        raise _error(node, f"the tag {node.tag.replace(_TAG, '!!')} is not allowed in a configuration")

    def mapping(node: yaml.MappingNode) -> dict[str, Any]:
        values: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key, child in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _error(key, "a key must be one word")
            if (key.tag, key.value) == (_PLAIN, "<<"):
                bases = value(child)
                for base in bases if isinstance(bases, list) else [bases]:
                    if not isinstance(base, dict):
                        raise _error(key, "<< needs mappings")
                    merged = base | merged
            elif key.value in values:
                raise _error(key, f"key {key.value!r} is given twice")
            else:
                values[str(key.value)] = value(child)
        return merged | values

    try:
        root = yaml.compose(text, Loader=_Loader)
        return Plain() if root is None else value(root)
    except RecursionError:
        raise yaml.YAMLError("nested too deeply") from None


def child_of(node: dict[str, Any], key: str) -> Any:
    """`node[key]`, or None if it is missing. A typed value is parsed first, so that it can be changed in place."""
    child = node.get(key)
    if isinstance(child, Typed):
        child = node[key] = child.parsed()
    return child


def _error(node: yaml.Node, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
