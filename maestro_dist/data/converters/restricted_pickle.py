"""Reads pickles of plain values and arrays of numbers, and nothing else; no code of the file is ever run.

Python's own unpickler calls what a file names, so that a file can run any program. This reader does not use it: it
knows the codes of text, numbers, lists, tuples and dictionaries (`pickle_codes.py`), and makes numpy arrays itself,
from their bytes (protocols 0 to 5, of Python 2 and 3). Any other name in the file is refused with that name.
"""

from __future__ import annotations

import math
import re
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from maestro_dist.data.converters.pickle_codes import PickleReader, Refused
from maestro_dist.errors import DataError

_DTYPE = re.compile(r"[<>=|]?(b1|[iu][1248]|f[248])", re.ASCII)
_MOST_DIMENSIONS = 8


@dataclass(frozen=True)
class _PickledName:
    """A name that the file refers to; `kind` is what it makes here."""

    kind: str


@dataclass
class _NumberType:
    """A numpy dtype, as far as it is known."""

    text: str


@dataclass
class _PickledArray:
    """A numpy array; `values` is None until its bytes have come."""

    values: np.ndarray | None = None


_NAMES = {
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): "dtype",
    ("_codecs", "encode"): "encode",
    ("__builtin__", "bytes"): "no bytes",
    ("builtins", "bytes"): "no bytes",
    **{(f"numpy.{core}.multiarray", "_reconstruct"): "array" for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): "scalar" for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): "array of bytes" for core in ("core", "_core")},  # protocol 5
}


def read_plain_data(name: str, content: bytes) -> Any:
    """The value that a pickle holds: None, booleans, numbers, text, bytes, lists, tuples, dictionaries, and numpy
    arrays of numbers (read-only). Text of Python 2 is read as Latin-1. `name` is for messages.

    Raises:
        DataError: the file is damaged or cut short, or holds something else; the message names it.
    """
    try:
        return _plain(PickleReader(content, _named, _made, _complete).value())
    except Refused as error:
        raise DataError(f"{name}: {error}") from None
    except (ValueError, TypeError, IndexError, KeyError, struct.error, OverflowError) as error:
        raise DataError(f"{name}: not a readable pickle ({type(error).__name__}: {error}); fetch it again") from None


def _named(module: str, attribute: str) -> _PickledName:
    kind = _NAMES.get((module, attribute))
    if kind is None:
        raise Refused(f"it refers to {module[:60]!r}.{attribute[:60]!r}, which is not plain data; refused")
    return _PickledName(kind)


def _made(name: Any, arguments: Any) -> Any:
    """What a name makes of its arguments."""
    if not isinstance(name, _PickledName) or not isinstance(arguments, tuple):
        raise Refused("it calls something that is not a name; refused")
    match name.kind, arguments:
        case "array", (_PickledName(kind="ndarray"), tuple(), _):
            return _PickledArray()
        case "array of bytes", (bytes() as raw, _NumberType(text=text), tuple() as shape, "C" | "F" as order):
            return _PickledArray(_array(shape, text, raw, fortran=order == "F"))
        case "dtype", (str(text), *_):
            return _NumberType(_checked_kind(text))
        case "encode", (str(text), "latin1" | "latin-1"):
            return text.encode("latin-1")
        case "no bytes", ():
            return b""
        case "scalar", (_NumberType(text=text), bytes() | str() as raw):
            return _array((), text, raw).item()
    raise Refused(f"it uses numpy's {name.kind} in an unusual way; refused")


def _complete(item: Any, state: Any) -> None:
    """Complete an array or a dtype with its state."""
    match item, state:
        case _NumberType(text=text), (int(), str(order), None, None, None, *_):
            item.text = _checked_kind(order + text.lstrip("<>=|"))
        case _PickledArray(values=None), (
            int(),
            tuple() as shape,
            _NumberType(text=text),
            fortran,
            bytes() | str() as raw,
        ):
            item.values = _array(shape, text, raw, fortran=bool(fortran))
        case _NumberType() | _PickledArray(), _:
            raise Refused("an array that holds more than plain numbers; refused")
        case _:
            raise Refused(f"it sets the state of {type(item).__name__}; refused")


def _checked_kind(text: str) -> str:
    """A dtype of numbers."""
    if not _DTYPE.fullmatch(text):
        what = "objects" if text.lstrip("<>=|").startswith("O") else f"dtype {text[:20]!r}"
        raise Refused(f"an array of {what}; only numbers can be read")
    return text


def _array(shape: tuple[Any, ...], text: str, raw: bytes | str, *, fortran: bool = False) -> np.ndarray:
    """An array of these bytes; Python 2 gives them as text."""
    data = raw.encode("latin-1") if isinstance(raw, str) else raw
    kind = np.dtype(text)
    if len(shape) > _MOST_DIMENSIONS or not all(type(n) is int and 0 <= n < 1 << 40 for n in shape):
        raise Refused("an array whose shape is not a few whole numbers; refused")
    if math.prod(shape) * kind.itemsize != len(data):
        raise Refused(f"an array of shape {shape} with {len(data):,} bytes; fetch the file again")
    array = np.frombuffer(data, dtype=kind)
    return array.reshape(shape, order="F" if fortran else "C")


def _plain(value: Any) -> Any:
    """The value, once it is known that every array in it is complete. Arrays stand for their numbers."""
    done: dict[int, Any] = {}
    waiting = [(value, False)]
    while waiting:
        item, parts_done = waiting.pop()
        if id(item) in done and not parts_done:
            continue
        if isinstance(item, _PickledArray):
            if item.values is None:
                raise Refused("an array has no numbers; fetch the file again")
            done[id(item)] = item.values
        elif isinstance(item, _PickledName | _NumberType):
            raise Refused("it holds a name or a type of numpy where a value belongs; only data can be read")
        elif not isinstance(item, dict | list | tuple):
            done[id(item)] = item
        elif not parts_done:
            done[id(item)] = item  # for a value that contains itself: it is read once
            waiting.append((item, True))
            waiting += [(part, False) for part in (item.values() if isinstance(item, dict) else item)]
        elif isinstance(item, dict):
            for key, part in item.items():
                item[key] = done[id(part)]
        elif isinstance(item, list):
            item[:] = [done[id(part)] for part in item]
        else:
            done[id(item)] = tuple(done[id(part)] for part in item)
    return done[id(value)]
