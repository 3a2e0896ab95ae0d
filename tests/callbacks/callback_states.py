"""States and step records for the tests of callbacks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from maestro_dist.callbacks.base import State, StepRecord
from maestro_dist.config.schema import Config
from maestro_dist.data.manifest import Manifest
from maestro_dist.parallel.mesh import Mesh
from maestro_dist.task import Labels, make_task
from maestro_dist.types import Modality

ALONE = Mesh(rank=0, world=1, data=1)
NAMES = ["acc", "eda"]


def make_state(config: dict[str, Any], mesh: Mesh = ALONE, *, engine: Any = None, steps: int = 20) -> State:
    """A run of `steps` steps, five an epoch, before its first step."""
    parsed = Config.model_validate(config)
    return State(
        config=parsed,
        mesh=mesh,
        engine=engine,
        task=make_task(parsed.task, Labels("classification", classes=["a", "b"], class_counts=[5, 5])),
        manifest=Manifest.model_construct(),
        modalities=[Modality(name, variates=1, rate_hz=4.0, steps=16) for name in NAMES],
        samples_per_epoch=38,
        steps_per_epoch=5,
        total_steps=steps,
        tokens_by_modality={"acc": 4, "eda": 4},
    )


def make_record(
    step: int,
    *,
    rank: int = 0,
    applied: bool = True,
    loss: float | None = None,
    bad: int = 0,
    bad_samples: Sequence[int] = (),
    bad_lines: Sequence[str] = (),
) -> StepRecord:
    """What rank `rank` saw in 0-based step `step`; numbers that differ by step and rank."""
    value = 1 / (3 + step + rank) if loss is None else loss
    return StepRecord(
        step=step,
        epoch=step // 5,
        loss=torch.tensor(value),
        norm=2.0 + step if applied else float("inf"),
        applied=applied,
        lr=0.1 / (1 + step),
        samples=8,
        tokens=100 + rank,
        budgets=torch.tensor([1.5 + step, 0.0 if rank == 0 else 4.0]),
        present=torch.tensor([3, 0 if rank == 0 else 2]),
        expert_load=torch.tensor([[[3 + step, 1], [0, rank]]]),
        data_s=0.01,
        forward_s=0.02,
        backward_s=0.06,
        optimizer_s=0.01,
        keys=[f"r{rank}s{step}n{number}" for number in range(10)],
        bad=list(bad_lines) or [f"shard 1 sample {number}: wrong shape" for number in range(bad)],
        bad_samples=list(bad_samples),
    )


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the callbacks said: not what another thread or library logged meanwhile."""
    return [record.getMessage() for record in caplog.records if record.name.startswith("maestro_dist.callbacks")]
