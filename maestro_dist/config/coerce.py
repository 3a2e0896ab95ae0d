"""From text in YAML or on the command line to a value: the type of the key decides what the text means."""

from __future__ import annotations

import re
import types
import typing
from typing import Any

from maestro_dist.config.annotations import alternatives, is_section
from maestro_dist.config.yaml_text import Plain, Typed

RULES = """\
The type of a key says how its value is read, from section.key=value or from a YAML file:
  text      unchanged: 0042, no, 2026-01-15, a: b, '/data/exp #3' (in a file, # and quotes have their YAML meaning)
  number    decimal, or 0x and hexadecimal digits: 1e-3, .5, 1_000; an integer may be written 1e3
  true      true, yes or on; false, no or off
  list, ... as in YAML: [a, b], {a: 8, b: 4}; the type of the items says how they are read
  null      null, None, ~ or nothing, where the key may be null: run.init_from=
~ and ~user at the start of a path are home folders. If a key is given twice, the last value counts."""

NULL = {"", "~", "null", "Null", "NULL", "None"}
_BOOLS = dict.fromkeys(("true", "yes", "on"), True) | dict.fromkeys(("false", "no", "off"), False)
_INT = re.compile(r"[-+]?(0x[0-9a-f_]+|[0-9][0-9_]*)", re.IGNORECASE)
_FLOAT = re.compile(r"[-+]?([0-9][0-9_]*(\.[0-9_]*)?|\.[0-9][0-9_]*)(e[-+]?[0-9]+)?", re.IGNORECASE)
_NOT_FINITE = re.compile(r"[-+]?\.(inf|nan)", re.IGNORECASE)


def coerce(value: Any, kind: Any) -> Any:
    """`value` with each `Plain` text in it converted to the type annotation `kind`. A text that does not fit stays.

    pydantic then checks whether the value is valid. Raises `ConfigError` if a typed list or mapping is not YAML.
    """
    kinds = alternatives(kind)
    if isinstance(value, Typed):
        value = Plain(value) if _is_text(value, kinds) else value.parsed()
    if isinstance(value, dict):
        return _mapping(value, kinds)
    if isinstance(value, list):
        other = Any if Any in kinds else str
        inner = next((typing.get_args(k) for k in kinds if typing.get_origin(k) in (list, tuple)), (other,))
        item_kinds = inner[:-1] if inner[-1] is Ellipsis else inner
        return [coerce(item, item_kinds[min(number, len(item_kinds) - 1)]) for number, item in enumerate(value)]
    return _scalar(value, kinds) if isinstance(value, Plain) else value


def _is_text(typed: str, kinds: list[Any]) -> bool:
    if str not in kinds and not any(isinstance(word, str) for word in _words(kinds)):
        return False
    accepts_collection = any(is_section(kind) or typing.get_origin(kind) in (list, tuple, dict) for kind in kinds)
    return not (accepts_collection and typed.lstrip()[:1] in ("[", "{"))


def _words(kinds: list[Any]) -> list[Any]:
    """The values of all `Literal`s."""
    return [w for kind in kinds if typing.get_origin(kind) is typing.Literal for w in typing.get_args(kind)]


def _mapping(value: dict[str, Any], kinds: list[Any]) -> dict[str, Any]:
    model = next((kind for kind in kinds if is_section(kind)), None)
    if model is not None:
        fields = model.model_fields
        return {key: coerce(v, fields[key].annotation if key in fields else str) for key, v in value.items()}
    other = Any if Any in kinds else str
    inner = next((typing.get_args(kind)[1] for kind in kinds if typing.get_origin(kind) is dict), other)
    return {key: coerce(v, inner) for key, v in value.items()}


def _scalar(plain: Plain, kinds: list[Any]) -> Any:
    text = str(plain)
    words = _words(kinds)
    if Any in kinds:  # no declared type: null, numbers, true and false are read as in YAML
        kinds = [types.NoneType, str, int, float]
        if text.lower() in ("true", "false"):
            return _BOOLS[text.lower()]
    if types.NoneType in kinds and text in NULL:
        return None
    if not text and any(is_section(kind) for kind in kinds):
        return {}  # a section whose keys are all commented out
    if text in words:
        return text
    number = None
    if any(kind in kinds for kind in (int, float)) or any(isinstance(word, int) for word in words):
        number = _number(text)
    if str in kinds:  # text or number: 0042 and 1.10 are text, because YAML writes these numbers as 42 and 1.1
        return text if number is None or _yaml_form(number) != text else number
    if number is not None:
        return number
    return _BOOLS.get(text.lower(), text) if bool in kinds else text


def _number(text: str) -> int | float | None:
    try:
        if _INT.fullmatch(text):
            return int(text, 16 if "x" in text.lower() else 10)
        if _FLOAT.fullmatch(text):
            return float(text)
        return float(text.replace(".", "")) if _NOT_FINITE.fullmatch(text) else None
    except ValueError:  # 1__0, or thousands of digits
        return None


def _yaml_form(number: int | float) -> str:
    """The number in YAML's form."""
    text = repr(number)
    return text if "." in text else text.replace("e", ".0e")
