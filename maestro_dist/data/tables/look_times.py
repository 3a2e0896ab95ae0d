"""How the times of a table are written, and how often its rows come. Part of `--infer`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from maestro_dist.data.tables.look_files import Looked
from maestro_dist.data.tables.look_names import plain_name
from maestro_dist.data.tables.times import ELAPSED, SECOND, nanoseconds
from maestro_dist.errors import DataError

TIME_UNITS = {
    "s": "s", "sec": "s", "secs": "s", "seconds": "s", "ms": "ms", "msec": "ms", "millis": "ms", "milliseconds": "ms",
    "min": "min", "mins": "min", "minute": "min", "minutes": "min", "h": "h", "hour": "h", "hours": "h",
    "us": "us", "µs": "us", "microseconds": "us", "ns": "ns", "nanoseconds": "ns",
}  # fmt: skip
_DATES = (
    "%d.%m.%Y %H:%M:%S", "%d.%m.%Y %H:%M:%S.%f", "%d.%m.%Y %H:%M", "%d.%m.%y %H:%M:%S", "%d.%m.%y %H:%M",
    "%d.%m.%Y %H:%M:%S,%f", "%d.%m.%Y, %H:%M:%S",
    *(f"{day} {clock}" for clock in ("%H:%M:%S", "%H:%M:%S.%f", "%H:%M", "%I:%M:%S %p", "%I:%M %p", "%I:%M:%S.%f %p")
      for day in ("%d/%m/%Y", "%m/%d/%Y", "%d/%m/%y", "%m/%d/%y", "%d-%m-%Y", "%m-%d-%Y", "%Y/%m/%d")),
    "%m/%d/%Y, %I:%M:%S %p", "%d/%m/%Y, %H:%M:%S", "%Y-%m-%d %I:%M:%S %p", "%Y-%m-%d %H:%M:%S,%f",
    "%Y-%m-%d %H:%M:%S %z", "%Y-%m-%d %H:%M:%S.%f %z", "%Y%m%d %H:%M:%S", "%Y%m%d%H%M%S", "%Y%m%dT%H%M%S",
    "%Y-%m-%d %H:%M:%S:%f", "%Y-%m-%d_%H-%M-%S",
    "%d-%b-%Y %H:%M:%S", "%d-%b-%y %H:%M:%S", "%b %d %Y %H:%M:%S", "%Y:%m:%d %H:%M:%S",
    "%H:%M:%S.%f", "%H:%M:%S,%f", "%H:%M:%S", "%H:%M", "%I:%M:%S %p",
    "%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%Y/%m/%d", "%d-%m-%Y", "%m-%d-%Y", "%d-%b-%Y",
)  # fmt: skip
_PLAIN = re.compile(r"[-+]?\d{1,7}([.,]\d+)?")
_DATE = re.compile(r".*\d:\d\d.*|\d{8}T?\d{6}")
_DAY = re.compile(r"\d{4}[-./]\d{1,2}[-./]\d{1,2}|\d{1,2}[-./](\d{1,2}|[A-Za-z]{3})[-./](\d{4}|\d{2})")
_CLOCK = re.compile(r"\d{1,2}:\d{2}(:\d{2}([.,]\d+)?)?( ?[AaPp][Mm])?")
_STEPS_S = (
    0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 21600, 43200, 86400,
)  # fmt: skip
_DAYS = ((30_000, 60_000), (700_000, 760_000))
"""Today, in days since 1900 (spreadsheets), or since year 0 (Matlab)."""
_EPOCHS = (("s", 6e8, 5e9), ("ms", 6e11, 5e12), ("us", 6e14, 5e15), ("ns", 6e17, 5e18))


@dataclass(frozen=True)
class TimeGuess:
    """How times are written; as in `TimeColumn`."""

    unit: str | float
    form: str | None = None
    doubt: str = ""


def time_cells(file: Looked, columns: Sequence[str]) -> pa.ChunkedArray:
    """The cells with the time of each row; of several columns, joined."""
    return file.table.joined(columns)


def are_dates(files: Sequence[Looked], column: str) -> bool:
    """Whether a column holds dates with times, in a form that is known."""
    kind = files[0].table.column(column).type
    if pa.types.is_timestamp(kind):
        return True
    if not pa.types.is_string(kind) or not _all_match(files[:3], column, _DATE):
        return False
    return bool(_fits([file.table.column(column).slice(0, 100) for file in files[:3]]))


def is_day(files: Sequence[Looked], column: str) -> bool:
    """Whether a column holds days without a time."""
    return pa.types.is_date(files[0].table.column(column).type) or _all_match(files, column, _DAY)


def is_clock(files: Sequence[Looked], column: str) -> bool:
    """Whether a column holds times of day."""
    return pa.types.is_time(files[0].table.column(column).type) or _all_match(files, column, _CLOCK)


def is_elapsed(files: Sequence[Looked], column: str) -> bool:
    """Whether a column holds hours, minutes and seconds, and in one file at least 24 hours or more."""
    cells = [file.table.column(column) for file in files if pa.types.is_string(file.table.column(column).type)]
    if not all(ELAPSED.fullmatch(text.strip()) for of in cells for text in of.slice(0, 20).to_pylist() if text):
        return False
    texts = [text.strip() for of in cells for text in of.to_pylist() if text]
    found = [ELAPSED.fullmatch(text) for text in texts]
    return all(found) and any(int(of["hours"]) >= 24 for of in found if of)


def _all_match(files: Sequence[Looked], column: str, form: re.Pattern[str]) -> bool:
    if not pa.types.is_string(files[0].table.column(column).type):
        return False
    texts = [text for file in files for text in file.table.column(column).slice(0, 100).to_pylist() if text]
    return bool(texts) and all(form.fullmatch(str(text).strip()) for text in texts)


def in_epoch(files: Sequence[Looked], column: str) -> bool:
    """Whether the numbers of a column are moments of our time, counted from 1970."""
    found = [values for file in files if (values := file.numbers(column)) is not None]
    return bool(found) and any(
        all(low < np.nanmin(values) and np.nanmax(values) < high for values in found) for _, low, high in _EPOCHS
    )


def is_absolute(files: Sequence[Looked], columns: Sequence[str]) -> bool:
    """Whether times are dates, or moments of our time, and not counted from some start."""
    if len(columns) > 1:
        return True
    kind = files[0].table.column(columns[0]).type
    if pa.types.is_string(kind):
        return are_dates(files, columns[0]) and not is_clock(files, columns[0])
    return pa.types.is_timestamp(kind) or in_epoch(files, columns[0])


def guess_time(files: Sequence[Looked], columns: Sequence[str]) -> TimeGuess:
    """How the times of a column are written; of several columns, joined."""
    if len(columns) > 1:
        return _guess_date(files, columns)
    column = columns[0]
    if is_elapsed(files, column):
        return TimeGuess("elapsed")
    name, unit = plain_name(column)
    unit = unit or files[0].units.get(column, "")
    known = TIME_UNITS.get(unit.lower()) or next((TIME_UNITS[w] for w in name.split("_") if w in TIME_UNITS), None)
    kind = files[0].table.column(column).type
    if pa.types.is_timestamp(kind) or pa.types.is_time(kind) or pa.types.is_date(kind):
        return TimeGuess("date")
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        texts = [text for text in files[0].table.column(column).slice(0, 100).to_pylist() if text]
        numbers = sum(bool(_PLAIN.fullmatch(str(text).strip())) for text in texts)
        return TimeGuess(known or "s") if numbers > 0.5 * len(texts) else _guess_date(files, columns)
    values = next((v for file in files if (v := file.numbers(column)) is not None), np.zeros(1))
    usual = float(np.nanmedian(values))
    epoch = next((unit for unit, low, high in _EPOCHS if low < usual < high), None)
    if epoch is not None:
        same = len(np.unique(values)) <= 3 < 0.05 * len(values)
        return TimeGuess(
            epoch, doubt=f"most times are {values[0]:g}: were digits lost in a spreadsheet?" if same else ""
        )
    if known is not None:
        return TimeGuess(known)
    if any(low < usual < high for low, high in _DAYS) and np.nanmax(values) - np.nanmin(values) < 3660:
        steps = np.diff(np.unique(values[~np.isnan(values)]))
        if len(steps) and np.median(steps) < 1:
            if usual < 100_000:
                return TimeGuess(86_400.0, doubt=f"times are about {usual:.0f}: days, as in spreadsheets?")
            return TimeGuess(
                "s", doubt=f"times are about {usual:.0f}: days of Matlab? subtract 719529, and unit: 86400"
            )
    steps = np.diff(values[~np.isnan(values)])
    step = float(np.median(steps[steps > 0])) if (steps > 0).any() else 0.0
    if pa.types.is_integer(kind) and 2 <= step <= 1000 and len(values) > 100:
        return TimeGuess("ms", doubt=f"times are {step:g} apart: milliseconds? else write s")
    return TimeGuess("s")


def _guess_date(files: Sequence[Looked], columns: Sequence[str]) -> TimeGuess:
    cells = [time_cells(file, columns).slice(0, 2000) for file in files[:5]]
    fits = _fits(cells)
    if not fits:
        example = next((text for text in cells[0].to_pylist() if text), "")
        try:
            for of in cells:
                nanoseconds(of, "date", None, None, "times")
        except DataError as error:
            reason = str(error).partition(": ")[2].partition("; say its form")[0]
            return TimeGuess(
                "date", doubt=f"what form is {example!r}? {reason}; write format: with %d, %m, %Y, %H, %M, %S"
            )
        return TimeGuess("date")
    # read rightly, times lie together; with AM and PM, the month is first in most files
    order = sorted(fits, key=lambda form: (fits[form], form is not None and "%p" in form and form.startswith("%d")))
    best = order[0]
    swapped = next((f for f in order[1:] if f is not None and best is not None and _swapped(f) == best), None)
    if swapped is None or fits[swapped] > 5 * fits[best]:
        return TimeGuess("date", best)
    return TimeGuess("date", best, "day first, or month first?")


def _swapped(form: str) -> str:
    """The form with day and month in the other order."""
    return form.replace("%d", "%!").replace("%m", "%d").replace("%!", "%m")


def _fits(cells: Sequence[pa.ChunkedArray]) -> dict[str | None, int]:
    """The forms that all cells have, each with the time from first to last (ns); None: ISO 8601."""
    fits: dict[str | None, int] = {}
    for form in (None, *_DATES):
        try:
            times = [nanoseconds(of, "date", form, None, "") for of in cells]
        except DataError:
            continue
        fits[form] = sum(int(of.max() - of.min()) for of in times if len(of))
        if form is None:
            break
    return fits


@dataclass(frozen=True)
class RateGuess:
    """Steps a second, and how rows are put on them."""

    rate_hz: float
    grid: str = "auto"
    doubt: str = ""


def guess_rate(times: Sequence[np.ndarray]) -> RateGuess:
    """The rate of rows. `times`: int64 ns of the rows of some files that have a value."""
    all_steps = [np.diff(np.sort(of)) for of in times if len(of) > 1]
    steps = np.concatenate(all_steps or [np.zeros(0, np.int64)])
    positive = steps[steps > 0]
    if not len(positive):
        return RateGuess(1.0, doubt="there are too few rows to see the rate")
    usual = float(np.median(positive)) / SECOND
    near = positive[np.abs(positive - usual * SECOND) <= 0.5 * usual * SECOND]
    rate = _nice(1 / usual, SECOND / float(near.mean()) if len(near) else 1 / usual)
    if len(positive) < 0.5 * len(steps):
        rows = len(steps) / max(1, len(positive))
        return RateGuess(
            rate, "mean", f"about {rows:.0f} rows share one time: finer times, or no time and rate_hz: {rows * rate:g}?"
        )
    if len(positive) < 0.99 * len(steps):
        text = f"{1 - len(positive) / len(steps):.0%} of rows have the time of the row before: a step is now their mean"
        return RateGuess(rate, "mean", text)
    mixed = _mixed_rates(all_steps)
    if len(mixed) > 1:
        shown = ", ".join(f"{of:g}" for of in mixed)
        return RateGuess(
            mixed[0], "mean", f"files have different rates ({shown} Hz): a step is now the mean of its rows"
        )
    regular = float((np.abs(steps - usual * SECOND) <= 0.5 * usual * SECOND).mean())
    if regular < 0.9 and not all(_on_steps(np.sort(of), rate) for of in times):
        step = min(_STEPS_S, key=lambda nice: abs(np.log(nice / usual)))
        text = f"irregular times: a step is now {step:g} s, the mean of its rows"
        return RateGuess(float(f"{1 / step:.9g}"), "mean", text)
    return RateGuess(rate)


def _on_steps(times: np.ndarray, rate_hz: float) -> bool:
    """Whether times lie on steps of a rate, however many steps are missing."""
    places = (times - times[:1]) * (rate_hz / SECOND)
    return bool((np.abs(places - np.round(places)) <= 0.1).all())


def _mixed_rates(all_steps: Sequence[np.ndarray]) -> list[float]:
    """The rates of files with regular rows, if the rates differ by more than a tenth."""
    rates = set()
    for steps in all_steps:
        usual = float(np.median(steps))
        if len(steps) < 20 or usual <= 0 or (np.abs(steps - usual) <= 0.5 * usual).mean() < 0.9:
            continue
        rates.add(_nice(SECOND / usual, SECOND / float(steps[np.abs(steps - usual) <= 0.5 * usual].mean())))
    found = sorted(rates)
    return found if found and found[-1] > 1.1 * found[0] else found[:1]


def _nice(rate_hz: float, mean_hz: float) -> float:
    """The nearest round rate, if it is nearer than 1 % to the usual rate and 0.3 % to the mean rate.

    Else the mean rate: times in whole ms are 8 ms apart most of the time at 130 Hz.
    """
    for value, mean in ((rate_hz, mean_hz), (1 / rate_hz, 1 / mean_hz)):
        for near in (float(round(value)), float(round(mean))):
            if near >= 1 and abs(near - value) <= 0.07 * value and abs(near - mean) <= 0.003 * mean:
                return near if value == rate_hz else float(f"{1 / near:.9g}")
    return float(f"{mean_hz:.4g}")


def time_problem(file: Looked, columns: Sequence[str], guess: TimeGuess) -> str:
    """Why the times of a file cannot be read; empty if they can."""
    try:
        nanoseconds(time_cells(file, columns), guess.unit, guess.form, None, file.path)
    except DataError as error:
        return str(error)
    return ""


def file_times(file: Looked, columns: Sequence[str], guess: TimeGuess) -> np.ndarray | None:
    """Times as int64 ns; None if they do not have the form that was guessed."""
    try:
        return nanoseconds(time_cells(file, columns), guess.unit, guess.form, None, file.path)
    except DataError:
        return None
