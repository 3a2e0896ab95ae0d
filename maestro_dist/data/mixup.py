"""Mixup (`augment.mixup`): each training sample is mixed with a partner, another sample of the global batch.

The partner depends on (seed, step) and the samples of the global batch, the share on (seed, step, sample). Neither
depends on ranks or micro-batches. Source: Zhang et al., mixup: Beyond Empirical Risk Minimization, ICLR 2018.
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


def mixing_of(numbers: np.ndarray, alpha: float, *, seed: int, step: int) -> Mixing:
    """The mixing of a complete global batch; `numbers` has its sample numbers, int64 [G]."""
    return Mixing(partners_of(numbers, seed=seed, step=step), shares_of(numbers, alpha, seed=seed, step=step))


def partners_of(numbers: np.ndarray, *, seed: int, step: int) -> np.ndarray:
    """The number of each sample's partner, int64 [G]: the next sample of a ring in random order.

    A sample is its own partner only in a global batch of one sample.
    """
    ring = np.argsort(rng.bits_np(rng.key(seed, "mixup", "ring", step), numbers), kind="stable")
    partners = np.empty_like(numbers)
    partners[ring] = numbers[np.roll(ring, -1)]
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
