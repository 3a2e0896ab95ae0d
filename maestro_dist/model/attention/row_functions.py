"""Rows of large arrays, taken and written with little memory: functions with their own gradients.

Letters: S samples, H heads, L columns (padded tokens), d_h head width, u selected queries.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from maestro_dist.model.attention import sampling


class SplitProjections(torch.autograd.Function):
    """Keys, values, and the selected rows of the queries (if any), from one packed array of projections.

    The gradients are written into one array with the memory order of the packed one.
    """

    @staticmethod
    def forward(ctx: Any, packed: Tensor, column: Tensor | None) -> tuple[Tensor, ...]:
        """packed [S, L, n, H, d_h]; column int64 [S, H, u] (n = 3), or None (n = 2).

        Returns keys and values, views [S, H, L, d_h], then the rows [S, H, u, d_h].
        """
        ctx.shape, ctx.upright = packed.shape, packed.stride(4) != 1
        parts = packed.detach().permute(2, 0, 3, 1, 4)
        if column is None:
            return parts[0], parts[1]
        ctx.save_for_backward(column)
        return parts[1], parts[2], sampling.gather_rows(parts[0], column, None)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Gradient of the packed array."""
        samples, length, count, heads, width = ctx.shape
        if ctx.upright:
            out = gradients[0].new_empty(count, heads, width, samples, length).permute(3, 4, 0, 1, 2)
        else:
            out = gradients[0].new_empty(ctx.shape)
        parts = out.permute(2, 0, 3, 1, 4)
        if len(gradients) == 3:
            (column,) = ctx.saved_tensors
            if length:
                parts[0].zero_().scatter_add_(2, column[..., None].expand(-1, -1, -1, width), gradients[2])
        parts[-2].copy_(gradients[0])
        parts[-1].copy_(gradients[1])
        return out, None


class TakeRows(torch.autograd.Function):
    """Rows of x [S, H, L, c] by column [S, H, n] -> [S, H, n, c]; the gradient is written once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, column: Tensor) -> Tensor:
        """The rows."""
        ctx.save_for_backward(column)
        ctx.shape = x.shape
        return sampling.gather_rows(x, column, None)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Gradient of x: zero except for the rows. A row that was taken twice gets the sum."""
        (column,) = ctx.saved_tensors
        samples, heads, length, width = ctx.shape
        number = torch.arange(samples * heads, device=column.device).view(samples, heads, 1) * length + column
        out = gradients[0].new_zeros(samples * heads * length, width)
        out.index_add_(0, number.flatten(), gradients[0].reshape(-1, width))
        return out.view(ctx.shape), None


class FillRows(torch.autograd.Function):
    """One constant row for all tokens of a sample, plus differences for a few rows."""

    @staticmethod
    def forward(ctx: Any, constant: Tensor, delta: Tensor, row: Tensor, length: int) -> Tensor:
        """constant [S, w], delta [n, c], c divides w, row int64 [n] below S * length * w / c -> [S * length, w]."""
        ctx.save_for_backward(row)
        ctx.shapes = constant.shape, delta.shape
        out = constant[:, None].expand(-1, length, -1).clone(memory_format=torch.contiguous_format)
        if length:
            out.view(-1, delta.shape[1]).index_add_(0, row, delta)
        return out.view(-1, constant.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """Gradients of constant and delta."""
        (row,) = ctx.saved_tensors
        constant, delta = ctx.shapes
        gradient = gradients[0].contiguous()
        if not gradient.numel():
            return gradient.new_zeros(constant), gradient.new_zeros(delta), None, None
        summed = gradient.view(constant[0], -1, constant[1]).sum(1)
        return summed, gradient.view(-1, delta[1]).index_select(0, row), None, None
