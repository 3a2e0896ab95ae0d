"""Experts specialise on modalities by themselves: no loss balances or separates them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from method_tasks import NAMES, STEPS, WORD, look, noise, train, untrained
from torch import Tensor


def products(samples: int, draw: torch.Generator) -> tuple[dict[str, Tensor], Tensor]:
    """Whether a word's two channels agree, in a pattern of each modality's own, is one bit; the class is all bits.

    The sign of a word is random, so that no linear map reads a bit: experts have to.
    """
    values, bits = noise(samples, draw), torch.randint(0, 2, (samples, len(NAMES)), generator=draw)
    patterns = torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, -1.0, 1.0, -1.0], [1.0, 1.0, -1.0, -1.0]])
    for j, name in enumerate(NAMES):
        sign = torch.randint(0, 2, (samples, STEPS // WORD, 1), generator=draw) * 2.0 - 1
        first = sign * patterns[j]
        both = torch.stack((first, first * (bits[:, j, None, None] * 2 - 1)), -1)
        values[name] = 0.3 * values[name] + both.view(samples, STEPS, 2)
    return values, bits @ torch.tensor([1, 2, 4])


def information(load: Tensor) -> float:
    """Mutual information in bits between expert and modality, from a table of tokens [M, E]."""
    joint = load.double() / load.sum()
    apart = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    return float(torch.where(joint > 0, joint * (joint / apart.clamp_min(1e-300)).clamp_min(1e-300).log2(), 0).sum())


def permuted(by_sample: Tensor, draw: torch.Generator) -> float:
    """The same with each (sample, modality) cell of [B, M, E] under a modality drawn without replacement."""
    samples, modalities, experts = by_sample.shape
    order = torch.randperm(samples * modalities, generator=draw)
    return information(by_sample.reshape(-1, experts)[order].view(samples, modalities, experts).sum(0))


def cells(model: Any, values: dict[str, Tensor], target: Tensor) -> Tensor:
    """Load [B, M, E] of the last cross-modal layer, one sample at a time."""
    return torch.stack(
        [
            look(model, {name: values[name][b : b + 1] for name in NAMES}, target[b : b + 1])["expert_load"][-1]
            for b in range(len(target))
        ]
    )


@pytest.mark.parametrize("balance", ["none", "bias"])
def test_experts_specialise(balance: str) -> None:
    bare = {"encoder_layers": 0, "head": "pooled", "downsample": False}
    options: dict[str, Any] = {**bare, "outputs": 8, "moe": {"experts": 4, "balance": balance}}
    model = train(products, seed=3, steps=60, **options)
    values, target = products(24, torch.Generator().manual_seed(99))
    assert (look(model, values, target)["logits"].argmax(1) == target).float().mean() > 0.8
    load = cells(model, values, target)
    assert int(load.sum()) == 24 * len(NAMES) * STEPS // WORD
    draw = torch.Generator().manual_seed(5)
    control = max(permuted(load, draw) for _ in range(200))
    before = information(cells(untrained(3, **options), values, target).sum(0))
    assert information(load.sum(0)) > 2 * control
    assert information(load.sum(0)) > 2 * before
