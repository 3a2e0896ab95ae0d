"""Distilling: half the words, inside each modality's segment.

y = convolution(x) + max-pool(x), both of kernel 3, stride 2, padding 1, the *sum* of the two. A missing word is zero to
the convolution and ignored by the maximum; summary tokens pass unchanged.
"""

from __future__ import annotations

from itertools import groupby
from typing import Any

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
        pieces, masks, blocks = [], [], _blocks(layout.parts) if self.sequence.size == 1 else list(layout.parts)
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
        largest: Tensor = LargestOfThree.apply(padded, missing)
        out: Tensor = self.convolution(padded.masked_fill(missing, 0), stride=2) + largest
        return out


class LargestOfThree(torch.autograd.Function):
    """Max-pooling (kernel 3, stride 2) that ignores missing words; 0 where all three are. Ties go to the earliest."""

    @staticmethod
    def forward(ctx: Any, padded: Tensor, missing: Tensor) -> Tensor:
        """Padded [R, W + 2, d], missing bool [R, W + 2, 1] -> [R, ceil(W / 2), d]."""
        lowest = torch.finfo(padded.dtype).min
        left, centre, right = taps(padded.masked_fill(missing, lowest), 3, 2)
        second = centre > left
        largest = torch.where(second, centre, left)
        third = right > largest
        largest = torch.where(third, right, largest)
        none = largest == lowest
        ctx.save_for_backward(second, third, none)
        ctx.shape = padded.shape
        return largest.masked_fill_(none, 0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Gradient of the padded words: all to the word that was largest."""
        second, third, none = ctx.saved_tensors
        gradient = gradients[0].masked_fill(none, 0)
        out = gradient.new_zeros(ctx.shape)
        left, centre, right = taps(out, 3, 2)
        right += gradient * third
        gradient = gradient.masked_fill(third, 0)
        centre += gradient * second
        left += gradient.masked_fill(second, 0)
        return out, None


def _blocks(parts: tuple[Part, ...]) -> list[Part]:
    """Neighbouring parts of equal shape, joined: they go through as one array."""
    grouped = (list(same) for _, same in groupby(parts, key=lambda part: (part.summary, part.words)))
    return [same[0]._replace(rows=sum(part.rows for part in same)) for same in grouped]
