"""Mixup (`augment.mixup`): each training sample is mixed with a partner, another sample of the global batch.

The partner is of the same lane (see `order.py`), so that a rank finds it in its own shards. It depends on (seed, step)
and the samples of the lane, the share on (seed, step, sample). Neither depends on ranks or micro-batches.
Source: Zhang et al., mixup: Beyond Empirical Risk Minimization, ICLR 2018.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from maestro_dist import rng
from maestro_dist.data.sample import DecodedSample


@dataclass(frozen=True)
class Mixing:
    """Numbers of the partners of a micro-batch's samples, int64 [B], and the samples' own shares, float32 [B]."""

    partners: np.ndarray
    shares: np.ndarray

    def part(self, taken: slice) -> Mixing:
        """The mixing of some of the samples."""
        return Mixing(self.partners[taken], self.shares[taken])


def mixing_of(numbers: np.ndarray, lanes: np.ndarray, alpha: float, *, seed: int, step: int) -> Mixing:
    """The mixing of complete lanes of a global batch; int64 [B] each: numbers of the samples and of their lanes."""
    return Mixing(partners_of(numbers, lanes, seed=seed, step=step), shares_of(numbers, alpha, seed=seed, step=step))


def partners_of(numbers: np.ndarray, lanes: np.ndarray, *, seed: int, step: int) -> np.ndarray:
    """The number of each sample's partner, int64 [B]: the next sample of its lane's ring, which has a random order.

    With `data.class_balance` a sample may occur several times, and then side by side in the ring: partners are as many
    places apart as the most frequent one occurs in the lane. So a sample is its own partner only where it is more than
    half of the lane, or all of it. `lanes` is ascending.
    """
    if not len(numbers):
        return numbers.copy()
    ring = np.lexsort((rng.bits_np(rng.key(seed, "mixup", "ring", step), numbers), lanes))
    _, first, count = np.unique(lanes, return_index=True, return_counts=True)
    ordered, place = numbers[ring], np.arange(len(ring))
    new = np.concatenate(([True], (ordered[1:] != ordered[:-1]) | (lanes[1:] != lanes[:-1])))
    starts = np.flatnonzero(new)
    times = np.diff(np.append(starts, len(ring)))
    most = np.maximum.reduceat(times, np.searchsorted(starts, first))
    start = np.repeat(first, count)
    following = start + (place - start + np.repeat(most, count)) % np.repeat(count, count)
    partners = np.empty_like(numbers)
    partners[ring] = numbers[ring[following]]
    return partners


def shares_of(numbers: np.ndarray, alpha: float, *, seed: int, step: int) -> np.ndarray:
    """The share of each sample in its mixture, float32 [B], drawn from Beta(alpha, alpha)."""
    from scipy.special import betaincinv

    draws = rng.uniform_np(rng.key(seed, "mixup", "share", step), numbers)
    return np.asarray(betaincinv(alpha, alpha, draws), dtype=np.float32)


def mix(sample: DecodedSample, partner: DecodedSample, share: float) -> DecodedSample:
    """`share` x `sample` + (1 - `share`) x `partner`, with the number, key and target of `sample`.

    Recording statistics are mixed in the same way. A modality, or an observed step, that only one of the two has is
    taken unchanged.
    """
    first, rest = np.float32(share), np.float32(1) - np.float32(share)
    values, recording = {**partner.values, **sample.values}, {**partner.recording, **sample.recording}
    for name in sample.values.keys() & partner.values.keys():
        one, other = sample.values[name], partner.values[name]
        mixed = first * one + rest * other
        values[name] = np.where(np.isnan(one), other, np.where(np.isnan(other), one, mixed))
    for name in sample.recording.keys() & partner.recording.keys():
        recording[name] = first * sample.recording[name] + rest * partner.recording[name]
    return replace(sample, values=values, recording=recording)
