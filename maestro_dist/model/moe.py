"""The sparse mixture of experts of a cross-modal layer.

Letters: N tokens, E experts, k experts per token, n = N k routed rows, S samples, M modalities.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from maestro_dist import rng
from maestro_dist.config.model import ModelConfig
from maestro_dist.model.context import ExpertsFactory
from maestro_dist.model.grouped import grouped_network
from maestro_dist.model.layers import FeedForward, Key
from maestro_dist.model.layout import TokenLayout
from maestro_dist.model.router import Router


class LocalExperts(nn.Module):
    """All experts of a layer in this process: d -> hidden -> d with GELU, no biases."""

    def __init__(self, experts: int, width: int, hidden: int) -> None:
        super().__init__()
        self.expand = nn.Parameter(torch.empty(experts, width, hidden))
        self.contract = nn.Parameter(torch.empty(experts, hidden, width))

    def fill(self, key: Key) -> None:
        """Like linear layers. A draw is keyed by its position in the complete [E, ...] tensor."""
        rng.fill_linear_(self.expand, self.expand.shape[1], key("expand"))
        rng.fill_linear_(self.contract, self.contract.shape[1], key("contract"))

    def forward(self, tokens: Tensor, counts: Tensor) -> Tensor:
        """Tokens [n, d], sorted by expert, counts int64 [E] -> [n, d]; rows after the first `counts.sum()` give 0."""
        return grouped_network(tokens, self.expand, self.contract, counts)


def sort_by_expert(expert: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Stable order int64 [n] of rows by expert number [n] <= count, and the position int64 [n] of each row in it."""
    if expert.device.type == "cpu" and count < 1 << 15:  # numpy sorts 16-bit numbers by radix sort
        order = torch.from_numpy(expert.to(torch.int16).numpy().argsort(kind="stable"))
    else:
        order = expert.argsort(stable=True)
    place = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=expert.device))
    return order, place


class Dispatch(torch.autograd.Function):
    """Copies of the tokens, sorted by expert."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, place: Tensor, top_k: int) -> Tensor:
        """Tokens x [N, d], order and place int64 [N k] -> [N k, d]."""
        ctx.save_for_backward(place)
        ctx.top_k = top_k
        return x.index_select(0, order if top_k == 1 else order.div(top_k, rounding_mode="floor"))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        """Gradient of the tokens: the sum over their copies."""
        (place,) = ctx.saved_tensors
        rows = gradients[0].index_select(0, place)
        if ctx.top_k > 1:
            rows = rows.view(-1, ctx.top_k, rows.shape[1]).sum(1)
        return rows, None, None, None


class Combine(torch.autograd.Function):
    """The outputs of the experts for each token, weighted by its gates, in the order of the tokens."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, gates: Tensor, order: Tensor, place: Tensor) -> Tensor:
        """Rows [N k, d] sorted by expert, gates [N, k] -> [N, d]."""
        outputs = rows.index_select(0, place)
        ctx.save_for_backward(outputs, gates, order)
        if gates.shape[1] == 1:
            return outputs * gates
        return torch.bmm(gates[:, None], outputs.view(*gates.shape, outputs.shape[1]))[:, 0]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """Gradients of rows and gates."""
        outputs, gates, order = ctx.saved_tensors
        gradient, shape = gradients[0], (*gates.shape, outputs.shape[1])
        weighted = (gradient[:, None] * gates[..., None]).view(outputs.shape) if shape[1] > 1 else gradient * gates
        gate_gradient = (gradient[:, None] * outputs.view(shape)).sum(-1)
        return weighted.index_select(0, order), gate_gradient, None, None


class MixtureOfExperts(nn.Module):
    """Routes each observed token to k of E experts. No token is dropped; the softmax scores are not renormalized."""

    bias: Tensor

    def __init__(self, config: ModelConfig, modalities: int, factory: ExpertsFactory) -> None:
        super().__init__()
        moe, width = config.moe, config.width
        self.count, self.top_k, self.modalities = moe.experts, moe.top_k, modalities
        self.balanced, self.rate = moe.balance == "bias", moe.balance_rate
        hidden = max(1, round(moe.hidden * width))
        self.router = Router(width, moe.experts)
        self.experts = factory(moe.experts, width, hidden)
        self.shared = FeedForward(width, moe.shared * hidden) if moe.shared else None
        if self.balanced:
            self.register_buffer("bias", torch.zeros(moe.experts))

    def forward(self, x: Tensor, layout: TokenLayout) -> tuple[Tensor, Tensor]:
        """Tokens x [N, d] -> ([N, d], load int32 [S, M, E]: tokens sent to each expert, by sample and modality)."""
        gates, chosen = self.router(x, self.bias if self.balanced else None, self.top_k)
        with torch.no_grad():
            # A missing token goes to no expert: number E sorts last and belongs to no group.
            expert = torch.where(layout.flat_mask[:, None], chosen, self.count)
            load = self._load(expert, layout)
            order, place = sort_by_expert(expert.flatten(), self.count)
        rows = self.experts(Dispatch.apply(x, order, place, self.top_k), load.sum((0, 1)))
        mixed: Tensor = Combine.apply(rows, gates.to(rows.dtype), order, place)
        if self.shared is not None:
            mixed = mixed + self.shared(x)
        return mixed, load

    def _load(self, expert: Tensor, layout: TokenLayout) -> Tensor:
        """Tokens by sample, modality and expert, without number E."""
        samples = len(layout.mask)
        cell = torch.arange(samples, device=expert.device)[:, None] * self.modalities + layout.part
        cell = layout.flat(cell * (self.count + 1))[:, None] + expert
        cells = torch.zeros(samples * self.modalities * (self.count + 1), dtype=torch.int32, device=expert.device)
        cells.scatter_add_(
            0, cell.flatten(), torch.ones((), dtype=torch.int32, device=expert.device).expand(cell.numel())
        )
        return cells.view(samples, self.modalities, self.count + 1)[..., : self.count]

    def update_balance(self, load: Tensor) -> None:
        """After a step: raise the selection bias of experts with less than the mean load [E], lower the others."""
        if self.balanced:
            load = load.to(self.bias.dtype)
            self.bias += self.rate * (load.mean() - load).sign()
