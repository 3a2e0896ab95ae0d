"""Downsampling: it halves the words, inside each modality's segment. (Informer calls this distilling.)

y = convolution(x) + max-pool(x), the *sum* of the two, both with kernel 3, stride 2, padding 1. A missing word is zero
for the convolution and ignored by the maximum. Summary tokens pass unchanged.
"""

from __future__ import annotations

from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maestro_dist.model.context import SequenceContext
from maestro_dist.model.layers import Windowed
from maestro_dist.model.layout import ModalityTokens, TokenLayout
from maestro_dist.model.tokenwise import blocks, compute_type


class Downsample(nn.Module):
    """Halves the words. One convolution is shared by the modalities of the layer."""

    def __init__(self, width: int, sequence: SequenceContext) -> None:
        super().__init__()
        self.sequence = sequence
        self.convolution = Windowed(width, width, 3)

    def forward(self, x: Tensor, layout: TokenLayout) -> Tensor:
        """Tokens [N, d] of one depth -> tokens of the next."""
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
        before, short = None, x.shape[1] % 2
        if self.sequence.size > 1:
            padded, known = self.sequence.halo_exchange(x, 1), self.sequence.halo_exchange(mask[..., None], 1)[..., 0]
            before, x = padded[:, :1], padded[:, 1 : padded.shape[1] - 1 + short]
            mask = known[:, : known.shape[1] - 1 + short]
        else:
            x = F.pad(x, (0, 0, 0, 1)) if short else x
            mask = F.pad(mask, (1, short))
        dtype = compute_type(x)
        weight, bias = self.convolution.weight.to(dtype), self.convolution.bias.to(dtype)
        out: Tensor = _Downsampling.apply(x.contiguous(), before, mask, weight, bias)
        return out


class _Downsampling(torch.autograd.Function):
    """Convolution plus maximum over (left, centre, right) = words (2o - 1, 2o, 2o + 1), without missing words.

    Centre and right are neighbours in memory: their part of the convolution is one matrix product without copies. Left
    is the right word of the previous output. If values are equal, the earliest word is the maximum. The maximum is 0
    where all three are missing. Only the words are stored for the backward.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, before: Tensor | None, mask: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Words x [R, 2 O, d] -> [R, O, d].

        before [R, 1, d] is the word before the first, or None; mask bool [R, 1 + 2 O] says which words are observed,
        `before` included; weight [d, 3 d] has the taps from left to right; bias [d].
        """
        # If nothing is missing, two passes are saved. Only a CPU is asked: the host would wait for a GPU.
        whole = x.device.type == "cpu" and bool(mask[:, 1:].all()) and (before is None or bool(mask[:, 0].all()))
        if not whole:
            x = x * mask[:, 1:, None]
            before = None if before is None else before * mask[:, :1, None]
        ctx.save_for_backward(x, before, None if whole else mask, weight)
        out = x.new_empty(x.shape[0], x.shape[1] // 2, len(weight))
        for rows in blocks(x, x.shape[1] * x.shape[2], None):
            _halve(out[rows], x[rows], _at(before, rows), None if whole else mask[rows], weight, bias)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, before, weight and bias."""
        x, before, mask, weight = ctx.saved_tensors
        pull = gradients[0].contiguous()
        own = torch.empty_like(x)
        ahead = None if before is None else torch.zeros_like(before)
        kind = torch.promote_types(weight.dtype, torch.float32)
        weights, biases = weight.new_zeros(weight.shape, dtype=kind), weight.new_zeros(len(weight), dtype=kind)
        for rows in blocks(x, x.shape[1] * x.shape[2], None):
            _pull_maximum(own[rows], _at(ahead, rows), pull[rows], x[rows], _at(before, rows), _at(mask, rows))
            _pull_product(own[rows], _at(ahead, rows), weights, pull[rows], x[rows], _at(before, rows), weight)
            biases += pull[rows].sum((0, 1))
        if mask is not None:
            own *= mask[:, 1:, None]
            ahead = None if ahead is None else ahead * mask[:, :1, None]
        return own, ahead, None, weights.to(weight.dtype), biases.to(weight.dtype)


def _at(x: Tensor | None, rows: slice) -> Tensor | None:
    return None if x is None else x[rows]


def _halve(out: Tensor, x: Tensor, before: Tensor | None, mask: Tensor | None, weight: Tensor, bias: Tensor) -> None:
    """Fill out [R, O, d]; x and before are 0 where nothing was observed."""
    width, dtype = x.shape[2], weight.dtype
    if not out.numel():
        return
    largest, _, _ = _maximum(x, before, mask)
    if mask is not None:
        largest *= (mask[:, :-1:2] | mask[:, 1::2] | mask[:, 2::2])[..., None]
    convolved = torch.addmm(bias, x.view(-1, 2 * width).to(dtype), weight[:, width:].t())
    start = convolved.view(out.shape)[:, 0].clone()
    convolved[1:].addmm_(x.view(-1, 2, width)[:-1, 1].to(dtype), weight[:, :width].t())
    # The left word of a row's first output is `before`.
    convolved.view(out.shape)[:, 0] = (
        start if before is None else start + before[:, 0].to(dtype) @ weight[:, :width].t()
    )
    torch.add(largest, convolved.view(out.shape), out=out)


def _maximum(x: Tensor, before: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """The largest of three words [R, O, d], and x and before with the lowest number where nothing was observed."""
    if mask is not None:
        lowest = (~mask[..., None]).to(x.dtype) * torch.finfo(x.dtype).min
        x, before = x + lowest[:, 1:], None if before is None else before + lowest[:, :1]
    largest = torch.maximum(x[:, ::2], x[:, 1::2])
    torch.maximum(largest[:, 1:], x[:, 1:-1:2], out=largest[:, 1:])
    if before is not None:
        torch.maximum(largest[:, :1], before, out=largest[:, :1])
    return largest, x, before


def _pull_maximum(
    own: Tensor, ahead: Tensor | None, pull: Tensor, x: Tensor, before: Tensor | None, mask: Tensor | None
) -> None:
    """Gradients of x and before through the maximum: they go to the largest word, the earliest of equal ones."""
    if not pull.numel():
        return
    largest, x, before = _maximum(x, before, mask)
    if mask is not None:
        pull = pull * (mask[:, :-1:2] | mask[:, 1::2] | mask[:, 2::2])[..., None]
    # 1 where the left word was largest: comparisons in place give float factors, which is fastest on a CPU
    left = largest.neg_()
    left[:, 1:] += x[:, 1:-1:2]
    left[:, 1:].ge_(0).mul_(pull[:, 1:])
    if before is None or ahead is None:
        left[:, 0] = 0
    else:
        left[:, :1].add_(before).ge_(0).mul_(pull[:, :1])
        ahead.copy_(left[:, :1])
    rest = pull - left
    right = torch.sub(x[:, 1::2], x[:, ::2]).gt_(0).mul_(rest)
    torch.sub(rest, right, out=own[:, ::2])
    right[:, :-1] += left[:, 1:]
    own[:, 1::2] = right


def _pull_product(
    own: Tensor, ahead: Tensor | None, weights: Tensor, pull: Tensor, x: Tensor, before: Tensor | None, weight: Tensor
) -> None:
    """Add the gradients of x, before and weight through the convolution."""
    if not pull.numel():
        return
    width, dtype = x.shape[2], weight.dtype
    flat, words = pull.view(-1, width).to(dtype), x.view(-1, 2 * width).to(dtype)
    start, end = flat.view(pull.shape)[:, 0], words.view(*pull.shape[:2], 2 * width)[:, -1, width:]
    weights[:, width:] += flat.t() @ words
    weights[:, :width] += flat[1:].t() @ words[:-1, width:]
    weights[:, :width] -= start[1:].t() @ end[:-1]  # the first output of a row has no left word in x
    pairs, odd = own.view(-1, 2 * width), own.view(-1, 2, width)[:, 1]
    last = own[:, -1].clone()
    if dtype == own.dtype:
        pairs.addmm_(flat, weight[:, width:])
        odd[:-1].addmm_(flat[1:], weight[:, :width])
    else:
        pairs += flat @ weight[:, width:]
        odd[:-1] += flat[1:] @ weight[:, :width]
    own[:, -1] = last + flat.view(pull.shape)[:, -1] @ weight[:, 2 * width :]
    if before is not None and ahead is not None:
        ahead[:, 0] += start @ weight[:, :width]
        weights[:, :width] += start.t() @ before[:, 0].to(dtype)


def _blocks(parts: tuple[ModalityTokens, ...]) -> list[ModalityTokens]:
    """Merge neighbouring modalities of equal shape, so that they are computed as one array."""
    grouped = (list(same) for _, same in groupby(parts, key=lambda part: (part.summary, part.words)))
    return [same[0]._replace(rows=sum(part.rows for part in same)) for same in grouped]
