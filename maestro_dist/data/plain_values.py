"""Values of numpy and other libraries as plain Python values: the exact value, or None, or an error that names it."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable
from typing import Any

import numpy as np

from maestro_dist.errors import DataError

_MOST_LETTERS = 10_000  # longest allowed text; a citation may be long
_LARGEST_FLOAT32 = float(np.finfo(np.float32).max)


def python_number(value: Any) -> bool | int | float | None:
    """A Python, numpy or zero-dimensional array or tensor number as a Python number; None for anything else."""
    if isinstance(value, np.ma.MaskedArray | np.datetime64 | np.timedelta64):  # they contain numbers
        return None
    if isinstance(value, np.longdouble):
        return float(value)
    if getattr(value, "shape", None) == () and callable(getattr(value, "item", None)):
        value = value.item() if getattr(value.dtype, "kind", "f") not in "mM" else None
    for kind in (bool, int, float):
        if isinstance(value, kind):
            return kind(value)
    return None


def plain_scalar(value: Any) -> Any:
    """The value of an array or tensor without dimensions; anything else as it is."""
    return value.item() if getattr(value, "shape", None) == () and callable(getattr(value, "item", None)) else value


def whole_number(value: Any) -> int | None:
    """A whole number, also if it is given as a float; None for anything else."""
    number = python_number(value)
    if number is None or isinstance(number, bool):
        return None
    if isinstance(number, float):
        return int(number) if number.is_integer() else None
    return number


def finite_number(value: Any) -> int | float | None:
    """A finite number that float32 can hold (an integer stays an integer); None for anything else."""
    number = python_number(value)
    if number is None or isinstance(number, bool):
        return None
    return number if -_LARGEST_FLOAT32 <= number <= _LARGEST_FLOAT32 else None


def boolean(value: Any, key: str, where: str) -> bool:
    """True or False. Raises DataError for anything else."""
    result = python_number(value)
    if not isinstance(result, bool):
        raise DataError(f"{where}: {key} {short_repr(value)} is neither True nor False")
    return result


def checked_text(value: Any, key: str, where: str, *, line: bool = True, most: int = _MOST_LETTERS) -> str:
    """A text. With `line` it has no line break or control character. Raises DataError for anything else."""
    if not isinstance(value, str):
        raise DataError(f"{where}: {key} {short_repr(value)} is {type_name(value)}, not text")
    if len(value) > most:
        raise DataError(f"{where}: {key} has {len(value):,} letters; {most:,} are the most")
    bad = {"Cs"} | ({"Cc", "Zl", "Zp"} if line else set())
    if any(unicodedata.category(letter) in bad for letter in value):
        raise DataError(
            f"{where}: {key} {short_repr(value)} contains a control character, a line break or a broken letter"
        )
    return str(value)


def id_text(value: Any, key: str, where: str, *, most: int = 200) -> str:
    """An id as text: 0, 0.0, numpy's 0 and "0" are the same; None gives "". Raises DataError for other types."""
    if value is None:
        return ""
    if not isinstance(value, str):
        number = whole_number(value)
        if number is None:
            raise DataError(
                f"{where}: {key} {short_repr(value)} is {type_name(value)}; an id is text or a whole number"
            )
        value = str(number)
    text = checked_text(value, key, where, most=most)
    return text if text.strip() else ""


def checked_list(value: Any, key: str, where: str) -> list[Any]:
    """A sequence as a list. Raises DataError for anything else, also for a text."""
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise DataError(f"{where}: {key} {short_repr(value)} is {type_name(value)}, not a list or tuple")
    return list(value)


def float32_array(value: Any, where: str) -> np.ndarray:
    """An array as float32; masked elements become NaN.

    Raises:
        DataError: it does not hold real numbers, or one is infinite or too large for float32.
    """
    try:
        # a list may hold masked arrays; asarray would lose their masks
        array = np.ma.array(value) if isinstance(value, list | tuple | np.ma.MaskedArray) else np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{where} is {type_name(value)} and not an array of numbers ({_one_line(error)})") from error
    if array.dtype.kind not in "fiub":
        raise DataError(
            f"{where} is an array of {array.dtype}; give real numbers (float or integer), NaN where there is no value"
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
        why = "an infinite value" if math.isinf(worst) else f"{worst:g}, which is too large for float32,"
        raise DataError(f"{where} has {why}; give NaN where there is no value")
    return numbers


def first_duplicate(names: Iterable[str]) -> str | None:
    """The first name that occurs a second time; None if there is none."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def type_name(value: Any) -> str:
    """The type of a value, in words for a message."""
    return f"of type {type(value).__name__}"


def short_repr(value: Any) -> str:
    """A value on one line for a message; a long one is cut."""
    if isinstance(value, str):
        value = value[:100]
    elif isinstance(value, float) and not math.isfinite(value):
        return str(value)
    line = " ".join(repr(value).split())
    return line if len(line) <= 60 else f"{line[:60]}..."


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def person(subject: Any) -> str:
    """The name of a person, from the value of a sample; empty if there is none. 0 and "0" are the same person."""
    number = None if isinstance(subject, str) else whole_number(subject)
    name = "" if subject is None else str(subject if number is None else number)
    return name if name.strip() else ""
