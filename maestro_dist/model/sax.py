"""Missingness-aware SAX: z-scores, word means and symbols of raw windows.

Letters: R rows (samples that have the modality), T steps, W words of w steps, D variates. A step that is not finite was
not observed. Statistics are float64; no gradient flows through this file.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from maestro_dist.model.context import SequenceContext

_CONSTANT = 1e-13
"""A spread below this share of the mean's size is rounding: the channel is constant (float32 resolves 6e-8)."""


class Moments(NamedTuple):
    """Count n, mean and M2 = sum of squared deviations over the observed steps, float64 [R, D]."""

    n: Tensor
    mean: Tensor
    m2: Tensor


class Words(NamedTuple):
    """What the embeddings are made from.

    symbols  int64 [R, W, D]: 1..alpha, 0 = missing
    z        [R, W, w, D]: z-scored samples, 0 where not observed
    steps    bool [R, W, w, D]: which samples were observed
    words    bool [R, W]: which words have an observed sample
    """

    symbols: Tensor
    z: Tensor
    steps: Tensor
    words: Tensor


def cuts(alphabet: int) -> Tensor:
    """The alpha - 1 cuts of N(0, 1) into equiprobable regions, float64."""
    return torch.special.ndtri(torch.arange(1, alphabet, dtype=torch.float64) / alphabet)


def split_words(x: Tensor, word: int) -> Tensor:
    """Cut [R, T, D] into words [R, W, w, D]; an odd tail is filled up with steps that were not observed (NaN)."""
    words = -(-x.shape[1] // word)
    padded = F.pad(x, (0, 0, 0, words * word - x.shape[1]), value=float("nan"))
    return padded.view(x.shape[0], words, word, x.shape[2])


def moments(x: Tensor, observed: Tensor, sequence: SequenceContext) -> Moments:
    """Moments of [R, W, w, D] over all steps, by two passes (never from sums of squares)."""
    values = torch.where(observed, x, 0).double()
    count, total = sequence.sum(torch.stack((observed.sum((1, 2)).double(), values.sum((1, 2)))))
    mean = total / count.clamp_min(1)
    deviation = torch.where(observed, values - mean[:, None, None], 0)
    return Moments(count, mean, sequence.sum(deviation.square().sum((1, 2))))


def window_reference(window: Moments) -> tuple[Tensor, Tensor]:
    """Mean and divisor of `normalize: window`; the divisor of a constant channel is infinite, so its z is 0."""
    std = (window.m2 / window.n.clamp_min(1)).sqrt()
    return window.mean, torch.where(std > _CONSTANT * window.mean.abs(), std, torch.inf)


def given_reference(mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and divisor from statistics [.., D] of a recording or data set, float64.

    A channel that was constant there (std 0) has no unit of its own: z is the plain difference from its mean, so an
    unchanged value is 0, "in the middle", and a changed one stays visible and finite.
    """
    mean, std = mean.double(), std.double()
    return mean, torch.where(std > _CONSTANT * mean.abs(), std, 1.0)


def z_score(x: Tensor, observed: Tensor, mean: Tensor, divisor: Tensor) -> Tensor:
    """Float64 z-scores of [R, W, w, D] for references [R, D] or [D]; 0 where not observed."""
    mean, divisor = (value.unsqueeze(-2).unsqueeze(-2) for value in (mean, divisor))
    return torch.where(observed, (x.double() - mean) / divisor, 0)


def symbolise(x: Tensor, observed: Tensor, mean: Tensor, divisor: Tensor, edges: Tensor) -> Tensor:
    """Symbols int64 [R, W, D] of the words' means over their observed steps; z at a cut goes up, 0 is missing."""
    count = observed.sum(2)
    average = torch.where(observed, x, 0).double().sum(2) / count.clamp_min(1)
    z = (average - mean.unsqueeze(-2)) / divisor.unsqueeze(-2)
    return torch.where(count > 0, torch.bucketize(z, edges, right=True) + 1, 0)
