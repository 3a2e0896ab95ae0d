"""Mixup (`augment.mixup`): a training sample and its partner, another one of the global batch, are mixed.

Zhang et al., mixup: Beyond Empirical Risk Minimization, ICLR 2018. Who is whose partner depends on (seed, step) and on
which samples the global batch holds; the share on (seed, step, sample): neither on ranks nor on micro-batches.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from maestro_dist import rng
from maestro_dist.data.sample import Sample


@dataclass(frozen=True)
class Mixing:
    """Whom the samples of a micro-batch are mixed with: int64 [B], and how much is of their own: float32 [B]."""

    partners: np.ndarray
    shares: np.ndarray

    def part(self, taken: slice) -> Mixing:
        """The same for some of the samples."""
        return Mixing(self.partners[taken], self.shares[taken])


def mixing_of(whole: np.ndarray, alpha: float, *, seed: int, step: int) -> Mixing:
    """For each sample of a global batch, by their numbers int64 [G]."""
    return Mixing(partners_of(whole, seed=seed, step=step), shares_of(whole, alpha, seed=seed, step=step))


def partners_of(whole: np.ndarray, *, seed: int, step: int) -> np.ndarray:
    """For each sample number of a global batch, int64 [G], that of its partner; its own only where it is alone.

    The next one of a ring in drawn order.
    """
    ring = np.argsort(rng.bits_np(rng.key(seed, "mixup", "ring", step), whole), kind="stable")
    partners = np.empty_like(whole)
    partners[ring] = whole[np.roll(ring, -1)]
    return partners


def shares_of(numbers: np.ndarray, alpha: float, *, seed: int, step: int) -> np.ndarray:
    """The share of each sample in its mixture, float32 [B], of Beta(alpha, alpha)."""
    from scipy.special import betaincinv

    draws = rng.uniform_np(rng.key(seed, "mixup", "share", step), numbers)
    return np.asarray(betaincinv(alpha, alpha, draws), dtype=np.float32)


def mix(own: Sample, partner: Sample, share: float) -> Sample:
    """`share` of one sample and the rest of another, with the first one's number, name and target.

    Statistics of recordings are mixed as the values are. What only one of them has (a modality, or a step that was
    observed) is taken as it is.
    """
    first, rest = np.float32(share), np.float32(1) - np.float32(share)
    values, recording = {**partner.values, **own.values}, {**partner.recording, **own.recording}
    for name in own.values.keys() & partner.values.keys():
        one, other = own.values[name], partner.values[name]
        mixed = first * one + rest * other
        values[name] = np.where(np.isnan(one), other, np.where(np.isnan(other), one, mixed))
    for name in own.recording.keys() & partner.recording.keys():
        recording[name] = first * own.recording[name] + rest * partner.recording[name]
    return replace(own, values=values, recording=recording)
