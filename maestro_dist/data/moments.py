"""Running mean and standard deviation, from (n, mean, M2) in float64 (Chan, Golub, LeVeque 1983)."""

from __future__ import annotations

from typing import Any

import numpy as np

_MOST_ROWS = 1 << 22
"""Steps that are added at a time: the float64 copies of a longer window would take several times its memory."""


class RunningMoments:
    """Mean and variance of each variate over its observed (not NaN) steps.

    Sums of squares would lose the variance of long streams far from zero.
    """

    def __init__(self, variates: int) -> None:
        self.count = np.zeros(variates, dtype=np.int64)
        self.mean = np.zeros(variates)
        self.m2 = np.zeros(variates)

    def add(self, steps: np.ndarray) -> None:
        """Add steps [T, D]; T may be 0."""
        for start in range(0, max(1, len(steps)), _MOST_ROWS):
            self._add(steps[start : start + _MOST_ROWS])

    def merge(self, other: RunningMoments) -> None:
        """Add the steps of another one. The result depends on the order of merging in its last digits only."""
        total = np.maximum(self.count + other.count, 1)
        shift = other.mean - self.mean
        new = self.count == 0
        mean = self.mean + shift * other.count / total
        m2 = self.m2 + other.m2 + shift**2 * self.count * other.count / total
        self.mean, self.m2 = np.where(new, other.mean, mean), np.where(new, other.m2, m2)
        self.count = self.count + other.count

    def to_json(self) -> list[Any]:
        """Plain JSON from which `from_json` makes exactly the same numbers."""
        return [self.count.tolist(), self.mean.tolist(), self.m2.tolist()]

    @staticmethod
    def from_json(body: list[Any]) -> RunningMoments:
        """The moments that `to_json` has written."""
        moments = RunningMoments(len(body[0]))
        moments.count = np.array(body[0], dtype=np.int64)
        moments.mean, moments.m2 = np.array(body[1], dtype=np.float64), np.array(body[2], dtype=np.float64)
        return moments

    def _add(self, steps: np.ndarray) -> None:
        values = steps.astype(np.float64)
        observed = ~np.isnan(values)
        count = observed.sum(axis=0)
        divisor = np.maximum(count, 1)
        mean = np.where(observed, values, 0.0).sum(axis=0) / divisor
        m2 = (np.where(observed, values - mean, 0.0) ** 2).sum(axis=0)
        total = np.maximum(self.count + count, 1)
        shift = mean - self.mean
        self.mean = self.mean + shift * count / total
        self.m2 = self.m2 + m2 + shift**2 * self.count * count / total
        self.count = self.count + count

    @property
    def std(self) -> np.ndarray:
        """Population standard deviation; 0 if nothing was observed."""
        return np.sqrt(self.m2 / np.maximum(self.count, 1))


def causal_statistics(stream: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Mean and std of `stream` [T, D] over all steps before each of the ascending `ends`: float64 [len(ends), D, 2]."""
    moments = RunningMoments(stream.shape[1])
    result = np.empty((len(ends), stream.shape[1], 2))
    done = 0
    for row, end in enumerate(ends):
        moments.add(stream[done:end])
        done = end
        result[row, :, 0], result[row, :, 1] = moments.mean, moments.std
    return result
