"""Predictions over time: what the heads see of each part of a window.

A part's tokens are those that overlap with it in time. Their mean is weighted by the overlap, so that each modality
counts by how long it was observed in the part, whatever its rate.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from maestro_dist.model.context import SequenceContext
from maestro_dist.model.layout import ModalityTokens
from maestro_dist.types import HeadShape, Modality

_SAME = 1e-9
"""Share of a part that counts as nothing: times are rounded."""
_KEPT = 256
"""Most overlaps that are kept."""


def overlaps(first: int, count: int, token_s: float, shape: HeadShape) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pairs of a token and a part of the window that overlap: token and part int64 [P], share of the part [P].

    Tokens `first` to `first + count - 1` of `token_s` seconds each. There are at most about as many pairs as tokens and
    parts together.
    """
    edges = (first + np.arange(count + 1)) * (token_s / shape.every_s)  # in parts
    low = np.clip(np.floor(edges[:-1] + _SAME), 0, shape.steps).astype(np.int64)
    high = np.clip(np.ceil(edges[1:] - _SAME), 0, shape.steps).astype(np.int64)
    pairs = np.maximum(high - low, 0)
    token = np.repeat(np.arange(count), pairs)
    part = np.arange(len(token)) - np.repeat(np.cumsum(pairs) - pairs, pairs) + low[token]
    share = np.minimum(edges[token + 1], part + 1) - np.maximum(edges[token], part)
    return token, part, share


class PartMeans:
    """Means of the observed tokens of each part of a window. No parameters."""

    def __init__(
        self, shape: HeadShape, modalities: Sequence[Modality], words: Sequence[int], sequence: SequenceContext
    ) -> None:
        """`words`: steps of a word of each modality."""
        self.shape, self.sequence = shape, sequence
        # What has no time, such as the age, is known in every part, whatever the length of its window was when packed.
        least = [shape.steps * shape.every_s if m.always and m.steps == 1 else 0.0 for m in modalities]
        own = [word / modality.rate_hz for word, modality in zip(words, modalities, strict=True)]
        self._seconds = [max(pair) for pair in zip(own, least, strict=True)]
        self._known: dict[tuple[int, int, int, int, torch.device], tuple[Tensor, Tensor, Tensor]] = {}

    def __call__(
        self,
        x: Tensor,
        flat_mask: Tensor,
        parts: Sequence[ModalityTokens],
        stride: int,
        groups: Sequence[Tensor],
        count: int,
    ) -> Tensor:
        """Flat tokens x [N, d] of `parts`, which are observed where `flat_mask` bool [N] -> means [count, S, d].

        stride  words of a token
        groups  groups[j] int64 [R_j]: which of the `count` samples (or other groups) each row of modality j belongs to
        """
        steps = self.shape.steps
        tokens, places, shares, offset = [], [], [], 0
        for j, (part, group) in enumerate(zip(parts, groups, strict=True)):
            token, step, share = self._overlaps(j, part, stride, x.device)
            starts = torch.arange(part.rows, device=x.device) * part.length + (offset + part.summary)
            tokens.append((starts[:, None] + token).flatten())
            places.append((group[:, None] * steps + step).flatten())
            shares.append(share.expand(part.rows, -1).flatten())
            offset += part.rows * part.length
        token, place = torch.cat(tokens), torch.cat(places)
        weight = (torch.cat(shares) * flat_mask.index_select(0, token)).to(x.dtype)[:, None]
        joined = torch.cat((x.index_select(0, token) * weight, weight), 1)
        sums = joined.new_zeros(count * steps, joined.shape[1]).index_add(0, place, joined)
        total = self.sequence.all_reduce_sum(sums)
        seen = total[:, -1:]
        # a part without an observed token has the mean 0; dividing by a tiny number would make infinite gradients
        return (total[:, :-1] / torch.where(seen > 0, seen, 1)).view(count, steps, x.shape[1])

    def _overlaps(
        self, j: int, part: ModalityTokens, stride: int, device: torch.device
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`overlaps` of a modality's tokens on this rank. Some are kept, because the host waits for each copy."""
        key = j, part.first_word, part.words, stride, device
        if key in self._known:
            return self._known[key]
        token, step, share = overlaps(part.first_word, part.words, stride * self._seconds[j], self.shape)
        arrays = token, step, share.astype(np.float32)
        first, second, third = (torch.from_numpy(array).to(device) for array in arrays)
        if len(self._known) < _KEPT:
            self._known[key] = first, second, third
        return first, second, third
