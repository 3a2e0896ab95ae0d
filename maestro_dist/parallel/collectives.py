"""Collective operations, some of them differentiable, that count the bytes they communicate.

All ranks of a group must call the same operations in the same order, backward included. Autograd keeps the order if
every rank builds the same graph. Every rank computes the complete loss, with weight 1 / size. Therefore the
backward of an all-reduce (sum) is an all-reduce (sum).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["Group"]

_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
"""torch 2.13 renamed both; earlier versions have only the second names."""


class Group:
    """The collectives of one process group.

    `communicated_bytes`: bytes of all tensors that this rank has given to collectives since the group was made.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.communicated_bytes = 0

    def all_reduce(self, x: Tensor, operation: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> Tensor:
        """Sum (or another operation) over the ranks, elementwise, with the same bits on all; no autograd."""
        out = x.detach().clone(memory_format=torch.contiguous_format)
        self.communicated_bytes += out.nbytes
        dist.all_reduce(out, operation, group=self.group)
        return out

    def reduce_scatter(self, x: Tensor) -> Tensor:
        """Sum of x [size, ...] over the ranks; each rank gets its own row [...]; no autograd."""
        local = x.detach().contiguous()
        self.communicated_bytes += local.nbytes
        out = local.new_empty(local.shape[1:])
        _reduce_scatter(out.view(-1), local.view(-1), group=self.group)
        return out

    def all_gather(self, x: Tensor) -> Tensor:
        """The x of every rank, all of one shape, as [size, ...]; no autograd."""
        local = x.detach().contiguous()
        self.communicated_bytes += local.nbytes
        out = local.new_empty((self.size, *local.shape))
        _all_gather(out.view(-1), local.view(-1), group=self.group)
        return out

    def all_to_all(self, x: Tensor) -> Tensor:
        """Row r of x [size, ...] goes to rank r -> the received rows, one from each rank; no autograd."""
        return self._all_to_all(x.detach(), [1] * self.size, [1] * self.size)

    def differentiable_all_to_all(self, x: Tensor, sent: list[int], received: list[int]) -> Tensor:
        """The first `sent[0]` rows of x [n, ...] go to rank 0, the next `sent[1]` to rank 1, ... -> the received rows.

        `received[r]` is the number of rows that rank r sends to this rank. Any number may be 0. Differentiable.
        """
        out: Tensor = _DifferentiableAllToAll.apply(x, self, sent, received)
        return out

    def _all_to_all(self, x: Tensor, sent: list[int], received: list[int]) -> Tensor:
        local = x.contiguous()
        self.communicated_bytes += local.nbytes
        out = local.new_empty((sum(received), *local.shape[1:]))
        dist.all_to_all_single(out, local, received, sent, group=self.group)
        return out

    def differentiable_all_reduce(self, x: Tensor) -> Tensor:
        """Sum over the ranks; differentiable."""
        out: Tensor = _DifferentiableAllReduce.apply(x, self)
        return out

    def differentiable_all_gather(self, x: Tensor) -> Tensor:
        """The x of every rank, all of one shape, as [size, ...]; differentiable."""
        out: Tensor = _DifferentiableAllGather.apply(x, self)
        return out

    def merge_attention(self, out: Tensor, total: Tensor) -> Tensor:
        """Attention over each rank's keys -> over all keys; differentiable. See `SequenceContext.merge_attention`."""
        merged: Tensor = _MergeAttention.apply(out, total, self)
        return merged


class _DifferentiableAllReduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return group.all_reduce(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.group.all_reduce(gradients[0]), None


class _DifferentiableAllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return group.all_gather(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.group.reduce_scatter(gradients[0]), None


class _DifferentiableAllToAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group, sent: list[int], received: list[int]) -> Tensor:
        ctx.group, ctx.sent, ctx.received = group, sent, received
        return group._all_to_all(x, sent, received)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.group._all_to_all(gradients[0], ctx.received, ctx.sent), None, None, None


class _MergeAttention(torch.autograd.Function):
    """Log-sum-exp merge: each rank is weighted by its share of the total sum of exponentials.

    A rank without keys has a total so low that its weight is 0.
    """

    @staticmethod
    def forward(ctx: Any, out: Tensor, total: Tensor, group: Group) -> Tensor:
        weight = (total - group.all_reduce(total, dist.ReduceOp.MAX)).exp()[..., None]
        sums = group.all_reduce(torch.cat((out * weight, weight), -1))
        merged, normalizer = sums[..., :-1] / sums[..., -1:], sums[..., -1:]
        ctx.save_for_backward(out, weight / normalizer, merged)
        ctx.group = group
        return merged

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        out, share, merged = ctx.saved_tensors
        gradient = ctx.group.all_reduce(gradients[0]) * share
        return gradient, (gradient * (out - merged)).sum(-1), None
