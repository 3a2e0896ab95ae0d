"""Sequence parallelism by an exchange of heads (Ulysses): each rank gets whole sequences for some of the heads.

Before the attention an all-to-all gives each rank all tokens of its heads. After it a second one returns the context
(Jacobs et al., 2023; DeepSpeed's `DistributedAttention`). Results, draws and ties are as in one process, for sparse and
dense attention. A rank communicates 8 (L / P) d numbers per layer, forward and backward; the communication of
`sequence` does not depend on the length L.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from maestro_dist.errors import MeshError
from maestro_dist.model.context import TokensByRank
from maestro_dist.parallel.collectives import Group
from maestro_dist.parallel.load_deepspeed import load_deepspeed
from maestro_dist.parallel.sequence import SequenceRanks


class UlyssesRanks(SequenceRanks):
    """`SequenceContext` whose attention uses `UlyssesHeadExchange`; the rest is as in `SequenceRanks`."""

    def __init__(self, group: dist.ProcessGroup, cuts: Mapping[str, Sequence[int]]) -> None:
        """`cuts`: for each modality the starts of the ranks' slices, and the end of the last, in steps."""
        super().__init__(group, cuts)
        self.head_exchange = UlyssesHeadExchange(self.group, cuts)


class UlyssesHeadExchange:
    """`HeadExchange` by DeepSpeed's `DistributedAttention`.

    DeepSpeed exchanges equal numbers of tokens only, and hangs if the ranks have different numbers. So flat tokens are
    padded to the largest number of a rank, and the padding is removed again before the attention.
    """

    def __init__(self, group: Group, cuts: Mapping[str, Sequence[int]]) -> None:
        """`cuts`: for each modality the starts of the ranks' slices, and the end of the last, in steps."""
        self.group, self.cuts = group, cuts
        deepspeed = load_deepspeed("cuda" if dist.get_backend(group.group) == "nccl" else "cpu")
        if not deepspeed.comm.is_initialized():
            deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False, dist_init_required=False)
        from deepspeed.sequence.layer import DistributedAttention

        self.exchange = DistributedAttention(_attend_ordered, group.group, scatter_idx=2, gather_idx=1)

    def local_heads(self, count: int) -> range:
        """See `HeadExchange`."""
        if count % self.group.size:
            raise MeshError(
                f"model.heads = {count} cannot be divided evenly among mesh.sequence = {self.group.size} ranks"
            )
        heads_per_rank = count // self.group.size
        return range(self.group.rank * heads_per_rank, (self.group.rank + 1) * heads_per_rank)

    def word_bounds(self, name: str, word: int) -> tuple[int, ...]:
        """See `HeadExchange`."""
        return tuple(-(-cut // word) for cut in self.cuts[name])

    def all_gather_mask(self, mask: Tensor, tokens: TokensByRank) -> Tensor:
        """See `HeadExchange`."""
        size = _largest_size(tokens)
        held = F.pad(mask.to(torch.uint8), (0, size - len(mask)))
        return self.group.all_gather(held).flatten().index_select(0, _order(tokens, size, mask.device)) > 0

    def attend(self, packed: Tensor, tokens: TokensByRank, attention: Callable[[Tensor], Tensor]) -> Tensor:
        """See `HeadExchange`."""
        size, length = _largest_size(tokens), len(packed)
        if length < size:
            packed = F.pad(packed, (0, 0, 0, 0, 0, 0, 0, size - length))
        parts = [self._counted(part) for part in packed[None].unbind(2)]
        order = _order(tokens, size, packed.device)
        context = self.exchange(*parts, 0, None, order=order, attention=attention)
        return self._counted(context)[0, :length]

    def _counted(self, x: Tensor) -> Tensor:
        out: Tensor = _Counted.apply(x, self.group)
        return out


def _sizes(tokens: TokensByRank) -> list[int]:
    """Tokens on each rank."""
    return [sum(held) for held in zip(*([rows * share for share in shares] for rows, shares in tokens), strict=True)]


def _largest_size(tokens: TokensByRank) -> int:
    """Largest number of tokens on a rank; at least one, so that all ranks always exchange."""
    return max(1, *_sizes(tokens))


def _order(tokens: TokensByRank, size: int, device: torch.device) -> Tensor:
    """int64 [N']: positions, among the tokens of all ranks, of the tokens in the order of one process.

    That order is (modality, row, time). Each rank has `size` positions, in the order modality, row, its slice of time.
    """
    starts = [rank * size for rank in range(len(_sizes(tokens)))]
    order = []
    for rows, shares in tokens:
        row = torch.arange(rows, device=device)[:, None]
        pieces = [
            start + row * share + torch.arange(share, device=device)
            for start, share in zip(starts, shares, strict=True)
        ]
        order.append(torch.cat(pieces, 1).flatten())
        starts = [start + rows * share for start, share in zip(starts, shares, strict=True)]
    return torch.cat(order)


def _attend_ordered(
    query: Tensor, key: Tensor, value: Tensor, *, order: Tensor, attention: Callable[[Tensor], Tensor]
) -> Tensor:
    """This rank's heads of all tokens [1, ranks x size, h, d_h], in rank order -> their context in the same order."""
    context = attention(_Ordered.apply(order, query[0], key[0], value[0]))
    back: Tensor = _Spread.apply(order, query.shape[1], context)
    return back[None]


class _Ordered(torch.autograd.Function):
    """Rows of each x [n, h, c] in an order, int64 [N] -> [N, parts, h, c]. Other rows get no gradient."""

    @staticmethod
    def forward(ctx: Any, order: Tensor, *parts: Tensor) -> Tensor:
        ctx.save_for_backward(order)
        ctx.size = len(parts[0])
        out = parts[0].new_empty(len(order), len(parts), *parts[0].shape[1:])
        for number, part in enumerate(parts):
            out[:, number] = part.index_select(0, order)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (order,) = ctx.saved_tensors
        return (None, *(_spread(order, ctx.size, part) for part in gradients[0].unbind(1)))


class _Spread(torch.autograd.Function):
    """Rows [N, h, c] to positions int64 [N] among `size` -> [size, h, c], with zeros elsewhere.

    Unlike torch's `index_copy` it does not store the rows for the backward.
    """

    @staticmethod
    def forward(ctx: Any, order: Tensor, size: int, rows: Tensor) -> Tensor:
        ctx.save_for_backward(order)
        return _spread(order, size, rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, Tensor]:
        (order,) = ctx.saved_tensors
        return None, None, gradients[0].index_select(0, order)


def _spread(order: Tensor, size: int, rows: Tensor) -> Tensor:
    return rows.new_zeros(size, *rows.shape[1:]).index_copy_(0, order, rows)


class _Counted(torch.autograd.Function):
    """Identity that counts the bytes of an all-to-all, forward and backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        group.communicated_bytes += x.nbytes
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        ctx.group.communicated_bytes += gradients[0].nbytes
        return gradients[0], None
