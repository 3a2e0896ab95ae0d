"""Abilities of each variant and each kernel of attention. They are checked before a run starts.

`tests/model/test_model_variants.py` fails if a variant has no entry here.
"""

from __future__ import annotations

from typing import NamedTuple

from maestro_dist.config.model import ModelConfig


class VariantAbilities(NamedTuple):
    """Abilities of a variant of attention.

    selects_queries  it attends with a few queries only, so that budgets have an effect
    shares_sequence  ranks can each hold a slice of a sequence (`mesh.sequence_method: sparse`)
    exchanges_heads  it gives a context for every token, which `mesh.sequence_method: ulysses` exchanges
    """

    selects_queries: bool
    shares_sequence: bool
    exchanges_heads: bool


class KernelAbilities(NamedTuple):
    """Abilities of a kernel for the selected queries.

    drops_probabilities  it can drop attention probabilities in training
    shares_sequence      it gives the log-sum-exp of the scores, with which the ranks' results are merged
    """

    drops_probabilities: bool
    shares_sequence: bool


VARIANT_ABILITIES = {
    "dense": VariantAbilities(selects_queries=False, shares_sequence=False, exchanges_heads=True),
    "plain": VariantAbilities(selects_queries=True, shares_sequence=True, exchanges_heads=True),
    "rows": VariantAbilities(selects_queries=True, shares_sequence=True, exchanges_heads=False),
    "absorbed": VariantAbilities(selects_queries=True, shares_sequence=True, exchanges_heads=False),
}
KERNEL_ABILITIES = {
    "tiles": KernelAbilities(drops_probabilities=True, shares_sequence=True),
    "fused": KernelAbilities(drops_probabilities=False, shares_sequence=False),
}


def allowed_variants(model: ModelConfig) -> tuple[str, ...]:
    """The variants that the configuration names: one, or all sparse ones if `model.attention_algorithm` is auto."""
    if model.attention == "dense":
        return ("dense",)
    if model.attention_algorithm != "auto":
        return (model.attention_algorithm,)
    return tuple(name for name, can in VARIANT_ABILITIES.items() if can.selects_queries)


def usable_variants(model: ModelConfig, *, sequence_ranks: int, exchanges_heads: bool) -> tuple[str, ...]:
    """The allowed variants that work if `sequence_ranks` ranks share the time axis; empty if no variant works.

    `exchanges_heads`: they exchange heads (Ulysses), instead of sharing each sequence.
    """
    allowed = allowed_variants(model)
    if sequence_ranks == 1:
        return allowed
    if exchanges_heads:
        return tuple(name for name in allowed if VARIANT_ABILITIES[name].exchanges_heads)
    return tuple(name for name in allowed if VARIANT_ABILITIES[name].shares_sequence)


def selects_queries(model: ModelConfig) -> bool:
    """Whether the configured attention attends with a few queries only, so that budgets have an effect."""
    return all(VARIANT_ABILITIES[name].selects_queries for name in allowed_variants(model))
