"""The interfaces through which the model uses several ranks: operations on sharded tokens, and the experts.

`model/` knows nothing about ranks. In one process the operations are trivial (`OneProcess`, `moe.LocalExperts`). On
several ranks `parallel/` implements the same protocols. Parameter names and results stay the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor, nn

TokensByRank = Sequence[tuple[int, tuple[int, ...]]]
"""For each modality of a layout: its rows, and the tokens of a row on each rank."""


class HeadExchange(Protocol):
    """All-to-all around attention (Ulysses): this rank's tokens of all heads <-> all tokens of its heads."""

    def local_heads(self, count: int) -> range:
        """Which of `count` heads this rank computes. Raises `MeshError` if the ranks do not divide them evenly."""
        ...

    def word_bounds(self, name: str, word: int) -> tuple[int, ...]:
        """First word of each rank's slice of modality `name`, then the end of the last; words of `word` steps."""
        ...

    def all_gather_mask(self, mask: Tensor, tokens: TokensByRank) -> Tensor:
        """Mask bool [N] of this rank's flat tokens -> of all ranks' tokens [N'], in the order of one process."""
        ...

    def attend(self, packed: Tensor, tokens: TokensByRank, attention: Callable[[Tensor], Tensor]) -> Tensor:
        """Projections of this rank's flat tokens [N, 3, H, d_h] -> their context [N, H, d_h]; differentiable.

        `attention` takes the projections of all tokens for this rank's heads, [N', 3, h, d_h], in the order of one
        process, and returns their context [N', h, d_h].
        """
        ...


class SequenceContext(Protocol):
    """Operations between the ranks that share the time axis of a sample. Each rank has one slice of each modality.

    A slice of modality j starts at a multiple of its word times 2^(layers ahead that halve the tokens). Rank 0 has the
    summary tokens. Every sequence rank computes the complete loss, with weight 1 / size. Therefore the backward of
    `all_reduce_sum` is an `all_reduce_sum`.
    """

    rank: int
    size: int
    head_exchange: HeadExchange | None
    """If set, attention goes through it and needs no other operation between ranks."""

    def slice(self, name: str, steps: int) -> tuple[int, int]:
        """Given the local steps of modality `name`: the global number of the first one, and the steps of all ranks."""
        ...

    def all_reduce_sum(self, x: Tensor) -> Tensor:
        """Sum over the ranks, elementwise; differentiable."""
        ...

    def all_reduce_max(self, x: Tensor) -> Tensor:
        """Maximum over the ranks, elementwise; without gradient."""
        ...

    def all_gather(self, x: Tensor) -> Tensor:
        """The ranks' tensors, concatenated along the last dimension in rank order; without gradient."""
        ...

    def exclusive_prefix_sum(self, x: Tensor) -> Tensor:
        """Sum over the lower ranks, elementwise (zeros on rank 0); without gradient."""
        ...

    def halo_exchange(self, x: Tensor, width: int) -> Tensor:
        """x [R, L, C] -> [R, width + L + width, C]: the nearest tokens of the neighbours, zeros outside the window."""
        ...

    def merge_attention(self, out: Tensor, total: Tensor) -> Tensor:
        """Attention over the local keys -> over all keys; differentiable.

        out [..., u, d_h]; total [..., u]: log-sum-exp of the local scores. Each rank's output is weighted by its share
        of the sum of exponentials.
        """
        ...


class OneProcess:
    """`SequenceContext` of a process that has the complete time axis."""

    rank = 0
    size = 1
    head_exchange: HeadExchange | None = None

    def slice(self, name: str, steps: int) -> tuple[int, int]:
        """The slice is the complete time axis."""
        return 0, steps

    def all_reduce_sum(self, x: Tensor) -> Tensor:
        """Identity."""
        return x

    def all_reduce_max(self, x: Tensor) -> Tensor:
        """Identity."""
        return x

    def all_gather(self, x: Tensor) -> Tensor:
        """Identity."""
        return x

    def exclusive_prefix_sum(self, x: Tensor) -> Tensor:
        """Zeros."""
        return x.new_zeros(x.shape)

    def halo_exchange(self, x: Tensor, width: int) -> Tensor:
        """Zeros at both ends."""
        return F.pad(x, (0, 0, width, width))

    def merge_attention(self, out: Tensor, total: Tensor) -> Tensor:
        """Identity."""
        return out


class Experts(Protocol):
    """An `nn.Module` with (some of) the experts of one layer; see `moe.LocalExperts`."""

    def __call__(self, tokens: Tensor, counts: Tensor) -> Tensor:
        """Tokens [n, d], sorted by expert, and counts int64 [E] -> [n, d].

        Rows after the first `counts.sum()` belong to no expert; their output is zero.
        """
        ...


class ExpertsFactory(Protocol):
    """Makes the experts of one cross-modal layer."""

    def __call__(self, experts: int, width: int, hidden: int) -> nn.Module:
        """A module that satisfies `Experts` and has `fill(key)` (see `layers`)."""
        ...
