"""The time of a word as sinusoids."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from maestro_dist.types import Modality

_KEPT, _KEPT_WORDS = 256, 1024
"""Time codes that are cached instead of computed in each step: how many, and of how many words at most."""


class TimeCode:
    """Sinusoids of the time from the window's start to a word's centre, in seconds.

    The d/2 periods run geometrically from twice the finest word to four times the longest window. Fixed: no parameters.
    """

    def __init__(self, width: int, modalities: Sequence[Modality], words: Sequence[int]) -> None:
        self.width = width
        finest = min(word / modality.rate_hz for word, modality in zip(words, modalities, strict=True))
        longest = max(modality.seconds for modality in modalities)
        pairs = -(-width // 2)
        low, high = math.log(2 * finest), math.log(max(4 * longest, 2 * finest))
        self._known: dict[Any, Tensor] = {}
        self.frequencies = [
            2 * math.pi * math.exp(-(low + (high - low) * pair / max(1, pairs - 1))) for pair in range(pairs)
        ]
        self._frequencies_on: dict[torch.device, Tensor] = {}

    def __call__(self, seconds: Tensor, dtype: torch.dtype) -> Tensor:
        """Times float64 [L] -> codes [L, d]: sines, then cosines."""
        device = seconds.device
        if device not in self._frequencies_on:  # copied once: the host would wait for each copy
            self._frequencies_on[device] = torch.tensor(self.frequencies, dtype=torch.float64, device=device)
        angles = seconds[:, None] * self._frequencies_on[device]
        # Cast before the halves are concatenated: this saves three arrays of the size of the codes.
        return torch.cat((angles.sin().to(dtype), angles.cos_().to(dtype)), 1)[:, : self.width]

    def of_words(
        self, index: tuple[int, int, int], word: int, rate_hz: float, dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        """Codes [n, d] of the centres of n words; `index`: n, number of the first word, distance between two."""
        key = (index, word, rate_hz, dtype, device)
        if key in self._known:
            return self._known[key]
        words, first, step = index
        number = torch.arange(first, first + words, dtype=torch.float64, device=device)
        code = self((number * (step * word) + word / 2) / rate_hz, dtype)
        if words <= _KEPT_WORDS and len(self._known) < _KEPT and not code.is_inference():
            self._known[key] = code
        return code
