"""The global order: a pure function of (seed, epoch, sizes of the shards), whatever the number of ranks or readers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from maestro_dist import rng


def epoch_order(seed: int, epoch: int, shard_samples: Sequence[int], window: int) -> np.ndarray:
    """Sample numbers (in manifest order) of one epoch, as int64 [N]: a permutation of 0..N-1.

    Shards are permuted over the whole split; then `window` of them at a time have their samples permuted among each
    other, so a reader has few shards open and the order is still random over whole shards.
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


def steps_per_epoch(samples: int, global_batch: int) -> int:
    """Optimizer steps of one epoch; the last may be of fewer samples."""
    return -(-samples // global_batch)
