"""Symbolic aggregate approximation, word by word: for one channel at a time, or all windows and channels at once."""

from __future__ import annotations

from bisect import bisect_right

import numpy as np
import torch
from torch import Tensor


def symbols_by_word(x: Tensor, word: int, alphabet: int) -> Tensor:
    """The same as `symbols`, one word of one channel of one window after the other: a mean, a look-up, a store each.

    Each look-up is a search in the list of cuts, which is faster than `searchsorted` and than comparing with all cuts.
    """
    cuts = _cuts(alphabet).tolist()
    out = torch.empty(x.shape[0], x.shape[1] // word, x.shape[2], dtype=torch.int64, device=x.device)
    for window in range(out.shape[0]):
        for channel in range(out.shape[2]):
            series = x[window, :, channel].double()
            z = (series - series.mean()) / series.std(correction=0)
            for number in range(out.shape[1]):
                mean = z[number * word : (number + 1) * word].mean().item()
                out[window, number, channel] = bisect_right(cuts, mean) + 1
    return out


def symbols_by_word_numpy(x: Tensor, word: int, alphabet: int) -> Tensor:
    """The same loop in numpy, whose calls cost less than those of torch; x is on the CPU."""
    cuts = _cuts(alphabet).numpy()
    out = np.empty((x.shape[0], x.shape[1] // word, x.shape[2]), dtype=np.int64)
    for window in range(out.shape[0]):
        for channel in range(out.shape[2]):
            series = x[window, :, channel].double().numpy()
            z = (series - series.mean()) / series.std()
            for number in range(out.shape[1]):
                mean = z[number * word : (number + 1) * word].mean()
                out[window, number, channel] = np.searchsorted(cuts, mean, side="right") + 1
    return torch.from_numpy(out)


def symbols(x: Tensor, word: int, alphabet: int) -> Tensor:
    """Symbols int64 [B, W, D], 1..alphabet, of windows x [B, T, D]; T is a multiple of `word`.

    z-scores by window and channel, without an epsilon; then for one word after the other the mean of its steps and its
    region of N(0, 1), by comparison with every cut: the NaN of a constant channel becomes symbol 1. In float64, so
    that rounding of the mean does not change a symbol.
    """
    x = x.double()
    z = (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True, correction=0)
    cuts = _cuts(alphabet).to(x.device)
    out = torch.empty(x.shape[0], x.shape[1] // word, x.shape[2], dtype=torch.int64, device=x.device)
    for number in range(out.shape[1]):
        mean = z[:, number * word : (number + 1) * word].mean(1)
        out[:, number] = (mean[..., None] >= cuts).sum(-1) + 1
    return out


def _cuts(alphabet: int) -> Tensor:
    """The bounds float64 [alphabet - 1] of N(0, 1)'s equally likely regions."""
    return torch.special.ndtri(torch.arange(1, alphabet, dtype=torch.float64) / alphabet)
