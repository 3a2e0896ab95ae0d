"""Which training samples `data.label_share` keeps: those with the smallest hash of (seed, sample number).

The choice is the same on every rank, and a larger share contains all samples of a smaller share.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from maestro_dist import rng

_CHUNK = 1 << 20  # samples whose hashes are in memory at the same time
_BINS = 1 << 16


def labelled_count(samples: int, share: float) -> int:
    """Number of training samples that `data.label_share` keeps: rounded, at least one."""
    return max(1, round(share * samples)) if samples else 0


class KeptSamples:
    """The training samples of a run: all, or the share that is kept. Its memory does not grow with their number.

    samples  number of kept samples
    counts   int64 [S]: number of kept samples of each shard
    """

    def __init__(self, seed: int, shard_samples: Sequence[int], share: float = 1.0) -> None:
        self.counts = np.asarray(shard_samples, dtype=np.int64)
        self._first = np.concatenate(([0], np.cumsum(self.counts)))
        self._key, self._limit = rng.key(seed, "label_share"), None
        self.samples = samples = int(self._first[-1])
        if share < 1 and samples:
            self._limit = _smallest(self._key, samples, labelled_count(samples, share))
            self.counts = np.array([len(self.numbers(shard)) for shard in range(len(self.counts))], dtype=np.int64)
            self.samples = int(self.counts.sum())

    def epoch(self, number: int) -> KeptSamples:
        """The samples of an epoch: in all the same."""
        return self

    def part(self, shard: int, first: int, end: int) -> np.ndarray:
        """The sample numbers of a shard's kept samples [first, end), ascending."""
        return self.numbers(shard)[first:end]

    def numbers(self, shard: int) -> np.ndarray:
        """The sample numbers (in manifest order) of a shard's kept samples, ascending."""
        numbers = np.arange(self._first[shard], self._first[shard + 1], dtype=np.int64)
        return numbers if self._limit is None else numbers[rng.bits_np(self._key, numbers) <= self._limit]


def _hashes(key: int, samples: int) -> Iterator[np.ndarray]:
    for first in range(0, samples, _CHUNK):
        yield rng.bits_np(key, np.arange(first, min(first + _CHUNK, samples), dtype=np.int64))


def _smallest(key: int, samples: int, count: int) -> np.uint64:
    """The largest of the `count` smallest hashes. First finds the bin that contains it, by its leading 16 bits."""
    shift = np.uint64(48)
    histogram = np.zeros(_BINS, dtype=np.int64)
    for hashes in _hashes(key, samples):
        histogram += np.bincount((hashes >> shift).astype(np.int64), minlength=_BINS)
    until = np.cumsum(histogram)
    target = int(np.searchsorted(until, count))
    within = np.concatenate([h[(h >> shift) == np.uint64(target)] for h in _hashes(key, samples)])
    place = count - (int(until[target]) - int(histogram[target])) - 1
    return np.uint64(np.sort(within)[place])
