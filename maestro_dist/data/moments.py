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

    @staticmethod
    def of(count: np.ndarray, mean: np.ndarray, m2: np.ndarray) -> RunningMoments:
        """Moments that were computed elsewhere, [D] each."""
        moments = RunningMoments(len(count))
        moments.count, moments.mean, moments.m2 = count.astype(np.int64), mean, m2
        return moments

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


BLOCK = 256
"""Steps from one entry of `prefix_moments` to the next."""

_MOST_BLOCKS = 1 << 12  # that are added at a time


def prefix_moments(stream: np.ndarray) -> np.ndarray:
    """Count, mean and M2 of `stream` [T, D] over its first `BLOCK`, 2 `BLOCK`, ... steps: float64 [K, D, 3]."""
    stream = np.asarray(stream, dtype=np.float32)  # as it is stored
    blocks = len(stream) // BLOCK
    result = np.empty((blocks, stream.shape[1], 3))
    total = RunningMoments(stream.shape[1])
    for start in range(0, blocks, _MOST_BLOCKS):
        end = min(start + _MOST_BLOCKS, blocks)
        shape = (end - start, BLOCK, stream.shape[1])
        own = _moments_of_blocks(stream[start * BLOCK : end * BLOCK].reshape(shape))
        for block in range(start, end):
            count, mean, m2 = own[block - start].T
            total.merge(RunningMoments.of(count, mean, m2))
            result[block] = np.stack([total.count, total.mean, total.m2], axis=-1)
    return result


def statistics_at(before: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """Mean and std of streams up to some step: float64 [R, D, 2].

    before  float64 [R, D, 3]: what `prefix_moments` has for the whole blocks before that step; zeros for none
    rest    float32 [R, BLOCK, D]: the steps after those blocks, then NaN
    """
    count, mean, m2 = np.moveaxis(before, -1, 0)
    more, rest_mean, rest_m2 = np.moveaxis(_moments_of_blocks(rest), -1, 0)
    total = np.maximum(count + more, 1)
    shift = rest_mean - mean
    mean = np.where(count == 0, rest_mean, mean + shift * more / total)
    m2 = np.where(count == 0, rest_m2, m2 + rest_m2 + shift**2 * count * more / total)
    return np.stack([mean, np.sqrt(m2 / total)], axis=-1)


def _moments_of_blocks(blocks: np.ndarray) -> np.ndarray:
    """Count, mean and M2 of each block: float64 [R, D, 3] of [R, BLOCK, D]. The same for any R."""
    values = blocks.astype(np.float64)
    observed = ~np.isnan(values)
    count = observed.sum(axis=1)
    divisor = np.maximum(count, 1)
    mean = np.where(observed, values, 0.0).sum(axis=1) / divisor
    m2 = (np.where(observed, values - mean[:, None], 0.0) ** 2).sum(axis=1)
    return np.stack([count, mean, m2], axis=-1)


def causal_statistics(stream: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Mean and std of `stream` [T, D] over all steps before each of the `ends`: float64 [len(ends), D, 2]."""
    stream, ends = np.asarray(stream, dtype=np.float32), np.asarray(ends, dtype=np.int64)
    prefix = np.concatenate([np.zeros((1, stream.shape[1], 3)), prefix_moments(stream)])
    result = np.empty((len(ends), stream.shape[1], 2))
    for start in range(0, len(ends), _MOST_BLOCKS):
        some = ends[start : start + _MOST_BLOCKS]
        whole = some // BLOCK
        steps = whole[:, None] * BLOCK + np.arange(BLOCK)
        rest = stream[np.minimum(steps, len(stream) - 1)]
        rest[steps >= some[:, None]] = np.nan
        result[start : start + _MOST_BLOCKS] = statistics_at(prefix[whole], rest)
    return result
