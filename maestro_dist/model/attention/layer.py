"""A layer of multi-head self-attention: it chooses the variant and passes tokens to it."""

from __future__ import annotations

import functools
import logging

from torch import Tensor

from maestro_dist.config.attention import KERNEL_ABILITIES
from maestro_dist.config.model import ModelConfig
from maestro_dist.errors import ConfigError
from maestro_dist.model.attention.projections import AttentionProjections
from maestro_dist.model.attention.registry import cheapest, usable_variants
from maestro_dist.model.attention.sampling import cap
from maestro_dist.model.attention.variant import AttentionCall, AttentionShape, AttentionVariant
from maestro_dist.model.context import SequenceContext
from maestro_dist.model.layout import TokenLayout

_LOG = logging.getLogger(__name__)


class Attention(AttentionProjections):
    """Multi-head self-attention of one layer, by one of the variants in `registry`."""

    def __init__(self, name: str, config: ModelConfig, factor: float, seed: int, sequence: SequenceContext) -> None:
        """Arguments as for `AttentionProjections`. Raises `ConfigError` if no variant or kernel fits the ranks."""
        super().__init__(name, config, factor, seed, sequence)
        exchanges = sequence.head_exchange is not None
        self.variants = usable_variants(config, sequence_ranks=sequence.size, exchanges_heads=exchanges)
        self._logged: str | None = None
        _check(config, self, sequence)

    def forward(self, x: Tensor, layout: TokenLayout, queries: Tensor, step: int) -> Tensor:
        """Tokens x [N, d] -> [N, d]. `queries` [S]: real-valued number of queries n <= L of each sample."""
        # The choice uses the length of complete samples, never of this batch. Each variant completes the gradients of
        # its parameters in another order. If ranks whose samples lack different modalities chose different variants,
        # they would add gradients of different parameters to each other.
        variant = self.choose(layout.complete_length)
        if self.head_exchange is not None:
            attention = functools.partial(self._local_context, variant, layout=layout, queries=queries, step=step)
            packed = self.project(x[None])[0]
            return self.output(self.head_exchange.attend(packed, layout.tokens_by_rank, attention))
        return variant.forward(self, x, AttentionCall(layout, queries, step))

    def choose(self, length: int) -> AttentionVariant:
        """The cheapest variant for samples of `length` tokens. A change is logged, with the costs."""
        if len(self.variants) == 1:
            return self.variants[0]
        limits = (cap(factor, length) for factor in (self.sample_factor, self.factor))
        choice = cheapest(
            self.variants, AttentionShape(length, self.width, self.heads, *limits), training=self.training
        )
        if choice.variant.name != self._logged:
            self._logged = choice.variant.name
            _LOG.debug("%s, %d tokens per sample: %s", self.name, length, choice)
        return choice.variant

    def _local_context(
        self, variant: AttentionVariant, packed: Tensor, layout: TokenLayout, queries: Tensor, step: int
    ) -> Tensor:
        """Projections of all ranks' flat tokens for this rank's heads, [N', 3, h, d_h] -> context [N', h, d_h]."""
        unsharded = layout.unsharded
        assert unsharded is not None  # the plan contains it wherever heads are exchanged
        padded = unsharded.padded(packed.flatten(1)).unflatten(2, packed.shape[1:])
        return unsharded.rows(variant.context(self, padded, AttentionCall(unsharded, queries, step)))


def _check(config: ModelConfig, layer: Attention, sequence: SequenceContext) -> None:
    kernel = KERNEL_ABILITIES.get(layer.kernel)
    drops, shares = layer.dropout > 0, layer.sequence.size > 1
    if kernel and ((drops and not kernel.drops_probabilities) or (shares and not kernel.shares_sequence)):
        raise ConfigError(
            f"model.attention_kernel {layer.kernel} can neither drop probabilities nor share a sequence among ranks; "
            "choose auto or tiles, or set model.attention_dropout to 0 and mesh.sequence to 1"
        )
    if layer.variants:
        return
    if sequence.head_exchange is not None:
        raise ConfigError(
            f"model.attention_algorithm {config.attention_algorithm} gives no context for all tokens, which "
            "mesh.sequence_method ulysses exchanges; choose auto or plain"
        )
    raise ConfigError(
        f"model.attention {config.attention} cannot share a sequence among ranks; set it to sparse, mesh.sequence to "
        "1, or mesh.sequence_method to ulysses"
    )
