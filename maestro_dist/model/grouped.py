"""Matrix products of rows that are sorted by group. Each group has its own weight.

Letters: n rows, E groups (experts), d and h widths. Rows after the last group belong to no group: they give zeros and
get no gradient. `torch._grouped_mm` is used where it is one kernel: on a CPU, and on a GPU for bf16 from compute
capability 9.0 on. Elsewhere torch would loop over the groups on the host and wait for their sizes. So there groups are
cut into blocks of equal height, for one batched product. Neither way waits for the device, and apart from the weights
the cost does not grow with E.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_KERNEL_TYPES = {"cpu": (torch.float32, torch.bfloat16), "cuda": (torch.bfloat16,)}
_KERNEL_SINCE = (9, 0)
"""Compute capability of the first GPUs on which torch's grouped product is one kernel."""
_MULTIPLE = 8
"""The kernel needs rows of a multiple of 16 bytes: widths are padded with zeros to multiples of this number."""
_LOWEST, _HIGHEST = 16, 1024
"""Smallest and largest height of a block of the batched product, in rows."""


class Groups(NamedTuple):
    """The positions of groups of sorted rows.

    counts  int64 [E]: rows of each group
    ends    int32 [E]: number of the row after the last one of each group
    inside  number of rows in groups, if the host knows it without waiting (on a CPU), else None
    """

    counts: Tensor
    ends: Tensor
    inside: int | None

    @classmethod
    def of(cls, counts: Tensor) -> Groups:
        """Groups of `counts` int64 [E] rows, one after the other."""
        ends = counts.cumsum(0).int()
        known = counts.device.type == "cpu"
        return cls(counts, ends, (int(ends[-1]) if len(ends) else 0) if known else None)


def has_kernel(x: Tensor) -> bool:
    """Whether `torch._grouped_mm` exists and is one kernel for rows of this type on this device."""
    if x.dtype not in _KERNEL_TYPES.get(x.device.type, ()) or not hasattr(torch, "_grouped_mm"):
        return False
    return x.device.type == "cpu" or torch.cuda.get_device_capability(x.device) >= _KERNEL_SINCE


def product(x: Tensor, weight: Tensor, groups: Groups) -> Tensor:
    """x[i] W[group of i]: rows x [n, d], weight [E, d, h] -> [n, h], undefined outside the groups. No autograd."""
    if len(x) == 0 or not has_kernel(x):
        return PaddedGroups(groups, len(x)).product(x, weight)
    return torch._grouped_mm(x, weight, offs=groups.ends)


def outer(x: Tensor, y: Tensor, groups: Groups) -> Tensor:
    """Sum over each group of the outer products x[i] y[i]. Rows [n, d] and [n, h] -> [E, d, h]. No autograd."""
    if len(x) == 0 or not has_kernel(x):
        return PaddedGroups(groups, len(x)).outer(x, y)
    return torch._grouped_mm(x.t(), y, offs=groups.ends)


def clear_outside_(x: Tensor, groups: Groups) -> Tensor:
    """Set the rows of no group to zero, in place."""
    if groups.inside is not None:
        x[groups.inside :].zero_()
        return x
    outside = torch.arange(len(x), device=x.device) >= groups.ends[-1]
    return x.masked_fill_(outside[:, None], 0)


class PaddedGroups:
    """Groups cut into blocks of one height, the last of each padded with zeros: at most n / height + E blocks."""

    def __init__(self, groups: Groups, rows: int) -> None:
        counts, ends = groups.counts, groups.ends.long()
        mean = rows // max(1, len(counts))
        self.height = min(max(1 << max(0, mean - 1).bit_length(), _LOWEST), _HIGHEST)
        blocks = (counts + (self.height - 1)).div(self.height, rounding_mode="floor")
        last = blocks.cumsum(0)
        block_count = rows // self.height + len(counts) if groups.inside is None else int(last[-1]) if len(last) else 0
        self.experts, self.count = len(counts), block_count
        number = torch.arange(rows, device=counts.device)
        group = torch.searchsorted(ends, number, right=True)
        inside = group < self.experts
        group = group.clamp_max(self.experts - 1)
        place = (last - blocks)[group] * self.height + number - (ends - counts)[group]
        self.place = torch.where(inside, place, block_count * self.height)  # rows of no group go to one extra row
        block = torch.arange(block_count, device=counts.device)
        self.group = torch.searchsorted(last, block, right=True).clamp_max(self.experts - 1)

    def product(self, x: Tensor, weight: Tensor) -> Tensor:
        """See `product`; rows outside the groups give 0."""
        out = x.new_zeros(self.count * self.height + 1, weight.shape[2])
        blocks = out[:-1].view(self.count, self.height, weight.shape[2])
        torch.bmm(self._padded(x), weight.index_select(0, self.group), out=blocks)
        return out.index_select(0, self.place)

    def outer(self, x: Tensor, y: Tensor) -> Tensor:
        """See the function `outer`."""
        sums = self._padded(x).transpose(1, 2) @ self._padded(y)
        return x.new_zeros(self.experts, *sums.shape[1:]).index_add_(0, self.group, sums)

    def _padded(self, x: Tensor) -> Tensor:
        rows = x.new_zeros(self.count * self.height + 1, x.shape[1]).index_copy_(0, self.place, x)
        return rows[:-1].view(self.count, self.height, x.shape[1])


class GroupedNetwork(torch.autograd.Function):
    """gelu(x W) V for rows sorted by group. Each group has its own W and V."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, expand: Tensor, contract: Tensor, groups: Groups) -> Tensor:
        """Rows x [n, d], expand [E, d, h], contract [E, h, d'] -> [n, d']; zeros outside the groups."""
        hidden = product(x, expand, groups)
        active = F.gelu(hidden)
        ctx.save_for_backward(x, hidden, active, expand, contract, groups.counts, groups.ends)
        ctx.inside = groups.inside
        return clear_outside_(product(active, contract, groups), groups)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        """Gradients of x, expand and contract."""
        x, hidden, active, expand, contract, counts, ends = ctx.saved_tensors
        groups, gradient = Groups(counts, ends, ctx.inside), gradients[0].contiguous()
        contract_gradient = outer(active, gradient, groups)
        inner = product(gradient, contract.transpose(1, 2), groups)
        torch.ops.aten.gelu_backward.grad_input(inner, hidden, grad_input=inner)
        expand_gradient = outer(x, inner, groups)
        x_gradient = None
        if ctx.needs_input_grad[0]:
            x_gradient = clear_outside_(product(inner, expand.transpose(1, 2), groups), groups)
        return x_gradient, expand_gradient, contract_gradient, None


def grouped_network(x: Tensor, expand: Tensor, contract: Tensor, counts: Tensor) -> Tensor:
    """gelu(x W) V, where each group of rows has its own W and V.

    Rows x [n, d], sorted by group; expand [E, d, h], contract [E, h, d], counts int64 [E] -> [n, d]. Rows after the
    first `counts.sum()` give 0. Under autocast it computes in autocast's type.
    """
    width = contract.shape[2]
    if torch.is_autocast_enabled(x.device.type):  # autocast does not know the kernel
        dtype = torch.get_autocast_dtype(x.device.type)
        x, expand, contract = x.to(dtype), expand.to(dtype), contract.to(dtype)
    if has_kernel(x):
        inner, middle, outside = -x.shape[1] % _MULTIPLE, -expand.shape[2] % _MULTIPLE, -width % _MULTIPLE
        if inner or middle or outside:  # a hidden column of zeros stays zero: gelu(0) = 0
            x, expand = F.pad(x, (0, inner)), F.pad(expand, (0, middle, 0, inner))
            contract = F.pad(contract, (0, outside, 0, middle))
    out: Tensor = GroupedNetwork.apply(x, expand, contract, Groups.of(counts))
    return out[:, :width]
