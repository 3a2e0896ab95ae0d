"""The interface of an attention variant: its computation, and its costs in operations, memory and communication.

Letters: S samples, L columns (padded tokens on this rank), N tokens (flat), H heads, d width, d_h head width, U sampled
keys, u selected queries.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

from torch import Tensor

from maestro_dist.config.attention import VARIANT_ABILITIES, VariantAbilities
from maestro_dist.config.model import ModelConfig
from maestro_dist.model.attention.projections import AttentionProjections
from maestro_dist.model.attention.sampling import cap
from maestro_dist.model.layout import TokenLayout

MOVED = 20.0
"""Cost of writing a number to memory and reading it again, in floating-point operations of a matrix product."""

_GATHERED = 5.0
"""How many times a gathered row is moved, in both directions."""


class AttentionShape(NamedTuple):
    """Sizes of one layer on one sample: L tokens, width d, H heads, U sampled keys, u selected queries."""

    length: int
    width: int
    heads: int
    sampled: int
    selected: int

    @classmethod
    def of(cls, config: ModelConfig, length: int, factor: float) -> AttentionShape:
        """Sizes for `length` tokens; `factor` is the largest budget."""
        return cls(length, config.width, config.heads, cap(config.sample_factor, length), cap(factor, length))

    @property
    def gathered(self) -> float:
        """Numbers of gathered rows that are moved, for each token."""
        return _GATHERED * self.heads * (self.selected + self.sampled) * self.width * (1.0 / max(1, self.length))


class AttentionCall(NamedTuple):
    """Arguments of one call: the layout of the tokens, the real-valued number of queries n <= L of each sample [S],
    and the step, which keys the draws."""

    layout: TokenLayout
    queries: Tensor
    step: int


class AttentionMemory(NamedTuple):
    """Floats of each token that a layer keeps for the backward, and the peaks (with these) in forward and backward."""

    kept: float
    forward_peak: float
    backward_peak: float


class SequenceSharding(NamedTuple):
    """Ranks that share a sequence, bytes of a number, and how often the forward runs (twice with checkpoints)."""

    ranks: int
    element_bytes: int
    forwards: int


class CollectiveBytes(NamedTuple):
    """Bytes that a rank gives to collectives in one layer on one sample, forward and backward."""

    all_reduce: float
    all_gather: float


class AttentionVariant(ABC):
    """One way to compute a layer of attention. It has no state: parameters and settings belong to the layer.

    `name` is its key in the registry and in `config.attention.VARIANT_ABILITIES`.
    """

    name: ClassVar[str]
    arrays: ClassVar[AttentionMemory]
    """Memory, as a number of arrays [N, d], without the probabilities."""
    arrays_exchanged: ClassVar[AttentionMemory | None] = None
    """The same where heads are exchanged between ranks; None if the variant cannot do this."""

    @property
    def abilities(self) -> VariantAbilities:
        """What the variant can do."""
        return VARIANT_ABILITIES[self.name]

    @abstractmethod
    def forward(self, layer: AttentionProjections, x: Tensor, call: AttentionCall) -> Tensor:
        """Tokens x [N, d] -> the layer's output [N, d]."""

    def context(self, layer: AttentionProjections, packed: Tensor, call: AttentionCall) -> Tensor:
        """Projections [S, L, 3, h, d_h] of this rank's heads -> their context [S, L, h, d_h].

        Only for variants that exchange heads. Raises `NotImplementedError` in others.
        """
        raise NotImplementedError(f"attention variant {self.name} gives no context for all tokens")

    @abstractmethod
    def operations(self, shape: AttentionShape, *, training: bool) -> float:
        """Cost per token in floating-point operations; moved numbers are included (see `MOVED`)."""

    @abstractmethod
    def attended_queries(self, shape: AttentionShape) -> int:
        """Queries of a sample that attend to all its tokens."""

    def memory(
        self, shape: AttentionShape, *, keep_attention_weights: bool | None, exchanges_heads: bool
    ) -> AttentionMemory:
        """Floats per token; `keep_attention_weights` is the setting of the configuration."""
        arrays = self.arrays_exchanged if exchanges_heads else self.arrays
        assert arrays is not None
        stored = self.abilities.selects_queries and stores_probabilities(keep_attention_weights, shape)
        scores = shape.heads * (shape.selected + 1.0) if stored else 0.0
        return AttentionMemory(*(count * shape.width + scores + shape.heads for count in arrays))

    def communication(self, shape: AttentionShape, sharding: SequenceSharding) -> CollectiveBytes:
        """Bytes to collectives where ranks share a sequence. Only for variants that support this."""
        raise NotImplementedError(f"attention variant {self.name} cannot share a sequence among ranks")


class ContextVariant(AttentionVariant):
    """A variant that makes a context for every token. It can exchange heads between ranks."""

    def forward(self, layer: AttentionProjections, x: Tensor, call: AttentionCall) -> Tensor:
        """Projections of all tokens, their context, and its output projection."""
        context = self.context(layer, layer.project(call.layout.padded(x)), call)
        return layer.output(call.layout.rows(context))


def stores_probabilities(keep_attention_weights: bool | None, shape: AttentionShape) -> bool:
    """Whether the probabilities of the selected queries are stored for the backward (`model.keep_attention_weights`).

    By default they are stored if they take no more memory than two rows of the model's width per token.
    """
    return shape.heads * shape.selected <= 2 * shape.width if keep_attention_weights is None else keep_attention_weights
