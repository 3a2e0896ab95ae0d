"""Small building blocks: layers filled by counter hash, keyed dropout, the feed-forward, LayerScale."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maestro_dist import rng
from maestro_dist.model.tokenwise import Dropped, Fed, Normed, compute_type

_BLOCK = 1 << 16
"""Numbers that a convolution on a processor works on at a time, so that all its shifts find them in the cache."""

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
    """A convolution over time, as matrix products on neighbouring tokens joined along the channels.

    Unlike `nn.Conv1d` it keeps the [R, L, C] layout and takes sequences of length 0.
    """

    def __init__(self, channels: int, outputs: int, kernel: int) -> None:
        self.kernel = kernel
        super().__init__(kernel * channels, outputs)

    def forward(self, x: Tensor, stride: int = 1) -> Tensor:
        """Tokens x [R, L + kernel - 1, C], already padded -> [R, ceil(L / stride), outputs]."""
        weight, bias, device = self.weight, self.bias, x.device.type
        if torch.is_autocast_enabled(device):
            x, weight, bias = (part.to(torch.get_autocast_dtype(device)) for part in (x, weight, bias))
        out: Tensor = Convolution.apply(x, weight, bias, self.kernel, stride)
        return out


class Convolution(torch.autograd.Function):
    """Matrix products on windows of padded tokens, none of which is copied.

    Windows that do not overlap are the rows of a matrix that lies in memory already, whose rows are `kernel x C` long:
    all windows are ceil(kernel / stride) such matrices, each shifted by a stride. They run through the ends of the rows
    of x; what reaches from one into the next is cut off.
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
        of_weight = torch.zeros_like(weight.t(), memory_format=torch.contiguous_format)
        for windows, part in _windows(x, gradient, ctx.kernel, ctx.stride):
            of_weight.addmm_(windows.t(), part)  # this way round: few rows cost less than few columns
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = torch.zeros_like(x)
            for windows, part in _windows(of_x, gradient, ctx.kernel, ctx.stride):
                windows.addmm_(part, weight)
            of_x = of_x[:, : ctx.padded]
        return of_x, of_weight.t().contiguous(), gradient.sum((0, 1)), None, None


def _windows(x: Tensor, out: Tensor, kernel: int, stride: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Views of contiguous x [R, P, C], [n, kernel x C], with those of out [R, P / stride, O] they lead to, [n, O]."""
    channels, outputs = x.shape[2], out.shape[2]
    total, shifts = (x.shape[0] * x.shape[1] - kernel) // stride + 1, -(-kernel // stride)
    block = max(shifts, _BLOCK // (stride * channels + outputs)) if x.device.type == "cpu" else max(1, total)
    for start in range(0, total, block):
        end = min(total, start + block)
        for first in range(start, min(end, start + shifts)):
            rows = -(-(end - first) // shifts)
            yield (
                x.as_strided((rows, kernel * channels), (shifts * stride * channels, 1), first * stride * channels),
                out.as_strided((rows, outputs), (shifts * outputs, 1), first * outputs),
            )


def taps(x: Tensor, kernel: int, stride: int) -> list[Tensor]:
    """The `kernel` shifted views of padded x [R, L + kernel - 1, ...] that a convolution reads."""
    length = x.shape[1] - kernel + 1
    return [x[:, offset : offset + length : stride] for offset in range(kernel)]


def dropout(x: Tensor, p: float, row_key: Tensor, numbers: Tensor | None = None) -> Tensor:
    """Inverted dropout of x [..., C]; `row_key` int64 [...] says which draw belongs to which row.

    `numbers` int64 [C] are the columns' numbers in the whole row, where x holds only some of them.
    """
    numbers = torch.arange(x.shape[-1], device=x.device) if numbers is None else numbers
    out: Tensor = Dropped.apply(x, p, row_key, rng.lanes(numbers))
    return out


class FeedForward(nn.Module):
    """Linear, GELU, Linear on each token; with `tile`, that many tokens at a time, computed again in the backward."""

    def __init__(self, width: int, hidden: int, tile: int | None = None) -> None:
        super().__init__()
        self.tile = tile
        self.expand = Linear(width, hidden)
        self.contract = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [N, d] -> [N, d]."""
        dtype = compute_type(x)
        parameters = (self.expand.weight, self.expand.bias, self.contract.weight, self.contract.bias)
        out: Tensor = Fed.apply(x.to(dtype), *(parameter.to(dtype) for parameter in parameters), self.tile)
        return out


class ResidualNorm(nn.LayerNorm):
    """LayerNorm of a residual sum, with dropout on the branch."""

    def forward(  # type: ignore[override]
        self, x: Tensor, branch: Tensor, scale: Tensor | None, p: float, keys: Tensor | None
    ) -> Tensor:
        """Norm of x + scale * dropout(branch): x, branch [N, d], scale [d]; keys int64 [N], None: no dropout."""
        out: Tensor = Normed.apply(x, branch.to(x.dtype), self.weight, self.bias, scale, self.eps, p, keys)
        return out


class LayerScale(nn.Module):
    """A learned factor a channel on a residual branch (Touvron et al., 2021)."""

    def __init__(self, width: int, start: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((width,), start))
