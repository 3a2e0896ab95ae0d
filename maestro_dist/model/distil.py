"""Distilling: half the words, inside each modality's segment.

y = convolution(x) + max-pool(x), both of kernel 3, stride 2, padding 1, the *sum* of the two. A missing word is zero to
the convolution and ignored by the maximum; summary tokens pass unchanged.
"""

from __future__ import annotations

from itertools import groupby

import torch
from torch import Tensor, nn

from maestro_dist.model.context import SequenceContext
from maestro_dist.model.layers import Windowed, taps
from maestro_dist.model.layout import Layout, Part


class Distil(nn.Module):
    """One convolution, shared by the modalities that the layer sees."""

    def __init__(self, width: int, sequence: SequenceContext) -> None:
        super().__init__()
        self.sequence = sequence
        self.convolution = Windowed(width, width, 3)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """Tokens [N, d] of one depth -> those of the next."""
        pieces, masks, blocks = [], [], _blocks(layout.parts)
        sizes = [part.rows * part.length for part in blocks]
        for part, tokens, mask in zip(blocks, x.split(sizes), layout.flat_mask.split(sizes), strict=True):
            pieces.append(tokens.view(part.rows, part.length, x.shape[1]))
            masks.append(mask.view(part.rows, part.length))
        out = [
            torch.cat((piece[:, : part.summary], self._halve(piece[:, part.summary :], mask[:, part.summary :])), 1)
            if part.summary
            else self._halve(piece, mask)
            for part, piece, mask in zip(blocks, pieces, masks, strict=True)
        ]
        flat = [piece.reshape(-1, x.shape[1]) for piece in out]
        return flat[0] if len(flat) == 1 else torch.cat(flat)

    def _halve(self, x: Tensor, mask: Tensor) -> Tensor:
        """Words [R, W, d] with mask [R, W] -> [R, ceil(W / 2), d]."""
        padded = self.sequence.halo(x, 1)
        missing = ~self.sequence.halo(mask[..., None], 1)
        lowest = torch.finfo(x.dtype).min
        left, centre, right = taps(padded.masked_fill(missing, lowest), 3, 2)
        largest = torch.maximum(torch.maximum(left, right), centre)
        largest = largest.masked_fill(largest == lowest, 0)
        out: Tensor = self.convolution(padded.masked_fill(missing, 0), stride=2) + largest
        return out


def _blocks(parts: tuple[Part, ...]) -> list[Part]:
    """Neighbouring parts of equal shape, joined: they go through as one array."""
    grouped = (list(same) for _, same in groupby(parts, key=lambda part: (part.summary, part.words)))
    return [same[0]._replace(rows=sum(part.rows for part in same)) for same in grouped]
