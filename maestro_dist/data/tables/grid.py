"""Rows at their times, put on steps of a fixed rate."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from maestro_dist.data.tables.times import SECOND
from maestro_dist.errors import DataError

_ON_GRID = 0.1
"""Rows this near to a step, in steps, are on it."""
_BRIDGE = 1.5
"""Neighbours at most this many steps apart are interpolated between."""
_RATE_OFF = 0.2
_FEW = 5
"""So few rows do not show their rate."""
_MOST_EMPTY, _FREE_STEPS = 100, 1_000_000


@dataclass(frozen=True)
class Stream:
    """A modality of one recording: values float32 [T, D], NaN where nothing was measured, from `start` in ns."""

    start: int
    values: np.ndarray


@dataclass(frozen=True)
class Steps:
    """The steps of a modality: their rate; the rule `grid` as in `TableModality`; and the moment `zero` (ns), from
    which mean and last count them (the others count from the first row)."""

    rate_hz: float
    grid: str
    zero: int


def on_grid(times: np.ndarray, values: np.ndarray, steps: Steps, where: str, notes: Counter[str]) -> Stream | None:
    """Rows on the steps of a rate.

    times   int64 ns [rows], in order
    values  float [rows, D]; NaN is missing
    notes   counts of what was done to rows
    Returns None if nothing was measured.

    Raises:
        DataError: the times are not regular, and `grid` does not say what to do; or they reach too far.
    """
    rate_hz, grid, zero = steps.rate_hz, steps.grid, steps.zero
    there = ~np.isnan(values).all(axis=1)
    times, values = times[there], values[there]
    if not len(times):
        return None
    times, values = _without_doubles(times, values, grid, where, notes)
    start = zero if grid in ("mean", "last") else int(times[0])
    place = (times - start) * (rate_hz / SECOND)
    _check_extent(place, len(times), rate_hz, where)
    if grid == "auto":
        grid = _fitting(place, times, rate_hz, where)
    if grid in ("mean", "last"):
        first = int(np.floor(place[0]))
        rows = np.floor(place).astype(np.int64) - first
        found = _means(rows, values) if grid == "mean" else _lasts(rows, values)
        return Stream(start + round(first * SECOND / rate_hz), found)
    return Stream(start, _linear(place, values) if grid == "linear" else _nearest(place, values, rate_hz, where, notes))


def _without_doubles(
    times: np.ndarray, values: np.ndarray, grid: str, where: str, notes: Counter[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Rows that occur twice count once; rows of one time with other values need a rule."""
    same = np.flatnonzero(np.diff(times) == 0)
    if not len(same) or grid in ("mean", "last"):
        return times, values
    equal = ((values[same] == values[same + 1]) | (np.isnan(values[same]) & np.isnan(values[same + 1]))).all(axis=1)
    if not equal.all():
        raise DataError(
            f"{where}: {int((~equal).sum()):,} rows have the time of the row before, but other values; correct their "
            "times, or say which counts (grid: mean, or last)"
        )
    notes["rows that occur twice, counted once"] += len(same)
    keep = np.ones(len(times), dtype=bool)
    keep[same + 1] = False
    return times[keep], values[keep]


def _check_extent(place: np.ndarray, rows: int, rate_hz: float, where: str) -> None:
    steps = float(place[-1] - min(place[0], 0.0)) + 1
    if steps > _FREE_STEPS + _MOST_EMPTY * rows:
        widest = int(np.argmax(np.diff(place, prepend=place[0])))
        raise DataError(
            f"{where}: {rows:,} rows would take {steps:,.0f} steps at {rate_hz:g} Hz; between row {widest:,} and the "
            f"next lie {float(place[widest] - place[widest - 1]) / rate_hz:,.0f} s: correct that time, its unit, or "
            "rate_hz"
        )


def _fitting(place: np.ndarray, times: np.ndarray, rate_hz: float, where: str) -> str:
    """nearest or linear; place: steps from the start."""
    on_steps = bool((np.abs(place - np.round(place)) <= _ON_GRID).all())
    steps = np.diff(place)
    if on_steps and len(steps) < _FEW:
        return "nearest"
    usual = float(np.median(steps))
    if abs(usual - 1) > _RATE_OFF:
        seconds = float(np.median(np.diff(times))) / SECOND
        hint = " (is the unit of its time right?)" if usual > 100 or usual < 0.01 else ""
        raise DataError(
            f"{where}: rows are {seconds:g} s apart, which is {1 / seconds:g} Hz and not {rate_hz:g} Hz{hint}; correct "
            "rate_hz, or say grid: mean"
        )
    if on_steps:
        return "nearest"
    regular = float((np.abs(steps - usual) <= 0.5 * usual).mean())
    if regular < 0.9:
        raise DataError(
            f"{where}: times are irregular (only {regular:.0%} of rows follow the one before after about "
            f"{usual / rate_hz:g} s); say what a step is: grid: mean, or last"
        )
    return "linear"


def _nearest(place: np.ndarray, values: np.ndarray, rate_hz: float, where: str, notes: Counter[str]) -> np.ndarray:
    rows = np.round(place).astype(np.int64)
    shared = int((np.diff(rows) == 0).sum())
    if shared > 0.01 * len(rows):
        raise DataError(
            f"{where}: {shared:,} of {len(rows):,} rows fall on the same step as another at {rate_hz:g} Hz; correct "
            "rate_hz, or say grid: mean"
        )
    if shared:
        notes["rows that fall on the step of the row before, left out"] += shared
    found = np.full((int(rows[-1]) + 1, values.shape[1]), np.nan, dtype=np.float32)
    found[rows[::-1]] = values[::-1]  # of two rows on a step the first one counts
    return found


def _linear(place: np.ndarray, values: np.ndarray) -> np.ndarray:
    at = np.arange(int(np.floor(place[-1] + 1e-9)) + 1, dtype=np.float64)
    right = np.clip(np.searchsorted(place, at, side="left"), 1, max(1, len(place) - 1))
    if len(place) == 1:
        return values.astype(np.float32)
    left = right - 1
    width = place[right] - place[left]
    share = np.clip((at - place[left]) / width, 0.0, 1.0)[:, None]
    before, after = values[left], values[right]
    between = before + share * (after - before)
    between = np.where(share == 0, before, np.where(share == 1, after, between))
    exact = np.minimum(np.abs(at - place[left]), np.abs(at - place[right])) <= 1e-6
    between[(width > _BRIDGE) & ~exact] = np.nan
    return between.astype(np.float32)


def _means(rows: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Means of the measured values of each step."""
    found = np.empty((int(rows[-1]) + 1, values.shape[1]), dtype=np.float32)
    for column, of in enumerate(values.T):
        there = ~np.isnan(of)
        count = np.bincount(rows[there], minlength=len(found))
        total = np.bincount(rows[there], weights=of[there], minlength=len(found))
        with np.errstate(invalid="ignore", divide="ignore"):
            found[:, column] = total / count
    return found


def _lasts(rows: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The last measured value of each step."""
    found = np.full((int(rows[-1]) + 1, values.shape[1]), np.nan, dtype=np.float32)
    for column, of in enumerate(values.T):
        there = np.flatnonzero(~np.isnan(of))
        found[rows[there], column] = of[there]  # the last assignment counts
    return found
