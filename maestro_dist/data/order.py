"""The order of an epoch: it depends on (seed, epoch, shard sizes) only, not on the number of ranks or readers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from maestro_dist import rng


def epoch_order(seed: int, epoch: int, shard_samples: Sequence[int], window: int) -> np.ndarray:
    """Sample numbers (in manifest order) of one epoch, int64 [N]: a permutation of 0 ... N-1.

    The shards of the split are permuted. Then the samples of each `window` consecutive shards are permuted together, so
    that a reader needs few open shards at a time.
    """
    sizes = np.asarray(shard_samples, dtype=np.int64)
    starts = np.concatenate(([0], np.cumsum(sizes)))[: len(sizes)]
    shards = _permuted(rng.key(seed, "order", "shard", epoch), np.arange(len(sizes), dtype=np.int64))
    sample_key = rng.key(seed, "order", "sample", epoch)
    parts = [np.empty(0, dtype=np.int64)]
    for first in range(0, len(shards), window):
        members = [np.arange(starts[s], starts[s] + sizes[s], dtype=np.int64) for s in shards[first : first + window]]
        parts.append(_permuted(sample_key, np.concatenate(members)))
    return np.concatenate(parts)


def _permuted(key: int, numbers: np.ndarray) -> np.ndarray:
    return numbers[np.argsort(rng.bits_np(key, numbers), kind="stable")]


def labelled_count(samples: int, share: float) -> int:
    """Number of training samples that `data.label_share` keeps: rounded, at least one."""
    return max(1, round(share * samples)) if samples else 0


def labelled_mask(seed: int, samples: int, share: float) -> np.ndarray:
    """bool [N]: which training samples (in manifest order) `data.label_share` keeps.

    It keeps the samples with the smallest hash of (seed, sample number): the same on every rank. A larger share
    contains all samples of a smaller share.
    """
    hashes = rng.bits_np(rng.key(seed, "label_share"), np.arange(samples, dtype=np.int64))
    chosen = np.zeros(samples, dtype=bool)
    chosen[np.argsort(hashes, kind="stable")[: labelled_count(samples, share)]] = True
    return chosen


def steps_per_epoch(samples: int, global_batch: int) -> int:
    """Optimizer steps of one epoch; the last global batch may be smaller."""
    return -(-samples // global_batch)
