"""The sparse mixture of experts of a cross-modal layer.

Letters: N tokens, E experts, k experts a token, n = N k routed rows, M modalities.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maestro_dist import rng
from maestro_dist.config.schema import ModelConfig
from maestro_dist.model.context import ExpertsFactory
from maestro_dist.model.layers import FeedForward, Key, Linear
from maestro_dist.model.layout import Layout


class GroupedProduct(torch.autograd.Function):
    """y[i] = x[i] W[e(i)] for rows sorted by expert; rows past the last group give 0.

    `torch._grouped_mm` leaves those rows uninitialised, hence the fills.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
        """Rows x [n, d], weight [E, d, h], ends int32 [E] (cumulative counts) -> [n, h]."""
        ctx.save_for_backward(x, weight, ends)
        return _grouped(x, weight, ends)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        """Gradients of x and weight."""
        x, weight, ends = ctx.saved_tensors
        if len(x) == 0:
            return torch.zeros_like(x), torch.zeros_like(weight), None
        gradient = gradients[0].contiguous()
        return _grouped(gradient, weight.transpose(1, 2), ends), torch._grouped_mm(x.t(), gradient, offs=ends), None


def _grouped(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    outside = torch.arange(len(x), device=x.device) >= ends[-1]
    return torch._grouped_mm(x, weight, offs=ends).masked_fill_(outside[:, None], 0)


def grouped_product(x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    """Rows x [n, d], sorted by expert, times their expert's weight [E, d, h]; counts int64 [E].

    float64 has no grouped kernel: there every expert sees every row, and the right one is kept.
    """
    ends = counts.cumsum(0)
    if torch.is_autocast_enabled(x.device.type):  # the kernel is not on autocast's list
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(dtype), weight.to(dtype)
    if x.dtype != torch.float64:
        # The kernel wants rows of whole 16 bytes: widths that are not multiples of 8 are filled up with zeros.
        inner, outer = -x.shape[1] % 8, -weight.shape[2] % 8
        if inner or outer:
            x, weight = F.pad(x, (0, inner)), F.pad(weight, (0, outer, 0, inner))
        product: Tensor = GroupedProduct.apply(x, weight, ends.int())
        return product[:, : product.shape[1] - outer]
    row = torch.arange(len(x), device=x.device)
    mine = (row >= (ends - counts)[:, None]) & (row < ends[:, None])
    return torch.einsum("end,edh->nh", mine[..., None] * x, weight)


class LocalExperts(nn.Module):
    """All experts of a layer in this process: d -> hidden -> d with GELU, without biases."""

    def __init__(self, experts: int, width: int, hidden: int) -> None:
        super().__init__()
        self.expand = nn.Parameter(torch.empty(experts, width, hidden))
        self.contract = nn.Parameter(torch.empty(experts, hidden, width))

    def fill(self, key: Key) -> None:
        """The usual start of linear layers; a draw is keyed by its place in the whole [E, ...] tensor."""
        rng.fill_linear_(self.expand, self.expand.shape[1], key("expand"))
        rng.fill_linear_(self.contract, self.contract.shape[1], key("contract"))

    def forward(self, tokens: Tensor, counts: Tensor) -> Tensor:
        """Tokens [n, d], sorted by expert, counts int64 [E] -> [n, d]; rows past `counts.sum()` give 0."""
        return grouped_product(F.gelu(grouped_product(tokens, self.expand, counts)), self.contract, counts)


class MixtureOfExperts(nn.Module):
    """Routes each observed token to k of E experts, dropless; softmax scores, not renormalised over the chosen k."""

    bias: Tensor

    def __init__(self, config: ModelConfig, modalities: int, factory: ExpertsFactory) -> None:
        super().__init__()
        moe, width = config.moe, config.width
        self.count, self.top_k, self.modalities = moe.experts, moe.top_k, modalities
        self.balanced, self.rate = moe.balance == "bias", moe.balance_rate
        hidden = max(1, round(moe.hidden * width))
        self.router = Linear(width, moe.experts, bias=False)
        self.experts = factory(moe.experts, width, hidden)
        self.shared = FeedForward(width, moe.shared * hidden) if moe.shared else None
        if self.balanced:
            self.register_buffer("bias", torch.zeros(moe.experts))

    def forward(self, x: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """Tokens x [N, d] -> ([N, d], load int64 [M, E]: tokens sent to each expert, by modality)."""
        scores = self.router(x).to(x.dtype).softmax(-1)
        with torch.no_grad():
            ranking = scores + self.bias if self.balanced else scores
            chosen = ranking.topk(self.top_k, dim=-1).indices  # [N, k]
            # A missing token goes to no expert: number E sorts last and lies outside all groups.
            expert = torch.where(layout.flat_mask[:, None], chosen, self.count).flatten()
            order = expert.argsort(stable=True)
            place = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=x.device))
            load = self._load(expert, layout)
        rows = x[:, None].expand(-1, self.top_k, -1).flatten(0, 1).index_select(0, order)
        out = self.experts(rows, load.sum(0)).index_select(0, place).view(len(x), self.top_k, x.shape[1])
        gates = scores.gather(1, chosen).to(out.dtype)
        mixed = (out * gates[..., None]).sum(1)
        if self.shared is not None:
            mixed = mixed + self.shared(x)
        return mixed, load

    def _load(self, expert: Tensor, layout: Layout) -> Tensor:
        part = layout.flat(layout.part).repeat_interleave(self.top_k)
        cells = torch.zeros(self.modalities * (self.count + 1), dtype=torch.int64, device=expert.device)
        cells.scatter_add_(0, part * (self.count + 1) + expert, torch.ones_like(expert))
        return cells.view(self.modalities, self.count + 1)[:, : self.count]

    def update_balance(self, load: Tensor) -> None:
        """After a step: raise the selection bias of experts below the mean of the global load [E], lower it above."""
        if self.balanced:
            load = load.to(self.bias.dtype)
            self.bias += self.rate * (load.mean() - load).sign()
