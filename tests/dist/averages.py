"""Checks of the average of the weights at a ZeRO stage: against a slow one, with and without it, over a restart."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from test_dist_engine import Oracle, accumulate, full, make_config, make_engine, worst
from torch import Tensor
from toy import stream

from maestro_dist.checkpoint import Saver, find, full_weights, restore
from maestro_dist.engine.engine import Engine
from maestro_dist.engine.partition import averaged, optimizer_state, owned_slices
from maestro_dist.types import Batch

DECAY, SAVED = 0.3, 4
CASES: list[tuple[int, int, dict[str, Any]]] = [
    (1, 3, {"lr": 1e-3}),
    (3, 2, {"lr": 1e-3}),
    (2, 1, {"optimizer": "sgd", "momentum": 0.9, "lr": 0.1}),
]
"""ZeRO stage, another that reads its checkpoint, the optimizer."""


def batches() -> list[tuple[Batch, int, bool]]:
    """Eight global batches with their accumulation, the third of them poisoned."""
    found = [(batch, accumulation, True) for batch, accumulation in stream(20) + stream(30)[:2]]
    bad = copy.deepcopy(found[0][0])
    bad.values["acc"][-1] = math.nan
    return [*found[:2], (bad, 1, False), *found[2:]]


class SlowAverage:
    """Plain torch, and an average of its weights written out number by number (as arrays, a step at a time)."""

    def __init__(self, optim: dict[str, Any]) -> None:
        self.oracle = Oracle(make_config(1, **optim))
        self.averages: dict[str, Tensor] = {}
        self.steps = 0

    def step(self, batch: Batch, lr: float) -> None:
        self.oracle.step(batch, lr)
        decay = min(DECAY, (1 + self.steps) / (10 + self.steps)) if self.steps else 0.0
        self.steps += 1
        for name, weight in self.oracle.model.named_parameters():
            old = self.averages.get(name, torch.zeros_like(weight))
            self.averages[name] = decay * old + (1 - decay) * weight.detach()


def owned(engine: Engine) -> dict[tuple[str, str], Tensor]:
    return {(s.name, kind): t.clone() for s in owned_slices(engine) for kind, t in s.tensors.items()}


def assert_same(one: dict[tuple[str, str], Tensor], other: dict[tuple[str, str], Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [key for key in one if not torch.equal(one[key], other[key])] == []


def logits(engine: Engine, batch: Batch) -> Tensor:
    with torch.no_grad():
        return engine(batch)["logits"].clone()


def check_averages(rank: int, ranks: int, folder: str) -> list[float]:
    """Largest difference from the slow average in each of `CASES`; the rest is asserted here."""
    return [check_case(rank, ranks, f"{folder}/{number}", *case) for number, case in enumerate(CASES)]


def check_case(rank: int, ranks: int, folder: str, stage: int, other: int, optim: dict[str, Any]) -> float:
    """Train with an average (looking at it at each step), save in the middle. Largest difference from the slow one."""
    lr, probe = optim["lr"], stream(90)[0][0]
    engine, slow = make_engine(make_config(stage, ema=DECAY, **optim), rank, ranks), SlowAverage(optim)
    saver = Saver(folder, engine.mesh, attempt=1, keep_last=2)
    with averaged(engine):  # before the first step there is none
        assert_same(owned(engine), owned(engine))
    difference, at_save = 0.0, {}
    for step, (batch, accumulation, good) in enumerate(batches()):
        accumulate(engine, batch, accumulation)
        assert engine.step(lr).applied == good
        if good:
            slow.step(batch, lr)
        state, seen = owned(engine), logits(engine, probe)
        with averaged(engine):
            found = full(engine, "weights")
            difference = max(difference, worst(found, slow.averages))
            shown = logits(engine, probe)
        assert_same(owned(engine), state)
        assert torch.equal(logits(engine, probe), seen)
        if step == SAVED:
            saver.save(engine, step=step, position=0, epoch=0, metadata={})
            saver.wait()
            at_save, state_at_save, shown_at_save = found, state, shown
            assert not torch.equal(seen, shown)
    trained = owned(engine)
    engine.close()
    torch.distributed.barrier()

    info = find(folder, SAVED)
    assert info.averaged
    weights = full_weights(info)
    own = full_weights(info, averaged=False)
    assert all(torch.equal(weights[name], at_save[name]) for name in at_save)
    assert any(not torch.equal(weights[name], own[name]) for name in at_save)

    again = make_engine(make_config(stage, ema=DECAY, **optim), rank, ranks)
    restore(again, info)
    assert optimizer_state(again)[1] == SAVED  # one of five was skipped
    assert_same(owned(again), state_at_save)
    for batch, accumulation, _ in batches()[SAVED + 1 :]:
        accumulate(again, batch, accumulation)
        again.step(lr)
    assert_same(owned(again), trained)
    again.close()

    without = make_engine(make_config(stage, **optim), rank, ranks)
    for batch, accumulation, _ in batches():
        accumulate(without, batch, accumulation)
        without.step(lr)
    assert_same(owned(without), {key: value for key, value in trained.items() if key[1] != "average"})
    without.close()

    elsewhere = make_engine(make_config(other, ema=DECAY, **optim), rank, ranks)
    restore(elsewhere, info)
    with averaged(elsewhere):
        found = full(elsewhere, "weights")
        assert all(torch.equal(found[name], at_save[name]) for name in at_save)
        assert torch.equal(logits(elsewhere, probe), shown_at_save)
    elsewhere.close()
    return difference
