"""What the columns of a table may mean: time, label, person, or a measured value. Part of `--infer`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from maestro_dist.data.tables.look_files import Looked
from maestro_dist.data.tables.look_names import GROUP, LABEL, RECORDING, SPLIT, SUBJECT, plain_name
from maestro_dist.data.tables.times import SECOND, nanoseconds
from maestro_dist.errors import DataError

_TIME = {
    "time", "timestamp", "time_stamp", "datetime", "date_time", "date", "ts", "t", "unixtime", "unix_time", "unix",
    "epoch", "seconds", "secs", "sec", "s", "ms", "millis", "milliseconds", "elapsed", "charttime", "utc", "clock",
    "local_time", "zeit", "datum", "zeitstempel", "heure", "fecha", "hora",
}  # fmt: skip
_START = {"start", "begin", "onset", "from", "begins", "starts", "start_time", "begin_time", "starttime", "time_start"}
_END = {"end", "stop", "offset", "to", "until", "finish", "ends", "end_time", "stop_time", "endtime", "time_end"}
_DURATION = {"duration", "length", "dur", "lasts"}
_INDEX = re.compile(
    r"(unnamed_*\d*|index|row|row_?(id|number|num)|sample|frame|seq|sequence|counter|no|nr|__index_level_\d+__)"
)
_TIME_UNITS = {
    "s": "s", "sec": "s", "secs": "s", "seconds": "s", "ms": "ms", "msec": "ms", "millis": "ms", "milliseconds": "ms",
    "us": "us", "µs": "us", "microseconds": "us", "ns": "ns", "nanoseconds": "ns",
}  # fmt: skip
_DATES = (
    "%d.%m.%Y %H:%M:%S", "%d.%m.%Y %H:%M:%S.%f", "%d.%m.%Y %H:%M", "%d/%m/%Y %H:%M:%S", "%d/%m/%Y %H:%M:%S.%f",
    "%d/%m/%Y %H:%M", "%m/%d/%Y %H:%M:%S", "%m/%d/%Y %H:%M:%S.%f", "%m/%d/%Y %H:%M", "%m/%d/%Y %I:%M:%S %p",
    "%d/%m/%Y %I:%M:%S %p", "%m/%d/%y %H:%M:%S", "%d/%m/%y %H:%M:%S", "%m/%d/%y %H:%M", "%d/%m/%y %H:%M",
    "%Y/%m/%d %H:%M:%S", "%Y/%m/%d %H:%M:%S.%f", "%Y/%m/%d %H:%M", "%d-%m-%Y %H:%M:%S", "%d-%m-%Y %H:%M",
    "%Y-%m-%d %H:%M:%S %z", "%Y-%m-%d %H:%M:%S.%f %z", "%Y%m%d %H:%M:%S", "%Y%m%d%H%M%S", "%Y%m%dT%H%M%S",
    "%Y-%m-%d_%H-%M-%S", "%d-%b-%Y %H:%M:%S", "%b %d %Y %H:%M:%S",
)  # fmt: skip
_STEPS_S = (
    0.01,
    0.02,
    0.05,
    0.1,
    0.2,
    0.5,
    1,
    2,
    5,
    10,
    15,
    30,
    60,
    120,
    300,
    600,
    900,
    1800,
    3600,
    7200,
    21600,
    43200,
    86400,
)
_EPOCHS = (("s", 6e8, 5e9), ("ms", 6e11, 5e12), ("us", 6e14, 5e15), ("ns", 6e17, 5e18))


@dataclass(frozen=True)
class TimeGuess:
    """How times are written; as in `TimeColumn`."""

    unit: str
    form: str | None = None
    doubt: str = ""


@dataclass
class Roles:
    """What the columns of one kind of file mean. `left_out`: (column, reason)."""

    time: str | None = None
    start: str | None = None
    end: str | None = None
    duration: str | None = None
    label: str | None = None
    subject: str | None = None
    recording: str | None = None
    group: str | None = None
    split: str | None = None
    numbers: list[str] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)

    @property
    def is_intervals(self) -> bool:
        """Whether the rows are labels over time."""
        return self.start is not None and (self.end or self.duration) is not None and self.label is not None


def roles_of(files: Sequence[Looked], *, facts: bool) -> Roles:
    """The meaning of the columns of files of one kind. `facts`: a table of recordings or people."""
    first = files[0]
    roles = Roles()
    names = {column: plain_name(column)[0] for column in first.columns}
    numeric = {column for column in first.columns if any(file.numbers(column) is not None for file in files)}

    def take(known: set[str], among: Sequence[str] | None = None) -> str | None:
        free = [c for c in (first.columns if among is None else among) if c not in _used(roles)]
        return next((c for c in free if names[c] in known), None)

    roles.start, roles.end, roles.duration = take(_START), take(_END), take(_DURATION)
    roles.label = take(LABEL)
    if not roles.is_intervals:
        roles.start = roles.end = roles.duration = None
    roles.subject, roles.recording = take(SUBJECT), take(RECORDING)
    roles.group, roles.split = take(GROUP), take(SPLIT)
    if not roles.is_intervals and not facts:
        roles.time = take(_TIME) or next(
            (c for c in first.columns if c not in _used(roles) and _is_time_name(names[c])), None
        )
        roles.time = roles.time or _steady(first, [c for c in first.columns if c not in _used(roles)], names)
    for column in first.columns:
        if column in _used(roles):
            continue
        unnamed = column == "c1" and first.dialect.header and first.columns[0] == "c1" and _counts_rows(first)
        if column in numeric and (unnamed or _INDEX.fullmatch(names[column] or "index")):
            roles.left_out.append((column, "a row number"))
        elif column in numeric and not roles.is_intervals:
            roles.numbers.append(column)
        else:
            empty = all(file.table.column(column).null_count == file.rows for file in files)
            roles.left_out.append((column, "it is empty" if empty else "it does not hold numbers"))
    return roles


def _counts_rows(file: Looked) -> bool:
    """Whether the first column has 0, 1, 2, ... or 1, 2, 3, ..."""
    values = file.numbers(file.columns[0])
    return values is not None and values[0] in (0, 1) and bool((np.diff(values) == 1).all())


def _used(roles: Roles) -> set[str | None]:
    return {
        roles.time, roles.start, roles.end, roles.duration, roles.label, roles.subject, roles.recording, roles.group,
        roles.split,
    }  # fmt: skip


def _is_time_name(name: str) -> bool:
    words = name.split("_")
    return bool({"time", "timestamp", "datetime", "date", "datum", "zeit"} & set(words)) or name in _TIME_UNITS


def _steady(file: Looked, columns: Sequence[str], names: dict[str, str]) -> str | None:
    """A first column without such a name whose values rise steadily, but are no row numbers."""
    for column in columns[:1]:
        values = file.numbers(column)
        if values is None or len(values) < 20 or _INDEX.fullmatch(names[column] or "index"):
            return None
        steps = np.diff(values)
        if (steps > 0).all() and not _counts_rows(file) and steps.max() < 100 * np.median(steps):
            return column
    return None


def guess_time(files: Sequence[Looked], column: str) -> TimeGuess:
    """How the times of a column are written."""
    name, unit = plain_name(column)
    known = _TIME_UNITS.get(unit.lower()) or next((_TIME_UNITS[w] for w in name.split("_") if w in _TIME_UNITS), None)
    kind = files[0].table.column(column).type
    if pa.types.is_timestamp(kind) or pa.types.is_time(kind) or pa.types.is_date(kind):
        return TimeGuess("date")
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        return _guess_date(files, column)
    values = next((v for file in files if (v := file.numbers(column)) is not None), np.zeros(1))
    usual = float(np.nanmedian(values))
    epoch = next((unit for unit, low, high in _EPOCHS if low < usual < high), None)
    if epoch is not None:
        return TimeGuess(epoch)
    if known is not None:
        return TimeGuess(known)
    steps = np.diff(values[~np.isnan(values)])
    step = float(np.median(steps[steps > 0])) if (steps > 0).any() else 0.0
    if pa.types.is_integer(kind) and 2 <= step <= 1000 and len(values) > 100:
        return TimeGuess("ms", doubt=f"times are {step:g} apart: milliseconds? else write s")
    return TimeGuess("s")


def _guess_date(files: Sequence[Looked], column: str) -> TimeGuess:
    fits = []
    for form in _DATES:
        try:
            for file in files[:5]:
                nanoseconds(file.table.column(column).slice(0, 2000), "date", form, None, "")
        except DataError:
            continue
        fits.append(form)
    if not fits:
        example = next(iter(files[0].table.texts(column)), "")
        return TimeGuess("date", doubt=f"what form is {example!r}? write format: with %d, %m, %Y, %H, %M, %S")
    doubt = "day first, or month first?" if any("%d/%m" in f for f in fits) and any("%m/%d" in f for f in fits) else ""
    return TimeGuess("date", fits[0], doubt)


@dataclass(frozen=True)
class RateGuess:
    """Steps a second, and how rows are put on them."""

    rate_hz: float
    grid: str = "auto"
    doubt: str = ""


def guess_rate(times: Sequence[np.ndarray]) -> RateGuess:
    """The rate of rows. `times`: int64 ns of the rows of some files that have a value."""
    steps = np.concatenate([np.diff(np.sort(of)) for of in times if len(of) > 1] or [np.zeros(0, np.int64)])
    positive = steps[steps > 0]
    if not len(positive):
        return RateGuess(1.0, doubt="there are too few rows to see the rate")
    usual = float(np.median(positive)) / SECOND
    rate = _nice(1 / usual)
    if len(positive) < 0.5 * len(steps):
        rows = len(steps) / max(1, len(positive))
        return RateGuess(
            rate, "mean", f"about {rows:.0f} rows share one time: finer times, or no time and rate_hz: {rows * rate:g}?"
        )
    regular = float((np.abs(steps - usual * SECOND) <= 0.5 * usual * SECOND).mean())
    if regular < 0.9:
        step = min(_STEPS_S, key=lambda nice: abs(np.log(nice / usual)))
        text = f"irregular times: a step is now {step:g} s, the mean of its rows"
        return RateGuess(float(f"{1 / step:.9g}"), "mean", text)
    return RateGuess(rate)


def _nice(rate_hz: float) -> float:
    """The nearest round rate, if it is nearer than 1 %."""
    for value in (rate_hz, 1 / rate_hz):
        if value >= 0.99:
            near = float(round(value))
            if abs(near - value) <= 0.01 * value:
                return near if value == rate_hz else float(f"{1 / near:.9g}")
    return float(f"{rate_hz:.4g}")


def file_times(file: Looked, column: str, guess: TimeGuess) -> np.ndarray | None:
    """Times as int64 ns; None if they do not have the form that was guessed."""
    try:
        return nanoseconds(file.table.column(column), guess.unit, guess.form, None, file.path)
    except DataError:
        return None
