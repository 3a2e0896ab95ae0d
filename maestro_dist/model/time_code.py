"""The time of a word as sinusoids."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from maestro_dist.types import Modality

_CACHED_CODES, _CACHED_WORDS = 256, 1024
"""Largest number of time codes in the cache, and largest number of words of a cached code."""


class TimeCode:
    """Sinusoids of the time from the window's start to a word's centre, in seconds.

    The d/2 periods grow geometrically from twice the shortest word to four times the longest window. No parameters.
    """

    def __init__(self, width: int, modalities: Sequence[Modality], words: Sequence[int]) -> None:
        self.width = width
        shortest = min(word / modality.rate_hz for word, modality in zip(words, modalities, strict=True))
        longest = max(modality.seconds for modality in modalities)
        pairs = -(-width // 2)
        low, high = math.log(2 * shortest), math.log(max(4 * longest, 2 * shortest))
        self._cache: dict[Any, Tensor] = {}
        self.frequencies = [
            2 * math.pi * math.exp(-(low + (high - low) * pair / max(1, pairs - 1))) for pair in range(pairs)
        ]
        self._frequencies_on: dict[torch.device, Tensor] = {}

    def __call__(self, seconds: Tensor, dtype: torch.dtype) -> Tensor:
        """Times float64 [L] -> codes [L, d]: sines, then cosines."""
        device = seconds.device
        if device not in self._frequencies_on:  # copied once, because the host waits for each copy
            self._frequencies_on[device] = torch.tensor(self.frequencies, dtype=torch.float64, device=device)
        angles = seconds[:, None] * self._frequencies_on[device]
        # Cast before the halves are concatenated: this saves three arrays of the size of the codes.
        return torch.cat((angles.sin().to(dtype), angles.cos_().to(dtype)), 1)[:, : self.width]

    def of_words(
        self, index: tuple[int, int, int], word: int, rate_hz: float, dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        """Codes [n, d] of the centres of n words; `index`: n, number of the first word, distance between two."""
        key = (index, word, rate_hz, dtype, device)
        if key in self._cache:
            return self._cache[key]
        words, first, step = index
        number = torch.arange(first, first + words, dtype=torch.float64, device=device)
        code = self((number * (step * word) + word / 2) / rate_hz, dtype)
        if words <= _CACHED_WORDS and len(self._cache) < _CACHED_CODES and not code.is_inference():
            self._cache[key] = code
        return code
