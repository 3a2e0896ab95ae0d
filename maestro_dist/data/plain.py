"""Values of any library as plain Python ones, where they have one exact meaning; else None or an error naming them."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable
from typing import Any

import numpy as np

from maestro_dist.errors import DataError

_MOST_LETTERS = 10_000  # of a text; a citation may be long
_LARGEST_FLOAT32 = float(np.finfo(np.float32).max)


def number(value: Any) -> bool | int | float | None:
    """A number as a Python one: also one of numpy, or a single one in an array or tensor of no dimensions."""
    if isinstance(value, np.ma.MaskedArray | np.datetime64 | np.timedelta64):  # these have numbers inside, but are none
        return None
    if isinstance(value, np.longdouble):
        return float(value)
    if getattr(value, "shape", None) == () and callable(getattr(value, "item", None)):
        value = value.item() if getattr(value.dtype, "kind", "f") not in "mM" else None
    for kind in (bool, int, float):
        if isinstance(value, kind):
            return kind(value)
    return None


def whole(value: Any) -> int | None:
    """A whole number, also where it comes as a float."""
    found = number(value)
    if found is None or isinstance(found, bool):
        return None
    if isinstance(found, float):
        return int(found) if found.is_integer() else None
    return found


def real(value: Any) -> int | float | None:
    """A finite number that float32 can hold, an integer as such."""
    found = number(value)
    if found is None or isinstance(found, bool):
        return None
    return found if -_LARGEST_FLOAT32 <= found <= _LARGEST_FLOAT32 else None


def flag(value: Any, key: str, where: str) -> bool:
    """True or False. Raises DataError for anything else."""
    found = number(value)
    if not isinstance(found, bool):
        raise DataError(f"{where}: {key} {shown(value)} is neither True nor False")
    return found


def text(value: Any, key: str, where: str, *, line: bool = True, most: int = _MOST_LETTERS) -> str:
    """A text, on one line without control characters unless `line` is false. Raises DataError for anything else."""
    if not isinstance(value, str):
        raise DataError(f"{where}: {key} {shown(value)} is {kind_of(value)}, not text")
    if len(value) > most:
        raise DataError(f"{where}: {key} has {len(value):,} letters; {most:,} are the most")
    bad = {"Cs"} | ({"Cc", "Zl", "Zp"} if line else set())
    if any(unicodedata.category(letter) in bad for letter in value):
        raise DataError(f"{where}: {key} {shown(value)} has a control character, a line break or a broken letter in it")
    return str(value)


def identity(value: Any, key: str, where: str, *, most: int = 200) -> str:
    """An id as text: 0, 0.0, numpy's 0 and "0" are the same; None is no id (""). Raises DataError for anything else."""
    if value is None:
        return ""
    if not isinstance(value, str):
        found = whole(value)
        if found is None:
            raise DataError(f"{where}: {key} {shown(value)} is {kind_of(value)}; an id is text or a whole number")
        value = str(found)
    found_text = text(value, key, where, most=most)
    return found_text if found_text.strip() else ""


def listed(value: Any, key: str, where: str) -> list[Any]:
    """A sequence as a list; a text is one name, not a sequence of letters. Raises DataError for anything else."""
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise DataError(f"{where}: {key} {shown(value)} is {kind_of(value)}, not a list or tuple")
    return list(value)


def windowed(value: Any, where: str) -> np.ndarray:
    """An array as float32; what a masked array hides is NaN.

    Raises:
        DataError: it does not hold real numbers, or has one that is infinite or beyond float32.
    """
    try:
        # a list may hold masked arrays, whose masks asarray would lose
        array = np.ma.array(value) if isinstance(value, list | tuple | np.ma.MaskedArray) else np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{where} is {kind_of(value)} and no array of numbers ({_one_line(error)})") from error
    if array.dtype.kind not in "fiub":
        raise DataError(
            f"{where} is an array of {array.dtype}; give real numbers (floating or integer), NaN where there is none"
        )
    masked = isinstance(array, np.ma.MaskedArray)
    data = np.asarray(np.ma.getdata(array))
    with np.errstate(over="ignore"):
        numbers = data.astype("<f4", order="C", copy=masked)
    if masked:
        numbers[np.ma.getmaskarray(array)] = np.nan
    infinite = np.isinf(numbers)
    if infinite.any():
        worst = float(data[infinite][0])
        why = "an infinite value" if math.isinf(worst) else f"{worst:g}, which is more than float32 holds,"
        raise DataError(f"{where} has {why} in it; give NaN where there is no value")
    return numbers


def twice(names: Iterable[str]) -> str | None:
    """The first name that was there before."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def kind_of(value: Any) -> str:
    """The type of a value, for messages."""
    return f"of type {type(value).__name__}"


def shown(value: Any) -> str:
    """A value on one line, and only its beginning where it is long."""
    if isinstance(value, str):
        value = value[:100]
    elif isinstance(value, float) and not math.isfinite(value):
        return str(value)
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:60]}..."


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
