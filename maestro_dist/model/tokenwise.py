"""Functions on each token separately. They work in blocks of tokens and store little for the backward.

On a CPU a block stays in the cache. On any device a block limits the memory in use, besides the layer's inputs and
outputs. The block size changes only the rounding of the parameters' gradients.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from maestro_dist import rng

_BLOCK = 1 << 18
"""Elements of a block on a CPU: 1 MiB of float32."""


def blocks(x: Tensor, width: int, tile: int | None) -> Iterator[slice]:
    """Slices of the rows of x: `tile` rows each. If `tile` is None, a block size that suits the device is used.

    `width`: elements of a row.
    """
    rows = tile or (max(1, _BLOCK // max(1, width)) if x.device.type == "cpu" else max(1, len(x)))
    return (slice(start, start + rows) for start in range(0, len(x), rows))


def compute_type(x: Tensor) -> torch.dtype:
    """Float type of matrix products: autocast's type if it is on, else the type of x."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


class HashedDropout(NamedTuple):
    """Dropout of complete [N, d] arrays by hash: probability p, and keys int64 [N], one hash for each row."""

    p: float
    keys: Tensor


def dropout_by_hash(x: Tensor, p: float, row_key: Tensor, lane: Tensor) -> Tensor:
    """Inverted dropout of x [..., C]; row_key int64 [...] and lane int32 [C] key the draws (see `rng.keep_mask`)."""
    out: Tensor = _Dropout.apply(x, p, row_key, lane)
    return out


class _Dropout(torch.autograd.Function):
    """The backward draws again, so that only the hashes of the rows are stored."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float, row_key: Tensor, lane: Tensor) -> Tensor:
        ctx.save_for_backward(row_key, lane)
        ctx.p = p
        return _drop(x, p, row_key, lane)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        """Gradient of x."""
        row_key, lane = ctx.saved_tensors
        return _drop(gradients[0], ctx.p, row_key, lane), None, None, None


def _lane(x: Tensor) -> Tensor:
    return rng.lanes(torch.arange(x.shape[-1], device=x.device))


def _drop(x: Tensor, p: float, row_key: Tensor, lane: Tensor) -> Tensor:
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    rows, flat, keys = x.reshape(-1, x.shape[-1]), out.view(-1, x.shape[-1]), row_key.reshape(-1)
    for part in blocks(flat, -(-flat.shape[1] // 4), None):  # larger blocks are faster here
        keep = rng.keep_mask(p, keys[part], lane).to(x.dtype)
        torch.mul(rows[part], keep.mul_(1 / (1 - p)), out=flat[part])
    return out


class NormParameters(NamedTuple):
    """Parameters of a LayerNorm: weight and bias [d], and epsilon."""

    weight: Tensor
    bias: Tensor
    eps: float


def residual_norm(
    x: Tensor, branch: Tensor, scale: Tensor | None, norm: NormParameters, dropout: HashedDropout | None
) -> Tensor:
    """LayerNorm(x + scale * dropout(branch)). x, branch [N, d]; scale [d] -> [N, d]. It stores the sum and no mask."""
    p, keys = (0.0, None) if dropout is None else dropout
    out: Tensor = _ResidualNorm.apply(x, branch, norm.weight, norm.bias, scale, norm.eps, p, keys)
    return out


class _ResidualNorm(torch.autograd.Function):
    """See `residual_norm`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        branch: Tensor,
        weight: Tensor,
        bias: Tensor,
        scale: Tensor | None,
        eps: float,
        p: float,
        keys: Tensor | None,
    ) -> Tensor:
        total = torch.empty_like(x)
        lane = _lane(x)
        for part in blocks(x, x.shape[1], None):
            rows = branch[part] if scale is None else branch[part] * scale
            if keys is None:
                torch.add(x[part], rows, out=total[part])
            else:
                keep = rng.keep_mask(p, keys[part], lane).to(x.dtype)
                torch.addcmul(x[part], rows, keep, value=1 / (1 - p), out=total[part])
        out, mean, deviation = torch.native_layer_norm(total, (x.shape[1],), weight, bias, eps)
        ctx.save_for_backward(total, mean, deviation, weight, bias, scale, keys, branch if scale is not None else None)
        ctx.p = p
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, branch, weight, bias and scale."""
        total, mean, deviation, weight, bias, scale, keys, branch = ctx.saved_tensors
        x_gradient, weight_gradient, bias_gradient = torch.ops.aten.native_layer_norm_backward(
            gradients[0].contiguous(), total, (total.shape[1],), mean, deviation, weight, bias, [True, True, True]
        )
        if keys is None and scale is None:
            return x_gradient, x_gradient, weight_gradient, bias_gradient, None, None, None, None
        inner = torch.empty_like(x_gradient)
        scale_gradient = None if scale is None else torch.zeros_like(scale)
        lane = _lane(x_gradient)
        for part in blocks(x_gradient, x_gradient.shape[1], None):
            if keys is None:
                rows = x_gradient[part]
            else:
                keep = rng.keep_mask(ctx.p, keys[part], lane).to(x_gradient.dtype)
                rows = torch.mul(x_gradient[part], keep.mul_(1 / (1 - ctx.p)), out=inner[part])
            if scale_gradient is not None:
                scale_gradient += (rows * branch[part]).sum(0)
                torch.mul(rows, scale, out=inner[part])
        return x_gradient, inner, weight_gradient, bias_gradient, scale_gradient, None, None, None


class FeedForwardParameters(NamedTuple):
    """Parameters of two linear layers: expand [h, d] with bias [h], contract [d, h] with bias [d]."""

    expand: Tensor
    expand_bias: Tensor
    contract: Tensor
    contract_bias: Tensor


def feed_forward(x: Tensor, parameters: FeedForwardParameters, tile: int | None) -> Tensor:
    """Linear, GELU, Linear of tokens x [N, d] -> [N, d].

    It stores the input of GELU for the backward. With `tile`, `tile` tokens are computed at a time, nothing is
    stored, and the backward computes it again.
    """
    out: Tensor = _FeedForward.apply(x, *parameters, tile)
    return out


class _FeedForward(torch.autograd.Function):
    """See `feed_forward`."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, expand: Tensor, first: Tensor, contract: Tensor, second: Tensor, tile: int | None
    ) -> Tensor:
        out = x.new_empty(len(x), len(contract))
        inner = None if tile else x.new_empty(len(x), len(expand))
        for part in blocks(x, len(expand), tile):
            before = torch.addmm(first, x[part], expand.t(), out=None if inner is None else inner[part])
            torch.addmm(second, F.gelu(before), contract.t(), out=out[part])
        ctx.save_for_backward(x, expand, first, contract, inner)
        ctx.tile = tile
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x and of the four parameters."""
        x, expand, first, contract, inner = ctx.saved_tensors
        out_gradient = gradients[0].contiguous()
        x_gradient = torch.empty_like(x)
        # sums over many tokens: float32 at least
        sum_dtype = torch.promote_types(x.dtype, torch.float32)
        sums = [
            torch.zeros(shape.shape, dtype=sum_dtype, device=x.device)
            for shape in (expand, first, contract, contract[:, 0])
        ]
        for part in blocks(x, len(expand), ctx.tile):
            before = torch.addmm(first, x[part], expand.t()) if inner is None else inner[part]
            _add_product(sums[2], out_gradient[part], F.gelu(before))
            sums[3] += out_gradient[part].sum(0)
            hidden = torch.ops.aten.gelu_backward(out_gradient[part] @ contract, before)
            _add_product(sums[0], hidden, x[part])
            sums[1] += hidden.sum(0)
            torch.mm(hidden, expand, out=x_gradient[part])
        return x_gradient, *(total.to(x.dtype) for total in sums), None


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left^T right."""
    if total.dtype == left.dtype:
        total.addmm_(left.t(), right)
    else:
        total += left.t() @ right
