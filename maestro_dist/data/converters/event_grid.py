"""Irregular events on a regular grid of time, and times of tables as whole microseconds."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from maestro_dist.data.converters.folder_options import formats_package
from maestro_dist.data.converters.signals import legal_name, short_name
from maestro_dist.errors import ConfigError, DataError

Reduce = Literal["mean", "last"]
REDUCTIONS: tuple[Reduce, ...] = ("mean", "last")
MINUTE_US = 60_000_000
_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_MOST_US = 1 << 62  # far from the ends of int64, so that differences fit


def grid_steps(hours: float, minutes: float, options: str) -> int:
    """Number of cells of `minutes` in `hours`; `options` are named in the message.

    Raises:
        ConfigError: the hours are not a whole number of cells, or make more than 100,000 cells.
    """
    if not (0 < minutes < float("inf") and 0 < hours < float("inf")):
        raise ConfigError(f"{options}: {hours:g} hours and {minutes:g} minutes; both are positive")
    steps = round(hours * 60 / minutes)
    if not 1 <= steps <= 100_000 or abs(steps * minutes - hours * 60) > 1e-6 or (minutes * MINUTE_US) % 1:
        raise ConfigError(f"{options}: {hours:g} hours are not a whole number of cells of {minutes:g} minutes")
    return steps


def cells_before(times_us: np.ndarray, end_us: int, cell_us: int, steps: int) -> np.ndarray:
    """The cell of each time, int64; negative, or `steps` and more, where it is outside.

    The last cell ends at `end_us`; each cell includes its end and not its start.
    """
    return steps - 1 - (end_us - times_us) // cell_us


def on_grid(
    columns: np.ndarray, cells: np.ndarray, values: np.ndarray, shape: tuple[int, int], reduce: Reduce
) -> np.ndarray:
    """The mean or the last of the values in each cell, float64 `shape` = [columns, steps], NaN in empty cells.

    columns, cells, values   of each event, [n], in the order of time
    """
    size, flat = shape[0] * shape[1], columns * shape[1] + cells
    if reduce == "last":
        grid = np.full(size, np.nan)
        grid[flat] = values  # of several values numpy keeps the last
        return grid.reshape(shape)
    count = np.bincount(flat, minlength=size)
    total = np.bincount(flat, weights=values, minlength=size)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).reshape(shape)


def microseconds(column: Any, where: str, *, later: bool) -> tuple[np.ndarray, np.ndarray, bool]:
    """Times of a pyarrow column as int64 microseconds, which of them are known (bool), and whether they have a zone.

    Times with a zone are counted in UTC. Nanoseconds are rounded up (`later`) or down.

    Raises:
        DataError: the column has no timestamps, or one is out of range.
    """
    pa = formats_package("pyarrow")
    kind = column.type
    if not pa.types.is_timestamp(kind):
        raise DataError(f"{where} is {kind}, not a timestamp; convert it to timestamp[us]")
    known = ~np.asarray(column.is_null().to_numpy(zero_copy_only=False), dtype=bool)
    numbers = column.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    per_second = _PER_SECOND[kind.unit]
    if per_second > 10**6:
        divisor = per_second // 10**6
        return (-(-numbers // divisor) if later else numbers // divisor), known, kind.tz is not None
    factor = 10**6 // per_second
    if len(numbers) and max(int(numbers.max()), -int(numbers.min())) > _MOST_US // factor:
        raise DataError(f"{where} has a time that is out of range; correct it")
    return numbers * factor, known, kind.tz is not None


def code_names(codes: Sequence[str], taken: Sequence[str] = ()) -> dict[str, str]:
    """A legal name of a modality for each code; names that would be equal or too long get a part of their hash."""
    names = {code: legal_name(code, most=200) for code in codes}
    counts: dict[str, int] = dict.fromkeys(taken, 2)
    for name in names.values():
        counts[name] = counts.get(name, 0) + 1
    return {
        code: name if counts[name] == 1 and len(name) <= 40 else short_name(name, code) for code, name in names.items()
    }


def add_grid(parser: argparse.ArgumentParser, *, minutes: float = 60.0) -> None:
    """Add the options of the grid of time."""
    parser.add_argument(
        "--grid_minutes", type=float, default=minutes, metavar="M", help=f"minutes of a cell (default {minutes:g})"
    )
    parser.add_argument(
        "--cell", choices=REDUCTIONS, default=REDUCTIONS[0], help="the mean of a cell's values (default), or the last"
    )
