"""Gaps of a stream: runs of steps at which nothing was observed."""

from __future__ import annotations

import numpy as np

_ROWS = 1 << 20  # steps that are looked at together


def gaps_of(values: np.ndarray) -> np.ndarray:
    """The gaps [first, end) of `values` [T, D], ascending: int64 [G, 2]. In a gap all variates are NaN."""
    parts = [np.isnan(values[at : at + _ROWS]).all(axis=1) for at in range(0, len(values), _ROWS)]
    missing = np.concatenate([np.zeros(1, dtype=bool), *parts, np.zeros(1, dtype=bool)])
    return np.flatnonzero(missing[1:] != missing[:-1]).astype(np.int64).reshape(-1, 2)


class GapCounter:
    """Counts the observed steps of a stream of `steps` steps with these gaps."""

    def __init__(self, steps: int, gaps: np.ndarray) -> None:
        self._steps, self._first = steps, gaps[:, 0]
        self._length = gaps[:, 1] - gaps[:, 0]
        self._before = np.concatenate(([0], np.cumsum(self._length)))  # gap steps before each gap

    def observed(self, first: np.ndarray, end: np.ndarray) -> np.ndarray:
        """Observed steps in each [first, end), int64; what lies outside the stream was not observed."""
        first, end = np.clip(first, 0, self._steps), np.clip(end, 0, self._steps)
        return np.maximum(end - first - (self._gap_steps(end) - self._gap_steps(first)), 0)

    def _gap_steps(self, before: np.ndarray) -> np.ndarray:
        """Steps of gaps before a step."""
        gap = np.searchsorted(self._first, before, side="right") - 1  # the last gap that has begun
        if not len(self._first):
            return np.zeros_like(before)
        inside = np.minimum(before - self._first[gap], self._length[gap])
        return np.where(gap < 0, 0, self._before[gap] + inside)
