"""Symbolic aggregate approximation, word by word."""

from __future__ import annotations

import torch
from torch import Tensor


def symbols(x: Tensor, word: int, alphabet: int) -> Tensor:
    """Symbols int64 [B, W, D], 1..alphabet, of windows x [B, T, D]; T is a multiple of `word`.

    z-scores by window and channel, without an epsilon (a constant channel gets an arbitrary symbol), then one word
    after the other: mean of its steps, and the region of N(0, 1) that it falls into. float64, so that no rounding of
    the mean decides between two regions and the symbols can be compared one by one.
    """
    x = x.double()
    z = (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True, correction=0)
    cuts = torch.special.ndtri(torch.arange(1, alphabet, dtype=torch.float64, device=x.device) / alphabet)
    words = []
    for start in range(0, x.shape[1], word):
        mean = z[:, start : start + word].mean(1)
        words.append(torch.bucketize(mean, cuts, right=True))
    return torch.stack(words, 1) + 1
