"""Symbolic aggregate approximation, word by word."""

from __future__ import annotations

import torch
from torch import Tensor


def symbols(x: Tensor, word: int, alphabet: int) -> Tensor:
    """Symbols int64 [B, W, D], 1..alphabet, of windows x [B, T, D]; T is a multiple of `word`.

    z-scores by window and channel, without an epsilon, then one word after the other: the mean of its steps, and its
    region of N(0, 1) by comparing it with every cut, so that the NaN of a constant channel becomes symbol 1. float64:
    no rounding of the mean decides between two regions, and the symbols can be compared one by one.
    """
    x = x.double()
    z = (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True, correction=0)
    cuts = torch.special.ndtri(torch.arange(1, alphabet, dtype=torch.float64, device=x.device) / alphabet)
    out = torch.empty(x.shape[0], x.shape[1] // word, x.shape[2], dtype=torch.int64, device=x.device)
    for number in range(out.shape[1]):
        mean = z[:, number * word : (number + 1) * word].mean(1)
        out[:, number] = (mean[..., None] >= cuts).sum(-1) + 1
    return out
