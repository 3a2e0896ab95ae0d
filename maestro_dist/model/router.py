"""The router: scores of the experts for each token, the k best experts, and the gradient. It works tile by tile.

Letters: N tokens, d width, E experts, k experts per token.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from maestro_dist import rng
from maestro_dist.model.layers import Key

_FEW = 12
"""With fewer experts the scores are stored as [E, N]: softmax and maximum along short rows are much slower."""

_TILE = 1 << 18
"""Scores in a tile on a CPU: about the size of a core's second-level cache."""


class Router(nn.Module):
    """A linear layer d -> E without bias, then a softmax over the experts."""

    def __init__(self, width: int, experts: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, width))

    def fill(self, key: Key) -> None:
        """Like a linear layer."""
        rng.fill_linear_(self.weight, self.weight.shape[1], key("weight"))

    def forward(self, x: Tensor, bias: Tensor | None = None, top_k: int = 1) -> tuple[Tensor, Tensor]:
        """Tokens x [N, d], bias [E] for the selection only -> scores of the chosen [N, k], their numbers int64 [N, k].

        The scores are not renormalized. Under autocast the product is in autocast's type; the rest has the type of x.
        """
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        gates, chosen = Gates.apply(x.to(dtype), self.weight.to(dtype), bias, top_k, x.dtype)
        return gates, chosen


def _tiles(x: Tensor, experts: int) -> Iterator[slice]:
    """Slices of the tokens: one on a GPU, and one for half precision, where sums over tiles would be rounded."""
    one_tile = x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64)
    size = max(1, len(x)) if one_tile else max(1, _TILE // experts)
    for start in range(0, len(x), size):
        yield slice(start, min(start + size, len(x)))


class Gates(torch.autograd.Function):
    """Softmax scores of the experts and the k best of each token. The scores are the only [N, E] array stored."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, top_k: int, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Tokens x [N, d], weight [E, d], bias [E] for the selection only; `dtype` of the scores. See `Router`."""
        ctx.experts_first = len(weight) < _FEW
        with torch.autocast(x.device.type, enabled=False):
            if ctx.experts_first:
                scores = torch.mm(weight, x.t()).to(dtype).softmax(0)  # [E, N]
                chosen = largest(scores if bias is None else scores + bias[:, None], top_k, 0)
                gates = scores.gather(0, chosen)
            else:
                scores = x.new_empty((len(x), len(weight)), dtype=dtype)
                chosen = torch.empty((len(x), top_k), dtype=torch.int64, device=x.device)
                for tile in _tiles(x, len(weight)):
                    torch.softmax(torch.mm(x[tile], weight.t()).to(dtype), 1, out=scores[tile])
                    chosen[tile] = largest(scores[tile] if bias is None else scores[tile] + bias, top_k, 1)
                gates = scores.gather(1, chosen)
        ctx.save_for_backward(x, weight, scores, chosen, gates)
        if ctx.experts_first:
            chosen, gates = chosen.t().contiguous(), gates.t().contiguous()
        ctx.mark_non_differentiable(chosen)
        return gates, chosen

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        """The gradient of the logits is s (g - sum s g); g is zero except for the chosen experts."""
        x, weight, scores, chosen, gates = ctx.saved_tensors
        with torch.autocast(x.device.type, enabled=False):
            if ctx.experts_first:
                weighted = gradients[0].t() * gates
                logits = (scores * -weighted.sum(0)).scatter_add_(0, chosen, weighted).to(x.dtype)
                return torch.mm(logits.t(), weight), torch.mm(logits, x), None, None, None
            weighted = gradients[0] * gates
            shared = -weighted.sum(1, keepdim=True)
            x_gradient, weight_gradient = torch.empty_like(x), weight.new_zeros(weight.shape[::-1])
            for tile in _tiles(x, len(weight)):
                logits = (scores[tile] * shared[tile]).scatter_add_(1, chosen[tile], weighted[tile]).to(x.dtype)
                torch.mm(logits, weight, out=x_gradient[tile])
                weight_gradient.addmm_(x[tile].t(), logits)
        return x_gradient, weight_gradient.t(), None, None, None


def largest(ranking: Tensor, top_k: int, along: int) -> Tensor:
    """Indices int64 of the k largest values along a dimension, the best first."""
    if top_k > 1 or ranking.device.type != "cpu" or not ranking.numel():
        return ranking.topk(top_k, dim=along).indices
    if along == 0 or ranking.dtype not in (torch.float32, torch.float64):
        return ranking.max(along, keepdim=True).indices
    return torch.from_numpy(ranking.numpy().argmax(along, keepdims=True))  # a fifth of the time of topk
