"""Each attention variant can do what is declared of it, and the checks before a start agree with the model."""

from __future__ import annotations

import itertools
from typing import get_args

import pytest
import torch

from maestro_dist.config import attention as declared
from maestro_dist.config.model import ModelConfig
from maestro_dist.errors import ConfigError
from maestro_dist.model import OneProcess
from maestro_dist.model.attention import VARIANTS, Attention, AttentionShape, AttentionVariant
from maestro_dist.model.attention.kernel import AttendOptions, attend
from maestro_dist.model.attention.variant import SequenceSharding

SHAPE = AttentionShape(100, 16, 2, 10, 8)


class Two(OneProcess):
    """A context that claims a second rank."""

    size = 2


def overrides(variant: type[AttentionVariant], method: str) -> bool:
    return getattr(variant, method) is not getattr(AttentionVariant, method)


def test_every_variant_and_kernel_is_declared() -> None:
    assert VARIANTS.keys() == declared.VARIANT_ABILITIES.keys()
    forms = set(get_args(ModelConfig.model_fields["attention_algorithm"].annotation)) - {"auto"}
    kernels = set(get_args(ModelConfig.model_fields["attention_kernel"].annotation)) - {"auto"}
    assert forms == {name for name, variant in VARIANTS.items() if variant.abilities.selects_queries}
    assert kernels == declared.KERNEL_ABILITIES.keys()


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_implements_what_is_declared_of_it(name: str) -> None:
    variant = VARIANTS[name]
    assert variant.name == name
    assert overrides(type(variant), "context") == variant.abilities.exchanges_heads
    assert overrides(type(variant), "communication") == variant.abilities.shares_sequence
    assert (variant.arrays_exchanged is not None) == variant.abilities.exchanges_heads
    assert (variant.attended_queries(SHAPE) < SHAPE.length) == variant.abilities.selects_queries
    assert variant.operations(SHAPE, training=True) > variant.operations(SHAPE, training=False) > 0
    assert variant.memory(SHAPE, keep_attention_weights=None, exchanges_heads=False).kept >= 0
    if variant.abilities.shares_sequence:
        assert variant.communication(SHAPE, SequenceSharding(2, 4, 1)).all_reduce > 0


def test_the_fused_kernel_gives_nothing_to_merge() -> None:
    query, key = torch.randn(1, 2, 3, 4), torch.randn(1, 2, 5, 4)
    for name, kernel in declared.KERNEL_ABILITIES.items():
        out, total = attend(query, key, key, AttendOptions(fused=name == "fused"))
        assert (total is not None) == kernel.shares_sequence
        torch.testing.assert_close(out, (query @ key.transpose(2, 3)).softmax(3) @ key)


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_layer_refuses_exactly_what_the_check_refuses(ranks: int) -> None:
    for attention, form in itertools.product(("sparse", "dense"), ("auto", *declared.VARIANT_ABILITIES)):
        if form == "dense":
            continue
        config = ModelConfig.model_validate({"attention": attention, "attention_algorithm": form, "dropout": 0.0})
        usable = declared.usable_variants(config, sequence_ranks=ranks, exchanges_heads=False)
        context = Two() if ranks == 2 else OneProcess()
        if usable:
            layer = Attention("layer", config, 5.0, 0, context)
            assert tuple(variant.name for variant in layer.variants) == usable
        else:
            with pytest.raises(ConfigError, match="cannot share a sequence"):
                Attention("layer", config, 5.0, 0, context)
