"""`torch.autograd.gradcheck` in float64 on the experts' functions, which have a hand-written backward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from maestro_dist.model import router
from maestro_dist.model.grouped import GroupedNetwork, Groups
from maestro_dist.model.moe import Combine, Dispatch, sort_by_expert


def leaf(*shape: int, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=draw).requires_grad_()


def check(function: Any, *inputs: Any) -> None:
    assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize("counts", [[3, 0, 2], [0, 0, 5], [0, 0, 0], [40, 1, 0]])
def test_grouped_network(counts: list[int]) -> None:
    rows = sum(counts) + 2  # two of them in no group
    groups = Groups.of(torch.tensor(counts))
    weights = leaf(3, 2, 3, seed=1), leaf(3, 3, 2, seed=2)
    check(lambda *tensors: GroupedNetwork.apply(*tensors, groups), leaf(rows, 2), *weights)


@pytest.mark.parametrize("experts", [2, 5, 14])
@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("tile", [1 << 18, 30])
def test_gates(monkeypatch: pytest.MonkeyPatch, experts: int, top_k: int, balanced: bool, tile: int) -> None:
    monkeypatch.setattr(router, "_TILE", tile)  # 30: two of 14 experts' tokens at a time
    bias = torch.linspace(0, 1, experts, dtype=torch.float64) if balanced else None
    weight = leaf(experts, 3, seed=1)
    check(lambda *tensors: router.Gates.apply(*tensors, bias, top_k, torch.float64)[0], leaf(5, 3), weight)


@pytest.mark.parametrize("top_k", [1, 3])
def test_dispatch_and_combine(top_k: int) -> None:
    expert = torch.tensor([2, 0, 1, 1, 3, 0])
    order, place = sort_by_expert(expert, 3)
    tokens = 6 // top_k
    check(Dispatch.apply, leaf(tokens, 2), order, place, top_k)
    check(Combine.apply, leaf(6, 2), leaf(tokens, top_k, seed=1), order, place)
