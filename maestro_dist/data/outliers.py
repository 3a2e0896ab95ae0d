"""Find outliers with a histogram of values by sign and power of two, in one pass and little memory.

A placeholder for "no value" (-9999) or a broken reading (1e30) in a few samples can make the standard deviation a
thousand times too large; then all other values look equal to the model. Only values that are separated from the bulk
of all values by a wide empty gap are outliers. Heavy tails and rare bursts have no such gap; they are signal.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import numpy as np

_MIDDLE = 255  # the bin of 0; negative numbers have lower bins, the largest of them the lowest
_BINS = 2 * _MIDDLE + 1
_MANTISSA_BITS = 23  # of a float32 number; 8 exponent bits and the sign follow

_AT_ONCE = 1 << 14  # values that are collected before they are counted, to save calls for small windows

_MOST_ROWS = 1 << 20  # steps that are counted at a time: their copies take several times their memory

_FEW = 0.1
"""The bulk starts as the values between the 10 % and the 90 % quantile, and then grows."""

_SMALL_GAP, _GAP = 20.0, 1000.0
"""Empty gap, in widths of the bulk, beyond which values are outliers. The small gap is enough for one repeated number
(a placeholder), and for values that make the standard deviation more than `_HUGE` times larger."""

_INFLATION, _HUGE = 10.0, 1e4
"""Outliers are reported if they make the standard deviation at least `_INFLATION` times larger."""


class Bulk(NamedTuple):
    """Smallest and largest value of the bulk, its mean and its (population) standard deviation."""

    low: float
    high: float
    mean: float
    std: float


class FarValues(NamedTuple):
    """Values far outside a bulk: in how many windows, how many values, and the value with the largest magnitude."""

    windows: int
    numbers: int
    largest: float


_STATISTICS = ("count", "mean", "m2", "low", "high")


class ValueHistogram:
    """Count, mean, M2, minimum and maximum of each bin of each variate, and the bins of each window's extremes."""

    def __init__(self, variates: int) -> None:
        shape = (variates, _BINS)
        self.count = np.zeros(shape, dtype=np.int64)
        self.mean, self.m2 = np.zeros(shape), np.zeros(shape)
        self.low, self.high = np.full(shape, np.inf), np.full(shape, -np.inf)
        self.windows: list[Counter[tuple[int, int]]] = [Counter() for _ in range(variates)]
        self._waiting: list[np.ndarray] = []
        self._size = 0

    def add(self, window: np.ndarray) -> None:
        """Add a window float32 [T, D]; NaN is ignored."""
        self._size += window.size
        full = self._size >= max(_AT_ONCE, self.count.size)
        self._waiting.append(window if full else window.copy())  # the caller may reuse its memory
        if full:
            self._count()

    def bulk(self, variate: int) -> Bulk | None:
        """The values of a variate without outliers; None if there are no values."""
        self._count()
        count = self.count[variate]
        if not count.any():
            return None
        ranks = np.cumsum(count)
        edge = int(_FEW * ranks[-1])
        first, last = np.searchsorted(ranks, [edge, ranks[-1] - edge - 1], side="right")
        return self._bulk_around(variate, self.low[variate, first], self.high[variate, last])

    def far_values(self, variate: int, bulk: Bulk) -> FarValues | None:
        """Values of a variate that are far outside `bulk`, which may come from another split.

        None if there are none, or if they hardly change the standard deviation.
        """
        self._count()
        grown = self._bulk_around(variate, bulk.low, bulk.high)
        filled = self.count[variate] > 0
        low, high = self.low[variate], self.high[variate]
        outside = filled & ((low < grown.low) | (high > grown.high))
        if not outside.any() or self._statistics(variate, filled).std < _INFLATION * bulk.std:
            return None
        ends = np.concatenate((low[outside], high[outside]))
        inside = np.flatnonzero(filled & ~outside)
        first, last = (inside[0], inside[-1]) if len(inside) else (_BINS, -1)
        windows = sum(n for (a, b), n in self.windows[variate].items() if a < first or b > last)
        return FarValues(windows, int(self.count[variate, outside].sum()), float(ends[np.abs(ends).argmax()]))

    def _bulk_around(self, variate: int, low: float, high: float) -> Bulk:
        """The bulk that grows from the range `low` ... `high`."""
        near = self._grow(variate, low, high, _SMALL_GAP)
        all_values = self._statistics(variate, self.count[variate] > 0)
        return near if all_values.std >= _HUGE * near.std > 0 else self._grow(variate, low, high, _GAP)

    def _grow(self, variate: int, low: float, high: float, gap: float) -> Bulk:
        """The range, extended bin by bin, nearest first, while the gap is at most `gap` times its width."""
        filled = np.flatnonzero(self.count[variate])
        lows, highs = self.low[variate, filled], self.high[variate, filled]
        repeated = (lows == highs) & (self.count[variate, filled] > 1)
        allowed = np.where(repeated, _SMALL_GAP, gap)
        while True:
            gaps = np.maximum(low - highs, lows - high)  # negative inside
            outside = (lows < low) | (highs > high)
            # a range of equal values has no width to compare with: its neighbours are rare signal
            near = outside & ((gaps <= allowed * (high - low)) | (low == high))
            if not near.any():
                break
            place = np.where(near, gaps, np.inf).argmin()
            low, high = min(low, lows[place]), max(high, highs[place])
        inside = np.zeros(_BINS, dtype=bool)
        inside[filled[(lows >= low) & (highs <= high)]] = True
        _, _, mean, std = self._statistics(variate, inside)
        return Bulk(float(low), float(high), mean, std)

    def _statistics(self, variate: int, bins: np.ndarray) -> Bulk:
        """Statistics of the values in some bins, bool [_BINS]."""
        count, mean = self.count[variate, bins], self.mean[variate, bins]
        total = max(1, int(count.sum()))
        centre = float((count * mean).sum() / total)
        m2 = float((self.m2[variate, bins] + count * (mean - centre) ** 2).sum())
        low, high = self.low[variate, bins].min(initial=np.inf), self.high[variate, bins].max(initial=-np.inf)
        return Bulk(float(low), float(high), centre, float(np.sqrt(m2 / total)))

    def _count(self) -> None:
        """Count the collected windows."""
        windows, self._waiting, self._size = self._waiting, [], 0
        if not windows:
            return
        for variate, ends in enumerate(_ends(windows)):
            self.windows[variate].update(ends)
        values = windows[0] if len(windows) == 1 else np.concatenate(windows)
        for start in range(0, len(values), _MOST_ROWS):
            self._count_steps(values[start : start + _MOST_ROWS])

    def _count_steps(self, values: np.ndarray) -> None:
        """Count steps [T, D]."""
        shape, variates = self.count.shape, len(self.count)
        observed = ~np.isnan(values)
        place = (_bin_of(values) + np.arange(variates) * _BINS)[observed]
        values = values[observed].astype(np.float64)
        count = np.bincount(place, minlength=self.count.size)
        divisor = np.maximum(count, 1)
        mean = np.bincount(place, values, minlength=self.count.size) / divisor
        m2 = np.bincount(place, (values - mean[place]) ** 2, minlength=self.count.size)
        self._merge(count.reshape(shape), mean.reshape(shape), m2.reshape(shape))
        np.minimum.at(self.low.reshape(-1), place, values)
        np.maximum.at(self.high.reshape(-1), place, values)

    def _merge(self, count: np.ndarray, mean: np.ndarray, m2: np.ndarray) -> None:
        """Add statistics of more values, [variates, _BINS] each."""
        total = np.maximum(self.count + count, 1)
        shift = mean - self.mean
        self.mean = self.mean + shift * count / total
        self.m2 = self.m2 + m2 + shift**2 * self.count * count / total
        self.count = self.count + count

    def to_json(self) -> list[dict[str, Any]]:
        """Plain JSON, for each variate, from which `merge_json` makes exactly the same numbers."""
        self._count()
        return [
            {
                "bins": (bins := np.flatnonzero(self.count[variate])).tolist(),
                "windows": sorted([*ends, number] for ends, number in self.windows[variate].items()),
                **{name: getattr(self, name)[variate, bins].tolist() for name in _STATISTICS},
            }
            for variate in range(len(self.count))
        ]

    def merge_json(self, body: list[dict[str, Any]]) -> None:
        """Add the values of a histogram that `to_json` has written."""
        self._count()
        count, mean, m2 = np.zeros_like(self.count), np.zeros_like(self.mean), np.zeros_like(self.m2)
        for variate, row in enumerate(body):
            bins = row["bins"]
            count[variate, bins], mean[variate, bins], m2[variate, bins] = row["count"], row["mean"], row["m2"]
            self.low[variate, bins] = np.minimum(self.low[variate, bins], row["low"])
            self.high[variate, bins] = np.maximum(self.high[variate, bins], row["high"])
            self.windows[variate].update({(first, last): number for first, last, number in row["windows"]})
        new = self.count == 0
        self._merge(count, mean, m2)
        self.mean = np.where(new, mean, self.mean)  # exactly


_BIN_OF = np.concatenate((_MIDDLE + np.arange(256), _MIDDLE - np.arange(256)))
"""Number of the bin, by sign and exponent bits."""


def _bin_of(values: np.ndarray) -> np.ndarray:
    """Number of the bin of each float32 value, int64; undefined for NaN."""
    return _BIN_OF[np.ascontiguousarray(values, dtype=np.float32).view(np.uint32) >> _MANTISSA_BITS]


def _ends(windows: list[np.ndarray]) -> list[list[tuple[int, int]]]:
    """For each variate, the bins of the smallest and the largest value of each window with values."""
    lows = np.stack([np.fmin.reduce(window, axis=0) for window in windows])
    highs = np.stack([np.fmax.reduce(window, axis=0) for window in windows])
    observed = ~np.isnan(lows)
    first, last = _bin_of(lows), _bin_of(highs)
    return [
        list(zip(first[observed[:, v], v].tolist(), last[observed[:, v], v].tolist(), strict=True))
        for v in range(lows.shape[1])
    ]
