"""What ranks must have in common whatever their samples are: the order in which gradients become ready.

And what a device must never be asked for in the middle of a step: a number that the host waits for.
"""

from __future__ import annotations

import contextlib
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from random_models import batch, modalities, model_and_task, random_batch
from torch.utils._python_dispatch import TorchDispatchMode

from maestro_dist.model import Trunk
from maestro_dist.task import Task
from maestro_dist.types import Batch

CONFIGURATIONS, BATCHES = 60, 6


def order(model: Trunk, task: Task, given: Batch) -> list[str]:
    """Names of the parameters in the order in which their gradients become ready."""
    ready: list[str] = []
    hooks = [
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: ready.append(name))
        for name, parameter in model.named_parameters()
    ]
    task.loss(model(given, 3), given).sum().backward()
    for hook in hooks:
        hook.remove()
    model.zero_grad(set_to_none=True)
    return ready


@pytest.mark.parametrize("part", range(4))
def test_gradients_become_ready_in_one_order_whatever_is_missing(part: int) -> None:
    for seed in range(part, CONFIGURATIONS, 4):
        draw = random.Random(seed)
        sensors = modalities(draw)
        model, task = model_and_task(draw, sensors)
        whole = batch(sensors, np.ones((4, len(sensors)), bool), 0.0, seed)
        expected = order(model, task, whole)
        assert len(expected) == len(set(expected))  # each once
        for _ in range(BATCHES):
            given = random_batch(draw, sensors)
            assert order(model, task, given) == expected, (seed, given.present.tolist())


class _Lifted(TorchDispatchMode):
    """Counts tensors made from Python numbers or lists: on another device each is a copy that the host waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += func is torch.ops.aten.lift_fresh.default
        return func(*args, **(kwargs or {}))


def test_the_host_reads_and_copies_nothing_in_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """On torch's device without memory a value cannot be read: whatever waits for one raises."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)  # it does not know this device
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    for seed in range(12):
        draw = random.Random(seed)
        sensors = modalities(draw)
        if seed % 2:  # so many words that their time codes are made anew at each step
            sensors[0] = replace(sensors[0], steps=16384)
        model, task = model_and_task(draw, sensors)
        model.to("meta")
        given = random_batch(draw, sensors)
        given = given.map(lambda tensor: tensor.to("meta"))
        for step in range(2):  # what is kept on the device is copied there once
            with _Lifted() as lifted:
                task.loss(model(given, step), given).sum().backward()
        assert lifted.count == 0, seed


def test_a_modality_that_is_hidden_whole_does_not_count_in_the_auxiliary_loss() -> None:
    """Present, but nothing of it observed: the loss, and each gradient, is that of a sample that lacks it."""
    draw = random.Random(0)
    sensors = modalities(draw)
    for seed in range(40):
        model, task = model_and_task(random.Random(seed), sensors)
        if getattr(model, "modality_heads", None) is not None:
            break
    else:
        raise AssertionError("no model with heads among the seeds")
    present = np.ones((3, len(sensors)), bool)
    hidden = batch(sensors, present, 0.0, 1)
    hidden.values[sensors[0].name][1] = torch.nan
    lacking = batch(sensors, present & ~(np.arange(3) == 1)[:, None] | (np.arange(len(sensors)) > 0), 0.0, 1)
    for name, rows in lacking.rows.items():
        lacking.values[name] = hidden.values[name][rows]
    model.eval()
    torch.testing.assert_close(task.loss(model(hidden), hidden), task.loss(model(lacking), lacking))
