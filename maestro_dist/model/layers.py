"""Small building blocks: layers filled by counter hash, keyed dropout, the feed-forward, LayerScale."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from maestro_dist import rng

Key = Callable[[str], int]
"""Maps the name of a module's own parameter to the 64-bit key of its initial draws."""


class Linear(nn.Linear):
    """`nn.Linear` whose parameters are filled by `Maestro`, from their names."""

    def reset_parameters(self) -> None:
        """Leave the memory as it is: no draw from torch's generator."""

    def fill(self, key: Key) -> None:
        """U(-1/sqrt(fan_in), 1/sqrt(fan_in)), the usual start."""
        rng.fill_linear_(self.weight, self.in_features, key("weight"))
        if self.bias is not None:
            rng.fill_linear_(self.bias, self.in_features, key("bias"))


class Windowed(Linear):
    """A convolution over time, as a matrix product on neighbouring tokens joined along the channels.

    Unlike `nn.Conv1d` it keeps the [R, L, C] layout and takes sequences of length 0.
    """

    def __init__(self, channels: int, outputs: int, kernel: int) -> None:
        self.kernel = kernel
        super().__init__(kernel * channels, outputs)

    def forward(self, x: Tensor, stride: int = 1) -> Tensor:
        """Tokens x [R, L + kernel - 1, C], already padded -> [R, ceil(L / stride), outputs]."""
        joined: Tensor = Unfold.apply(x, self.kernel, stride)
        return super().forward(joined)


class Unfold(torch.autograd.Function):
    """Joins the taps of a convolution along the channels; its backward adds them up in place."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: int, stride: int) -> Tensor:
        """Padded x [R, L + kernel - 1, C] -> [R, ceil(L / stride), kernel x C]."""
        ctx.shape, ctx.kernel, ctx.stride = x.shape, kernel, stride
        return torch.cat(taps(x, kernel, stride), dim=-1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Gradient of x."""
        out = gradients[0].new_zeros(ctx.shape)
        for tap, part in zip(taps(out, ctx.kernel, ctx.stride), gradients[0].split(ctx.shape[2], -1), strict=True):
            tap += part
        return out, None, None


def taps(x: Tensor, kernel: int, stride: int) -> list[Tensor]:
    """The `kernel` shifted views of padded x [R, L + kernel - 1, ...] that a convolution reads."""
    length = x.shape[1] - kernel + 1
    return [x[:, offset : offset + length : stride] for offset in range(kernel)]


def dropout(x: Tensor, p: float, row_key: Tensor) -> Tensor:
    """Inverted dropout of x [..., C]; `row_key` int64 [...] says which draw belongs to which row."""
    return x * rng.dropout_scale(p, row_key, x.shape[-1], x.dtype)


class FeedForward(nn.Module):
    """Linear, GELU, Linear on each token."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.expand = Linear(width, hidden)
        self.contract = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [N, d] -> [N, d]."""
        out: Tensor = self.contract(torch.nn.functional.gelu(self.expand(x)))
        return out


class LayerScale(nn.Module):
    """A learned factor a channel on a residual branch (Touvron et al., 2021)."""

    def __init__(self, width: int, start: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((width,), start))

    def forward(self, x: Tensor) -> Tensor:
        """Scale x [N, d]."""
        return x * self.scale
