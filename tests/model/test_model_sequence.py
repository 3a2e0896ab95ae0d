"""The model on tokens sharded by time equals the model on the whole, in value and in gradient.

The ranks are threads of this process, in lockstep, and their operations are plain differentiable arithmetic on each
other's tensors: what is tested is the model's own code around the operations of `SequenceContext`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from model_samples import MODALITIES, make_batch, make_model
from torch import Tensor

Cuts = dict[str, list[int]]
PRESENT = torch.tensor([[1, 1, 1], [0, 1, 0], [1, 0, 1], [0, 0, 0], [0, 1, 1]]).bool()


class Board:
    """Where the ranks of one group lay their tensors out for each other."""

    def __init__(self, size: int) -> None:
        self.size, self.slots, self.barrier = size, [torch.empty(0)] * size, threading.Barrier(size, timeout=60)

    def exchange(self, rank: int, tensor: Tensor) -> list[Tensor]:
        self.slots[rank] = tensor
        self.barrier.wait()
        everything = list(self.slots)
        self.barrier.wait()
        return everything


class Lockstep:
    """`SequenceContext` between threads."""

    head_exchange = None

    def __init__(self, board: Board, rank: int, cuts: Cuts) -> None:
        self.board, self.rank, self.size, self.cuts = board, rank, board.size, cuts
        self.exchange: Callable[[Tensor], list[Tensor]] = lambda tensor: board.exchange(rank, tensor)

    def slice(self, name: str, steps: int) -> tuple[int, int]:
        assert steps == self.cuts[name][self.rank + 1] - self.cuts[name][self.rank]
        return self.cuts[name][self.rank], self.cuts[name][-1]

    def all_reduce_sum(self, x: Tensor) -> Tensor:
        return torch.stack(self.exchange(x)).sum(0)

    def all_reduce_max(self, x: Tensor) -> Tensor:
        return torch.stack(self.exchange(x.detach())).amax(0)

    def all_gather(self, x: Tensor) -> Tensor:
        parts = self.exchange(x.detach())
        assert len({part.shape for part in parts}) == 1
        return torch.cat(parts, -1)

    def exclusive_prefix_sum(self, x: Tensor) -> Tensor:
        return torch.stack([torch.zeros_like(x), *self.exchange(x.detach())[: self.rank]]).sum(0)

    def halo_exchange(self, x: Tensor, width: int) -> Tensor:
        parts = self.exchange(x)
        start = sum(part.shape[1] for part in parts[: self.rank])
        return F.pad(torch.cat(parts, 1), (0, 0, width, width))[:, start : start + x.shape[1] + 2 * width]

    def merge_attention(self, out: Tensor, total: Tensor) -> Tensor:
        sizes = torch.stack(self.exchange(total))
        return (sizes.softmax(0)[..., None] * torch.stack(self.exchange(out))).sum(0)


LOADS = {"expert_load", "expert_load_by_sample"}
"""Outputs of the local tokens; the others are of all."""
CUTS: dict[str, Cuts] = {
    "two": {"acc": [0, 32, 64], "bvp": [0, 64, 93], "temp": [0, 8, 8]},
    "three": {"acc": [0, 32, 32, 64], "bvp": [0, 0, 32, 93], "temp": [0, 0, 8, 8]},
}
DEEP: dict[str, Any] = {"head_hidden": 2, "pooling": "attention"}
OPTIONS: list[dict[str, Any]] = [
    {},
    {
        "stem": {"channels": 4, "kernel": 5},
        "summary": "statistics",
        "summary_bands": 3,
        "head_hidden": 2,
        "normalize": "window",
    },
    {"stem": {"channels": 4, "kernel": 5, "layers": 3, "pool": 2}, "summary": "statistics", "summary_bins": 3},
    {"encoder_layers": 2, "budget": "reallocate", "budget_inputs": "content", "moe": {"experts": 3, "top_k": 2}},
    {
        "summary": "level",
        "encoder_layers": 0,
        "fusion_layers": 2,
        "head": "pooled",
        "head_hidden": 2,
        "pooling": "attention",
    },
    {"downsample": False, "embedding": "table", "moe": {"experts": 0}},
]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_sharded_by_time(options: dict[str, Any], cuts: str, training: bool) -> None:
    options = {"dropout": 0.0, "beta": 1.5, "fusion_beta": 2.0, "sample_factor": 1.5, **options}
    batch = make_batch(PRESENT)
    plan = CUTS[cuts]
    size = len(plan["acc"]) - 1

    whole = make_model(**options).double().train(training)
    expected = whole(batch, 4)
    F.cross_entropy(expected["logits"], batch.target).backward()

    board = Board(size)
    contexts = [Lockstep(board, rank, plan) for rank in range(size)]
    models = [make_model(**options, sequence=context).double().train(training) for context in contexts]

    def run(rank: int) -> dict[str, Tensor]:
        try:
            values = {m.name: batch.values[m.name][:, plan[m.name][rank] : plan[m.name][rank + 1]] for m in MODALITIES}
            return dict(models[rank](replace(batch, values=values), 4))
        except BaseException:
            board.barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        outputs = list(pool.map(run, range(size)))
    for output in outputs:
        for name in set(output) - LOADS:
            torch.testing.assert_close(output[name], expected[name], rtol=1e-9, atol=1e-10)
    for name in LOADS & set(expected):
        assert torch.equal(sum(output[name] for output in outputs), expected[name])

    sum(F.cross_entropy(output["logits"], batch.target) / size for output in outputs).backward()
    for name, parameter in whole.named_parameters():
        parts = [dict(model.named_parameters())[name].grad for model in models]
        assert torch.allclose(sum(parts), parameter.grad, rtol=1e-7, atol=1e-10), name
