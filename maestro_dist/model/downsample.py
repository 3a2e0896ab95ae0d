"""Downsampling: it halves the number of words, inside each modality. (Informer calls this distilling.)

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
    """Halves the number of words. One convolution is shared by the modalities of the layer."""

    def __init__(self, width: int, sequence: SequenceContext) -> None:
        super().__init__()
        self.sequence = sequence
        self.convolution = Windowed(width, width, 3)

    def forward(self, x: Tensor, layout: TokenLayout) -> Tensor:
        """Tokens [N, d] of one depth -> tokens of the next."""
        pieces, masks, blocks = [], [], _blocks(layout.parts) if self.sequence.size == 1 else list(layout.parts)
        sizes, lengths = [part.rows * part.length for part in blocks], [part.halved().words for part in blocks]
        for part, tokens, mask in zip(blocks, x.split(sizes), layout.flat_mask.split(sizes), strict=True):
            pieces.append(tokens.view(part.rows, part.length, x.shape[1]))
            masks.append(mask.view(part.rows, part.length))
        out = [
            torch.cat(
                (piece[:, : part.summary], self._halve(piece[:, part.summary :], mask[:, part.summary :], length)), 1
            )
            if part.summary
            else self._halve(piece, mask, length)
            for part, piece, mask, length in zip(blocks, pieces, masks, lengths, strict=True)
        ]
        flat = [piece.reshape(-1, x.shape[1]) for piece in out]
        return flat[0] if len(flat) == 1 else torch.cat(flat)

    def _halve(self, x: Tensor, mask: Tensor, length: int) -> Tensor:
        """Words [R, W, d] with mask [R, W] -> [R, length, d]: ceil(W / 2) words, or one more (`ModalityTokens`)."""
        before, short = None, 2 * length - x.shape[1]
        if self.sequence.size > 1:
            padded, known = self.sequence.halo_exchange(x, 1), self.sequence.halo_exchange(mask[..., None], 1)[..., 0]
            before, x = padded[:, :1], padded[:, 1 : padded.shape[1] - 1 + short]
            mask = known[:, : known.shape[1] - 1 + short]
        else:
            x = F.pad(x, (0, 0, 0, short)) if short else x
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

        before [R, 1, d] is the word before the first, or None; mask bool [R, 1 + 2 O] marks the observed words,
        `before` included; weight [d, 3 d] has the taps from left to right; bias [d].
        """
        # If nothing is missing, two passes are saved. Checked on a CPU only: with a GPU, the host would wait.
        complete = x.device.type == "cpu" and bool(mask[:, 1:].all()) and (before is None or bool(mask[:, 0].all()))
        if not complete:
            x = x * mask[:, 1:, None]
            before = None if before is None else before * mask[:, :1, None]
        ctx.save_for_backward(x, before, None if complete else mask, weight)
        out = x.new_empty(x.shape[0], x.shape[1] // 2, len(weight))
        for rows in blocks(x, x.shape[1] * x.shape[2], None):
            _halve(out[rows], x[rows], _at(before, rows), None if complete else mask[rows], weight, bias)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, before, weight and bias."""
        x, before, mask, weight = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        x_gradient = torch.empty_like(x)
        before_gradient = None if before is None else torch.zeros_like(before)
        sum_dtype = torch.promote_types(weight.dtype, torch.float32)
        weight_gradient, bias_gradient = (
            weight.new_zeros(weight.shape, dtype=sum_dtype),
            weight.new_zeros(len(weight), dtype=sum_dtype),
        )
        for rows in blocks(x, x.shape[1] * x.shape[2], None):
            _maximum_backward(
                x_gradient[rows],
                _at(before_gradient, rows),
                gradient[rows],
                x[rows],
                _at(before, rows),
                _at(mask, rows),
            )
            _convolution_backward(
                x_gradient[rows],
                _at(before_gradient, rows),
                weight_gradient,
                gradient[rows],
                x[rows],
                _at(before, rows),
                weight,
            )
            bias_gradient += gradient[rows].sum((0, 1))
        if mask is not None:
            x_gradient *= mask[:, 1:, None]
            before_gradient = None if before_gradient is None else before_gradient * mask[:, :1, None]
        return x_gradient, before_gradient, None, weight_gradient.to(weight.dtype), bias_gradient.to(weight.dtype)


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
    """The largest of three words [R, O, d]; x and before, with the lowest number where nothing was observed."""
    if mask is not None:
        lowest = (~mask[..., None]).to(x.dtype) * torch.finfo(x.dtype).min
        x, before = x + lowest[:, 1:], None if before is None else before + lowest[:, :1]
    largest = torch.maximum(x[:, ::2], x[:, 1::2])
    torch.maximum(largest[:, 1:], x[:, 1:-1:2], out=largest[:, 1:])
    if before is not None:
        torch.maximum(largest[:, :1], before, out=largest[:, :1])
    return largest, x, before


def _maximum_backward(
    x_gradient: Tensor,
    before_gradient: Tensor | None,
    gradient: Tensor,
    x: Tensor,
    before: Tensor | None,
    mask: Tensor | None,
) -> None:
    """Gradients of x and before through the maximum: they go to the largest word; of equal ones, to the earliest."""
    if not gradient.numel():
        return
    largest, x, before = _maximum(x, before, mask)
    if mask is not None:
        gradient = gradient * (mask[:, :-1:2] | mask[:, 1::2] | mask[:, 2::2])[..., None]
    # 1 where the left word was largest: comparisons in place give float factors, which is fastest on a CPU
    left = largest.neg_()
    left[:, 1:] += x[:, 1:-1:2]
    left[:, 1:].ge_(0).mul_(gradient[:, 1:])
    if before is None or before_gradient is None:
        left[:, 0] = 0
    else:
        left[:, :1].add_(before).ge_(0).mul_(gradient[:, :1])
        before_gradient.copy_(left[:, :1])
    rest = gradient - left
    right = torch.sub(x[:, 1::2], x[:, ::2]).gt_(0).mul_(rest)
    torch.sub(rest, right, out=x_gradient[:, ::2])
    right[:, :-1] += left[:, 1:]
    x_gradient[:, 1::2] = right


def _convolution_backward(
    x_gradient: Tensor,
    before_gradient: Tensor | None,
    weight_gradient: Tensor,
    gradient: Tensor,
    x: Tensor,
    before: Tensor | None,
    weight: Tensor,
) -> None:
    """Add the gradients of x, before and weight through the convolution."""
    if not gradient.numel():
        return
    width, dtype = x.shape[2], weight.dtype
    flat, words = gradient.view(-1, width).to(dtype), x.view(-1, 2 * width).to(dtype)
    start, end = flat.view(gradient.shape)[:, 0], words.view(*gradient.shape[:2], 2 * width)[:, -1, width:]
    weight_gradient[:, width:] += flat.t() @ words
    weight_gradient[:, :width] += flat[1:].t() @ words[:-1, width:]
    weight_gradient[:, :width] -= start[1:].t() @ end[:-1]  # the first output of a row has no left word in x
    pairs, odd = x_gradient.view(-1, 2 * width), x_gradient.view(-1, 2, width)[:, 1]
    last = x_gradient[:, -1].clone()
    if dtype == x_gradient.dtype:
        pairs.addmm_(flat, weight[:, width:])
        odd[:-1].addmm_(flat[1:], weight[:, :width])
    else:
        pairs += flat @ weight[:, width:]
        odd[:-1] += flat[1:] @ weight[:, :width]
    x_gradient[:, -1] = last + flat.view(gradient.shape)[:, -1] @ weight[:, 2 * width :]
    if before is not None and before_gradient is not None:
        before_gradient[:, 0] += start @ weight[:, :width]
        weight_gradient[:, :width] += start.t() @ before[:, 0].to(dtype)


def _blocks(parts: tuple[ModalityTokens, ...]) -> list[ModalityTokens]:
    """Merge neighbouring modalities of equal shape, so that they are computed as one array."""
    grouped = (list(same) for _, same in groupby(parts, key=lambda p: (p.summary, p.words, p.halved().words)))
    return [same[0]._replace(rows=sum(part.rows for part in same)) for same in grouped]
