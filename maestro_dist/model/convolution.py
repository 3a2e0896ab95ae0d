"""A convolution over time that copies no windows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class Convolution(torch.autograd.Function):
    """Matrix products on windows of padded tokens, without copies of the windows.

    Windows that do not overlap are rows of a matrix that is already in memory, with `kernel x C` numbers per row. All
    windows together are ceil(kernel / stride) such matrices, each shifted by a stride. The windows continue across the
    ends of the rows of x. Results of windows that cross two rows are cut off.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, kernel: int, stride: int) -> Tensor:
        """Padded x [R, L + kernel - 1, C], weight [O, kernel x C], bias [O] -> [R, ceil(L / stride), O]."""
        ctx.kernel, ctx.stride, ctx.padded = kernel, stride, x.shape[1]
        x = F.pad(x, (0, 0, 0, -x.shape[1] % stride)).contiguous()
        ctx.save_for_backward(x, weight)
        out = x.new_empty((len(x), x.shape[1] // stride, len(weight)))
        for windows, part in _windows(x, out, kernel, stride):
            torch.addmm(bias, windows, weight.t(), out=part)
        ctx.length = -(-(ctx.padded - kernel + 1) // stride)
        return out[:, : ctx.length]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None, None]:
        """Gradients of x, weight and bias."""
        x, weight = ctx.saved_tensors
        gradient = F.pad(gradients[0], (0, 0, 0, x.shape[1] // ctx.stride - ctx.length)).contiguous()
        weight_gradient = torch.zeros_like(weight.t(), memory_format=torch.contiguous_format)
        for windows, part in _windows(x, gradient, ctx.kernel, ctx.stride):
            weight_gradient.addmm_(windows.t(), part)  # a product with few rows is faster than one with few columns
        x_gradient = None
        if ctx.needs_input_grad[0]:
            x_gradient = torch.zeros_like(x)
            for windows, part in _windows(x_gradient, gradient, ctx.kernel, ctx.stride):
                windows.addmm_(part, weight)
            x_gradient = x_gradient[:, : ctx.padded]
        return x_gradient, weight_gradient.t().contiguous(), gradient.sum((0, 1)), None, None


def _windows(x: Tensor, out: Tensor, kernel: int, stride: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Views [n, kernel x C] of contiguous x [R, P, C], each with the view [n, O] of its results in out."""
    channels, outputs = x.shape[2], out.shape[2]
    total, shifts = (x.shape[0] * x.shape[1] - kernel) // stride + 1, -(-kernel // stride)
    for shift in range(min(shifts, total)):
        rows = -(-(total - shift) // shifts)
        yield (
            x.as_strided((rows, kernel * channels), (shifts * stride * channels, 1), shift * stride * channels),
            out.as_strided((rows, outputs), (shifts * outputs, 1), shift * outputs),
        )
