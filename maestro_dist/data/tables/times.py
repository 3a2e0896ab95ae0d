"""Times of rows: whole nanoseconds from any form, in order, or an error that says what is wrong."""

from __future__ import annotations

import re
from itertools import pairwise
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from maestro_dist.data.plain_values import short_repr
from maestro_dist.errors import DataError

SECOND = 1_000_000_000
UNITS = {"h": 3600 * SECOND, "min": 60 * SECOND, "s": SECOND, "ms": 1_000_000, "us": 1_000, "ns": 1}
_DAY, HOUR = 86_400 * SECOND, 3_600 * SECOND
_MOST = 2**62
ELAPSED = re.compile(r"^(?P<hours>\d{1,6}):(?P<minutes>[0-5]\d):(?P<seconds>[0-5]\d)(?:[.,](?P<fraction>\d+))?$")


def nanoseconds(
    column: pa.ChunkedArray, unit: str | float, form: str | None, zone: str | None, where: str
) -> np.ndarray:
    """Times as int64 nanoseconds [rows].

    unit, form, zone   as in `TimeColumn`
    where              file and column, for messages

    Dates without zone count as UTC if no zone is given; `check_clock_changes` finds where that would be wrong.

    Raises:
        DataError: a time is missing, or is not of this form.
    """
    if column.null_count:
        row = pc.index(pc.is_null(column), True).as_py() + 1
        raise DataError(f"{where}: row {row:,} has no time; remove the row, or correct it")
    if not len(column):
        return np.zeros(0, dtype=np.int64)
    if unit == "date":
        return _dates(column, form, zone, where)
    if unit == "elapsed":
        return _elapsed(column, where)
    factor = UNITS[unit] if isinstance(unit, str) else round(unit * SECOND)
    if pa.types.is_timestamp(column.type) or pa.types.is_time(column.type):
        raise DataError(
            f"{where}: it has dates such as {column[0].as_py()}, but the layout says unit: {unit}; use date"
        )
    if pa.types.is_integer(column.type):
        numbers = column.to_numpy()
        if len(numbers) and int(np.abs(numbers.astype(np.float64)).max()) * factor > _MOST:
            raise DataError(f"{where}: {numbers[0]} is no time in {unit}; correct its unit in the layout")
        return np.asarray(numbers.astype(np.int64) * factor)
    if not (pa.types.is_floating(column.type) or pa.types.is_decimal(column.type)):
        row, odd = next(
            ((n, v) for n, v in enumerate(column.to_pylist(), 1) if not _is_number(v)), (1, column[0].as_py())
        )
        raise DataError(f"{where}: {short_repr(odd)} in row {row:,} is not a number; for dates use unit: date")
    numbers = column.cast(pa.float64(), safe=False).to_numpy() * factor
    bad = ~(np.abs(numbers) < _MOST)
    if bad.any():
        row = int(np.argmax(bad))
        raise DataError(f"{where}: row {row + 1:,} has {column[row].as_py()}, which is no time in {unit}")
    return np.round(numbers).astype(np.int64)


_APART = "if several recordings are in the file, name the column that tells them apart (recording: NAME)"
_ZONE = "Name the zone in the layout (zone: Europe/Berlin, or UTC if it is a gap)"


def in_order(times: np.ndarray, where: str, remedy: str = _APART) -> np.ndarray | None:
    """How to sort times [n]: an order of rows, or None if they are in order. `remedy`: what the message advises.

    Rows that are only a little out of turn, and whole blocks in another order, can be sorted. Where time goes back and
    then runs over the same times again, two recordings are in one file, or a clock was changed.

    Raises:
        DataError: that, with the row.
    """
    steps = np.diff(times)
    back = np.flatnonzero(steps < 0)
    if not len(back):
        return None
    usual = float(np.median(steps[steps > 0])) if (steps > 0).any() else 0.0
    order = np.argsort(times, kind="stable")
    far = back[-steps[back] > 10 * usual]
    bounds = [0, *(far + 1).tolist(), len(times)]
    blocks = sorted((times[a:b].min(), times[a:b].max()) for a, b in pairwise(bounds))
    for (_, end), (start, _) in pairwise(blocks):
        if start < end - 10 * usual or (start <= end and usual > 0 and start != end):
            hint = _clock_hint(int(-steps[far].max()))
            raise DataError(
                f"{where}: in row {int(far[0]) + 2:,} time goes back to times that were there before{hint}; {remedy}"
            )
    return order


def _clock_hint(step: int) -> str:
    return (
        " (by about an hour: the end of daylight saving? then name the zone)" if abs(step - HOUR) < HOUR // 10 else ""
    )


def check_clock_changes(times: np.ndarray, where: str, remedy: str = _ZONE) -> None:
    """Check dates that name no zone, in order: a jump of one hour at a full hour is a clock that was put forward.
    `remedy`: what the message advises.

    Raises:
        DataError: there is such a jump.
    """
    if len(times) < 3:
        return
    steps = np.diff(times)
    usual = float(np.median(steps))
    if (np.abs(steps - usual) <= 0.5 * usual).mean() < 0.9:
        return  # rows that come when something happens may be an hour apart
    jumps = np.flatnonzero((np.abs(steps - usual - HOUR) <= max(usual, SECOND)) & (steps > 3 * usual))
    for at in jumps.tolist():
        to_hour = (times[at + 1] % HOUR) / SECOND
        if min(to_hour, 3600 - to_hour) <= max(2 * usual / SECOND, 1):
            when = pd.Timestamp(int(times[at + 1])).isoformat()
            raise DataError(f"{where}: time jumps by one hour at {when}: the start of daylight saving? {remedy}")


def _dates(column: pa.ChunkedArray, form: str | None, zone: str | None, where: str) -> np.ndarray:
    if pa.types.is_time(column.type):
        return _times_of_day(column)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = _parsed(column, form, where)
        if form is not None and not re.search("%[dDjcxsFGUWVyYbB]", form):
            return _times_of_day(column.cast(pa.time64("ns")))
    elif pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("ns"))
    if not pa.types.is_timestamp(column.type):
        raise DataError(f"{where}: {short_repr(column[0].as_py())} is not a date; correct unit in the layout")
    try:
        if column.type.tz is not None or zone is None:
            return np.asarray(column.cast(pa.timestamp("ns", column.type.tz)).cast(pa.int64()).to_numpy())
        plain = pd.DatetimeIndex(column.cast(pa.timestamp("ns")).to_pandas())
    except pa.ArrowInvalid:
        raise DataError(f"{where}: a date is before 1678 or after 2262; correct it") from None
    return _localized(plain, zone, where)


def _localized(plain: pd.DatetimeIndex, zone: str, where: str) -> np.ndarray:
    """Dates of a zone as UTC. An hour that occurs twice is told apart by the order of rows."""
    try:
        known = ZoneInfo(zone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise DataError(f"{where}: there is no time zone {zone!r}; use a name such as Europe/Berlin or UTC") from None
    try:
        try:
            local = plain.tz_localize(known, ambiguous="raise")
        except ValueError:
            local = plain.tz_localize(known, ambiguous="infer")
    except ValueError as error:
        text = " ".join(str(error).split())[:200]
        raise DataError(f"{where}: dates do not fit the zone {zone} ({text}); correct the zone or the dates") from None
    return np.asarray(local.as_unit("ns").asi8)


def _parsed(column: pa.ChunkedArray, form: str | None, where: str) -> pa.ChunkedArray:
    if form is None:
        return _iso(column, where)
    texts = column.to_pandas()
    aware = "%z" in form
    dates = pd.to_datetime(texts, format=form, errors="coerce", utc=aware)
    if dates.isna().any():
        row = int(dates.isna().to_numpy().argmax())
        raise DataError(
            f"{where}: row {row + 1:,} has {short_repr(texts.iloc[row])}, which is not of the form {form!r}"
        )
    index = pd.DatetimeIndex(dates).as_unit("ns")
    return pa.chunked_array([pa.array(index.asi8, pa.timestamp("ns", "UTC" if aware else None))])


def _iso(column: pa.ChunkedArray, where: str) -> pa.ChunkedArray:
    """Dates of ISO 8601 as texts: those that were joined, and those that a file has in two ways."""
    texts = column.cast(pa.string())
    zoned = pc.match_substring_regex(texts, r"\d(Z|[+-]\d\d(:?\d\d)?)\s*$").to_numpy(zero_copy_only=False)
    zoned &= pc.match_substring(texts, ":").to_numpy(zero_copy_only=False)
    if zoned.any() and not zoned.all():
        row = int(np.argmax(zoned != zoned[0]))
        raise DataError(
            f"{where}: row 1 has {short_repr(texts[0].as_py())} and row {row + 1:,} {short_repr(texts[row].as_py())}: "
            "only one of them names its zone; add it to the others"
        )
    try:
        dates = pd.to_datetime(texts.to_pandas(), format="ISO8601", errors="coerce", utc=bool(zoned.all()))
    except (ValueError, OverflowError):
        dates = pd.Series([pd.NaT] * len(texts))
    if dates.isna().any():
        row = int(dates.isna().to_numpy().argmax())
        raise DataError(
            f"{where}: row {row + 1:,} has {short_repr(texts[row].as_py())}, which is not a date of ISO 8601; say its "
            'form in the layout (format: "%d.%m.%Y %H:%M:%S", say)'
        )
    index = pd.DatetimeIndex(dates).as_unit("ns")
    return pa.chunked_array([pa.array(index.asi8, pa.timestamp("ns", "UTC" if zoned.all() else None))])


def _times_of_day(column: pa.ChunkedArray) -> np.ndarray:
    """Times of day; a day is added at each midnight."""
    times = column.cast(pa.time64("ns")).cast(pa.int64()).to_numpy()
    nights = np.concatenate([[0], np.cumsum(np.diff(times) < -_DAY // 2)])
    return np.asarray(times + nights * _DAY)


def _elapsed(column: pa.ChunkedArray, where: str) -> np.ndarray:
    """Hours, minutes and seconds since a start; there may be more than 24 hours."""
    if pa.types.is_time(column.type):
        return column.cast(pa.time64("ns")).cast(pa.int64()).to_numpy()
    texts = pc.utf8_trim_whitespace(column.cast(pa.string())).to_pandas()
    parts = texts.str.extract(ELAPSED.pattern)
    if parts["hours"].isna().any():
        row = int(parts["hours"].isna().to_numpy().argmax())
        if not texts.iloc[row]:
            raise DataError(f"{where}: row {row + 1:,} has no time; remove the row, or correct it")
        raise DataError(
            f"{where}: row {row + 1:,} has {short_repr(texts.iloc[row])}, which is no elapsed time such as 26:15:00; "
            "correct it, or its unit in the layout"
        )
    whole = parts[["hours", "minutes", "seconds"]].astype(np.int64).to_numpy() @ (3600, 60, 1)
    fraction = parts["fraction"].fillna("").str.ljust(9, "0").str[:9].astype(np.int64).to_numpy()
    return np.asarray(whole * SECOND + fraction)


def _is_number(value: object) -> bool:
    try:
        float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False
    return True
