"""A stream as it is drawn: with more steps than pixels, the smallest and the largest value of each pixel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from maestro_dist import rng

MOST_LINES = 7
"""Variates of a modality that are drawn: as many as there are colours."""
_MOST_STEPS = 1 << 18  # that are read together


@dataclass(frozen=True)
class Curves:
    """C columns of V variates, at most `MOST_LINES`.

    time_s     float64 [C]: the middle of each column, in seconds
    width_s    seconds of a column
    low, high  float32 [C, V]: the smallest and the largest value in a column, equal where it is one step; NaN where
               nothing was observed
    missing    float64 [C]: share of missing values in each column, of all variates
    variates   how many there are, with those that are not drawn
    """

    time_s: np.ndarray
    width_s: float
    low: np.ndarray
    high: np.ndarray
    missing: np.ndarray
    variates: int

    @staticmethod
    def of(
        read: Callable[[int, int], np.ndarray], steps: int, rate_hz: float, start_s: float = 0.0, most: int = 700
    ) -> Curves:
        """The curves of a stream of `steps` steps in at most `most` columns.

        read     gives the values [first, end) as float32 [end - first, D]
        start_s  time of the first step
        """
        columns = max(1, min(steps, most))
        edges = np.arange(columns + 1) * steps // columns
        at_once = max(1, _MOST_STEPS * columns // max(1, steps))
        low, high, missing, variates = [], [], [], 0
        for first in range(0, columns, at_once):
            own = edges[first : first + at_once + 1]
            values = read(int(own[0]), int(own[-1]))
            variates, starts = values.shape[1], own[:-1] - own[0]
            low.append(np.fmin.reduceat(values[:, :MOST_LINES], starts, axis=0))
            high.append(np.fmax.reduceat(values[:, :MOST_LINES], starts, axis=0))
            gone = np.add.reduceat(np.isnan(values).sum(axis=1, dtype=np.int64), starts)
            missing.append(gone / (np.diff(own) * variates))
        middle = (edges[:-1] + edges[1:] - 1) / 2
        return Curves(
            time_s=start_s + middle / rate_hz,
            width_s=steps / columns / rate_hz,
            low=np.concatenate(low),
            high=np.concatenate(high),
            missing=np.concatenate(missing),
            variates=variates,
        )

    @staticmethod
    def of_array(values: np.ndarray, rate_hz: float, start_s: float = 0.0, most: int = 700) -> Curves:
        """The curves of an array, float32 [T, D]."""
        return Curves.of(lambda first, end: values[first:end], len(values), rate_hz, start_s, most)

    def runs(self, chosen: np.ndarray) -> list[tuple[float, float]]:
        """Begin and length, in seconds, of each run of columns in `chosen`, bool [C]."""
        marks = np.flatnonzero(np.diff(np.concatenate([[False], chosen, [False]]).astype(np.int8))).reshape(-1, 2)
        begin = self.time_s[0] - self.width_s / 2
        return [(float(begin + a * self.width_s), float((b - a) * self.width_s)) for a, b in marks]


def drawn_at_random(key: int, count: int, most: int) -> np.ndarray:
    """`most` of the numbers below `count`, in a random order that depends on the key only: int64 [<= most]."""
    return np.argsort(rng.bits_np(key, np.arange(count, dtype=np.int64)), kind="stable")[:most]
