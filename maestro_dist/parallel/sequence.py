"""Sequence parallelism for sparse attention: its communication does not grow with the length of the sequence.

Each rank has one slice of each modality. Between ranks a layer exchanges only the sampled keys, the candidates for the
best queries, the u selected rows and their attended values (see `SequenceContext`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from maestro_dist.config.model import ModelConfig
from maestro_dist.model.context import HeadExchange
from maestro_dist.model.embedding import word_steps
from maestro_dist.parallel.collectives import Group
from maestro_dist.types import Modality


def time_cuts(steps: int, unit: int, ranks: int) -> list[int]:
    """The starts of the ranks' slices, and the end of the last. Starts are multiples of `unit`, with similar distances.

    The last end is `steps`. If there are fewer units than ranks, some ranks get nothing.
    """
    units = -(-steps // unit)
    return [min(steps, units * rank // ranks * unit) for rank in range(ranks + 1)]


def model_cuts(config: ModelConfig, modalities: Sequence[Modality], ranks: int) -> dict[str, list[int]]:
    """The slices of each modality, in steps. No downsampling layer joins words across their bounds."""
    halvings = config.encoder_layers + config.fusion_layers if config.downsample else 0
    return {m.name: time_cuts(m.steps, word_steps(config, m.name) * 2**halvings, ranks) for m in modalities}


class SequenceRanks:
    """`SequenceContext` on a process group whose ranks have the slices of the same samples, in rank order."""

    head_exchange: HeadExchange | None = None

    def __init__(self, group: dist.ProcessGroup, cuts: Mapping[str, Sequence[int]]) -> None:
        """`cuts`: for each modality the starts of the ranks' slices, and the end of the last, in steps."""
        self.group, self.cuts = Group(group), cuts
        self.rank, self.size = self.group.rank, self.group.size

    def slice(self, name: str, steps: int) -> tuple[int, int]:
        """See `SequenceContext`. Raises `ValueError` if the local steps do not fit the rank's slice.

        The last rank may have more steps: symbols cover complete words only.
        """
        (start, end), total = self.cuts[name][self.rank : self.rank + 2], self.cuts[name][-1]
        if steps < end - start or (steps > end - start and end < total):
            raise ValueError(f"{name}: {steps} steps on sequence rank {self.rank}, but its slice is {start} to {end}")
        return start, total

    def all_reduce_sum(self, x: Tensor) -> Tensor:
        """See `SequenceContext`."""
        return self.group.differentiable_all_reduce(x)

    def all_reduce_max(self, x: Tensor) -> Tensor:
        """See `SequenceContext`."""
        return self.group.all_reduce(x, dist.ReduceOp.MAX)

    def all_gather(self, x: Tensor) -> Tensor:
        """See `SequenceContext`."""
        return torch.cat(self.group.all_gather(x).unbind(0), -1)

    def exclusive_prefix_sum(self, x: Tensor) -> Tensor:
        """See `SequenceContext`."""
        return self.group.all_gather(x)[: self.rank].sum(0, dtype=x.dtype)

    def merge_attention(self, out: Tensor, total: Tensor) -> Tensor:
        """See `SequenceContext`."""
        return self.group.merge_attention(out, total)

    def halo_exchange(self, x: Tensor, width: int) -> Tensor:
        """See `SequenceContext`. Each rank gives its first and last `width` tokens, and the nearest ones are used.

        If a neighbour has fewer, tokens of the next rank follow. The host does not wait for the device.
        """
        if width == 0:
            return x
        dtype = x.dtype
        values = x if x.is_floating_point() else x.to(torch.float32)
        length, slot = x.shape[1], torch.arange(width, device=x.device)
        taken = min(width, length)
        empty = values.new_zeros(x.shape[0], width - taken, x.shape[2])
        last, first = values[:, length - taken :], values[:, :taken]
        # last tokens right-aligned, first tokens left-aligned
        ends = self.group.differentiable_all_gather(torch.cat((empty, last, first, empty), 1))
        held = torch.cat((slot >= width - taken, slot < taken))
        held = self.group.all_gather(held.to(torch.uint8)).to(torch.int64)  # [ranks, 2 width]
        rank = torch.arange(self.size, device=x.device)[:, None]
        # distance of tokens on lower ranks, counted from the nearest; then on higher ranks
        lower = (held[:, :width] * (rank < self.rank)).flatten()
        upper = (held[:, width:] * (rank > self.rank)).flatten()
        lower_distance = lower.flip(0).cumsum(0).flip(0) * lower
        upper_distance = upper.cumsum(0) * upper
        tails = ends[:, :, :width].transpose(0, 1).flatten(1, 2)  # [R, ranks * width, C]
        heads = ends[:, :, width:].transpose(0, 1).flatten(1, 2)
        left = _picked(tails, lower_distance[None] == (width - slot)[:, None])
        right = _picked(heads, upper_distance[None] == (slot + 1)[:, None])
        return torch.cat((left, values, right), 1).to(dtype)


def _picked(tokens: Tensor, wanted: Tensor) -> Tensor:
    """Of tokens [R, n, C], the token marked in each row of `wanted` bool [width, n], or zeros -> [R, width, C]."""
    rows = tokens.index_select(1, wanted.to(torch.uint8).argmax(1))
    return torch.where(wanted.any(1)[:, None], rows, rows.new_zeros(()))
