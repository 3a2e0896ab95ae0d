"""The attention variants, and which one a layer uses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from maestro_dist.config import attention as abilities
from maestro_dist.config.model import ModelConfig
from maestro_dist.model.attention.absorbed import AbsorbedAttention
from maestro_dist.model.attention.dense import DenseAttention
from maestro_dist.model.attention.plain import PlainAttention
from maestro_dist.model.attention.rows import RowsAttention
from maestro_dist.model.attention.variant import AttentionShape, AttentionVariant

VARIANTS: dict[str, AttentionVariant] = {
    variant.name: variant for variant in (DenseAttention(), PlainAttention(), RowsAttention(), AbsorbedAttention())
}
"""All variants by name. `config.attention.VARIANT_ABILITIES` has an entry for each."""


class VariantChoice(NamedTuple):
    """The cheapest variant, and the cost of each: floating-point operations per token, moved numbers included."""

    variant: AttentionVariant
    costs: dict[str, float]

    def __str__(self) -> str:
        costs = ", ".join(f"{name} {cost / 1000:.1f}k" for name, cost in self.costs.items())
        return f"{self.variant.name} (operations per token: {costs})"


def usable_variants(
    config: ModelConfig, *, sequence_ranks: int = 1, exchanges_heads: bool = False
) -> list[AttentionVariant]:
    """The variants that the configuration allows and that work on these ranks (`config.attention.usable_variants`)."""
    names = abilities.usable_variants(config, sequence_ranks=sequence_ranks, exchanges_heads=exchanges_heads)
    return [VARIANTS[name] for name in names]


def cheapest(variants: Sequence[AttentionVariant], shape: AttentionShape, *, training: bool) -> VariantChoice:
    """The cheapest variant; of equal ones, the first."""
    costs = {variant.name: variant.operations(shape, training=training) for variant in variants}
    return VariantChoice(min(variants, key=lambda variant: costs[variant.name]), costs)


def planned_variant(config: ModelConfig, shape: AttentionShape, *, exchanges_heads: bool = False) -> AttentionVariant:
    """The variant that a layer uses in training for complete samples of this shape."""
    ranks = 2 if exchanges_heads else 1
    variants = usable_variants(config, sequence_ranks=ranks, exchanges_heads=exchanges_heads)
    return cheapest(variants, shape, training=True).variant


def describe_attention(config: ModelConfig, tokens: Sequence[int], *, exchanges_heads: bool = False) -> str:
    """Which variant the layers use for samples with `tokens` in each modality, and what the others would cost."""
    ranks = 2 if exchanges_heads else 1
    variants = usable_variants(config, sequence_ranks=ranks, exchanges_heads=exchanges_heads)
    if not variants[0].abilities.selects_queries:
        return variants[0].name
    halvings = config.encoder_layers if config.downsample else 0
    joint = sum(-(-count // 2**halvings) for count in tokens)
    described = []
    for name, length, factor, layers in (
        ("encoders", max(tokens), config.beta, config.encoder_layers),
        ("cross-modal", joint, config.fusion_beta, config.fusion_layers),
    ):
        if layers:
            choice = cheapest(variants, AttentionShape.of(config, length, factor), training=True)
            how = choice if len(variants) > 1 else f"{choice.variant.name}, as set"
            described.append(f"{name} ({length:,} tokens) {how}")
    return "; ".join(described)
