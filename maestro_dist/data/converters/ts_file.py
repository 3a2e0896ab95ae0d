"""Files in the .ts format of the UEA archive (classes) and of the TSER archive (numbers to be predicted).

A header of lines `@name value`, then `@data`, then one line for each series: its dimensions, separated by `:`, each of
them numbers separated by `,`; then `:` and the class or number. `?` and `NaN` are missing values. Lines with `#` are
comments.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from maestro_dist.errors import DataError

_FLAGS = {"true": True, "false": False}
_KNOWN = {
    *("problemname", "timestamps", "missing", "univariate", "dimension", "dimensions", "equallength", "serieslength"),
    *("classlabel", "targetlabel", "data"),
}


@dataclass(frozen=True)
class TsHeader:
    """What the header of a file says.

    problem     name of the data set
    dimensions  number of dimensions of each series; None: not given
    classes     names of the classes, in their order; None: each series has a number instead
    steps       length of all series; None: not given, or the series differ in length
    """

    problem: str
    dimensions: int | None
    classes: tuple[str, ...] | None
    steps: int | None


@dataclass(frozen=True)
class TsFile:
    """A file whose header has been read. `rows`: number in the file (from 1) and text of each series."""

    name: str
    header: TsHeader
    rows: tuple[tuple[int, str], ...]

    def shape(self, row: tuple[int, str]) -> tuple[int, int]:
        """Steps of the first dimension, and number of dimensions, of a series; its numbers are not read."""
        parts = row[1].split(":")
        return parts[0].count(",") + 1, len(parts) - 1

    def series(self, row: tuple[int, str]) -> tuple[np.ndarray, str | float]:
        """The values of a series, float64 [steps, dimensions] (NaN: missing), and its class or number.

        Raises:
            DataError: a value is not a number, a dimension is longer than another, or the class is unknown.
        """
        where = f"{self.name}: line {row[0]}"
        *texts, label = (part.strip() for part in row[1].split(":"))
        if not texts:
            raise DataError(f"{where} has no ':' between its values and its class; fetch the file again")
        target: str | float = label
        if self.header.classes is None:
            target = _target(label, where)
        elif label not in self.header.classes:
            known = ", ".join(self.header.classes[:10])
            raise DataError(f"{where}: class {label[:40]!r} is not in @classLabel ({known}); fetch the file again")
        dimensions = [_numbers(text, f"{where}, dimension {number}") for number, text in enumerate(texts, start=1)]
        lengths = sorted({len(values) for values in dimensions})
        if len(lengths) > 1:
            raise DataError(f"{where}: its dimensions have {lengths[0]} to {lengths[-1]} steps; they must be equal")
        return np.stack(dimensions, axis=1), target


def read_ts(name: str, content: bytes) -> TsFile:
    """Read the header of a file and find its series. `name` is for messages.

    Raises:
        DataError: the header is incomplete or has another meaning, or there are no series.
    """
    lines = content.decode("utf-8-sig", errors="replace").split("\n")  # comments may have any encoding
    tags: dict[str, str] = {}
    start = None
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        if not text.startswith("@"):
            raise DataError(f"{name}: line {number} comes before @data, but is no comment (#) and no @ line")
        tag, *rest = text[1:].split(maxsplit=1) or [""]
        tag, value = tag.lower(), "".join(rest)
        if tag not in _KNOWN or tag in tags:
            raise DataError(f"{name}: line {number}: @{tag[:40]} is {'there twice' if tag in tags else 'unknown'}")
        tags[tag] = value.strip()
        if tag == "data":
            start = number
            break
    if start is None:
        raise DataError(f"{name}: no @data line, so it is no .ts file, or it was cut short; fetch it again")
    header = _header(name, tags)
    rows = tuple(
        (number, line)
        for number, line in enumerate(lines[start:], start=start + 1)
        if line.strip() and not line.lstrip().startswith("#")
    )
    if not rows:
        raise DataError(f"{name}: no series after @data; fetch it again")
    return TsFile(name, header, rows)


def _header(name: str, tags: dict[str, str]) -> TsHeader:
    if not tags.get("problemname"):
        raise DataError(f"{name}: no @problemName; it is no .ts file of the archive")
    if _flag(name, tags, "timestamps"):
        raise DataError(f"{name}: @timeStamps true: series with time stamps cannot be read; use the set without them")
    classes = _classes(name, tags)
    univariate = _flag(name, tags, "univariate")
    dimensions = _count(name, tags, "dimensions" if "dimensions" in tags else "dimension")
    if univariate and dimensions not in (None, 1):
        raise DataError(f"{name}: @univariate true, but @dimensions {dimensions}; correct one of them")
    equal = "equallength" not in tags or _flag(name, tags, "equallength")
    steps = _count(name, tags, "serieslength") if equal else None
    return TsHeader(tags["problemname"], 1 if univariate else dimensions, classes, steps)


def _classes(name: str, tags: dict[str, str]) -> tuple[str, ...] | None:
    """The classes of `@classLabel`; None with `@targetLabel true`, as in the TSER archive."""
    given, *classes = tags.get("classlabel", "").split() or [""]
    classified = given.lower() == "true"
    if _flag(name, tags, "targetlabel"):
        if classified:
            raise DataError(f"{name}: both @classLabel and @targetLabel are true; correct one of them")
        return None
    if not classified or not classes:
        raise DataError(f"{name}: @classLabel has no classes, and there is no @targetLabel; the series need labels")
    return tuple(classes)


def _flag(name: str, tags: dict[str, str], tag: str) -> bool:
    value = tags.get(tag, "false").lower()
    if value not in _FLAGS:
        raise DataError(f"{name}: @{tag} {value[:40]!r} is neither true nor false")
    return _FLAGS[value]


def _count(name: str, tags: dict[str, str], tag: str) -> int | None:
    value = tags.get(tag)
    if value is None:
        return None
    if not (value.isascii() and value.isdecimal() and 0 < len(value) < 10 and int(value)):
        raise DataError(f"{name}: @{tag} {value[:40]!r} is not a whole number from 1")
    return int(value)


def _target(text: str, where: str) -> float:
    """The number of a series."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{where}: its target {text[:40]!r} is not a number; fetch the file again")
    return number


def _numbers(text: str, where: str) -> np.ndarray:
    """The numbers of one dimension, float64 [steps]; NaN where they are missing."""
    items = ["nan" if item.strip() == "?" else item for item in text.split(",")]
    try:
        values = np.array(items, dtype=np.float64)
    except ValueError as error:
        raise DataError(f"{where}: {error}; fetch the file again") from error
    if np.isinf(values).any():
        raise DataError(f"{where}: step {int(np.argmax(np.isinf(values))) + 1} is infinite; fetch the file again")
    return values
