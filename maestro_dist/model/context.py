"""What the model is given from outside: the operations on tokens that are sharded by time, and the experts.

`model/` knows nothing of ranks. In one process the operations are trivial (`OneProcess`, `LocalExperts`); on many, the
parallel room implements the same two protocols, and parameter names and results stay the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor, nn

Blocks = Sequence[tuple[int, tuple[int, ...]]]
"""Of each modality of a layout: its rows, and the tokens a row that each rank holds."""


class Swap(Protocol):
    """Attention on whole sequences: from some tokens with all heads to all tokens with some heads, and back."""

    def heads(self, count: int) -> range:
        """Which of `count` heads this rank attends with. Raises `MeshError` when they cannot be shared out evenly."""
        ...

    def bounds(self, name: str, word: int) -> tuple[int, ...]:
        """Where the ranks' slices of modality `name` start, and where the last ends, in words of `word` steps."""
        ...

    def join(self, mask: Tensor, blocks: Blocks) -> Tensor:
        """Mask bool [N] of this rank's flat tokens -> of all ranks' tokens [N'], in the order of one process."""
        ...

    def attend(self, packed: Tensor, blocks: Blocks, attention: Callable[[Tensor], Tensor]) -> Tensor:
        """Projections of this rank's flat tokens [N, 3, H, d_h] -> their context [N, H, d_h]; differentiable.

        `attention` takes the projections of all tokens for this rank's heads, [N', 3, h, d_h], in the order of one
        process, and gives their context [N', h, d_h].
        """
        ...


class SequenceContext(Protocol):
    """Operations between the ranks that share the time axis of one sample; each holds one slice of each modality.

    A slice of modality j starts at a multiple of its word times 2^(distils ahead) steps, and rank 0 owns the summary
    tokens. Every sequence rank computes the whole loss and counts it 1 / size, so the backward of `sum` is a `sum`.
    """

    rank: int
    size: int
    swap: Swap | None
    """Where it is given, attention goes through it, and needs no other operation between ranks."""

    def slice(self, name: str, steps: int) -> tuple[int, int]:
        """Global number of the first local step of modality `name`, and its steps over all ranks, given the local."""
        ...

    def sum(self, x: Tensor) -> Tensor:
        """Sum over the ranks, elementwise; differentiable."""
        ...

    def maximum(self, x: Tensor) -> Tensor:
        """Maximum over the ranks, elementwise; without gradient."""
        ...

    def gather(self, x: Tensor) -> Tensor:
        """The ranks' tensors, joined along the last dimension in rank order; without gradient."""
        ...

    def before(self, x: Tensor) -> Tensor:
        """Sum over the lower ranks, elementwise (zeros on rank 0); without gradient."""
        ...

    def halo(self, x: Tensor, width: int) -> Tensor:
        """x [R, L, C] -> [R, width + L + width, C] with the neighbours' nearest tokens, zeros outside the window."""
        ...

    def merge(self, out: Tensor, total: Tensor) -> Tensor:
        """Attention over the local keys -> over all; differentiable.

        out [..., u, d_h]; total [..., u]: log-sum-exp of the local scores. A rank's weight is its share of all sums.
        """
        ...


class OneProcess:
    """The whole time axis in this process."""

    rank = 0
    size = 1
    swap: Swap | None = None

    def slice(self, name: str, steps: int) -> tuple[int, int]:
        """The slice is all there is."""
        return 0, steps

    def sum(self, x: Tensor) -> Tensor:
        """Identity."""
        return x

    def maximum(self, x: Tensor) -> Tensor:
        """Identity."""
        return x

    def gather(self, x: Tensor) -> Tensor:
        """Identity."""
        return x

    def before(self, x: Tensor) -> Tensor:
        """Zeros."""
        return x.new_zeros(x.shape)

    def halo(self, x: Tensor, width: int) -> Tensor:
        """Zeros at both ends."""
        return F.pad(x, (0, 0, width, width))

    def merge(self, out: Tensor, total: Tensor) -> Tensor:
        """Identity."""
        return out


class Experts(Protocol):
    """An `nn.Module` that holds (some of) the experts of one layer; see `moe.LocalExperts`."""

    def __call__(self, tokens: Tensor, counts: Tensor) -> Tensor:
        """Tokens [n, d], sorted by expert, and counts int64 [E] -> [n, d].

        Rows past `counts.sum()` belong to no expert and come back as zeros.
        """
        ...


class ExpertsFactory(Protocol):
    """Makes the experts of one cross-modal layer."""

    def __call__(self, experts: int, width: int, hidden: int) -> nn.Module:
        """A module that satisfies `Experts` and has `fill(key)` (see `layers`)."""
        ...
