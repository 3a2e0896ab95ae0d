"""When checkpoints are written, with a real engine and real files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from callback_states import ALONE, make_record, make_state
from torch import Tensor, nn

from maestro_dist.callbacks.base import Callback, Callbacks, State, StepRecord
from maestro_dist.callbacks.checkpointing import Checkpointing, callback_states, resume, run_metadata
from maestro_dist.callbacks.validation import Validation
from maestro_dist.checkpoint import Saver, newest
from maestro_dist.config.schema import Config
from maestro_dist.engine.engine import Engine, destroy_process_group, init_process_group
from maestro_dist.errors import RunError
from maestro_dist.evaluation import Evaluation, Scenario


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, batch: Tensor, step: int = 0) -> dict[str, Tensor]:
        return {"logits": self.layer(batch)}


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    init_process_group("cpu", 60)
    model = Model()
    engine = Engine(model, torch.optim.AdamW(model.parameters(), lr=0.1), Config(), ALONE)
    yield engine
    engine.close()
    destroy_process_group()


def evaluate() -> Evaluation:
    return Evaluation("validation", 10, ["accuracy"], [Scenario(0.0, 0, {"accuracy": 0.5})])


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (folder / "checkpoints").iterdir())


class Told(Callback):
    """Keeps the steps of complete checkpoints and counts its own steps in its state."""

    def __init__(self) -> None:
        self.complete: list[int] = []
        self.steps = 0

    def on_step(self, state: State, record: StepRecord) -> None:
        self.steps += 1

    def on_checkpoint(self, state: State, step: int) -> None:
        self.complete.append(step)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.steps = saved["steps"]


def drive(state: State, saver: Saver, until: int, saved: dict[str, Any] | None = None) -> Told:
    told = Told()
    callbacks = Callbacks([Validation(evaluate, None), told, Checkpointing(saver)])
    if saved is not None:
        callbacks.load_state_dict(callback_states(saved))
    state.callbacks = callbacks
    callbacks.on_start(state)
    while state.step < until:
        state.step += 1
        state.position = 8 * state.step
        callbacks.on_step(state, make_record(state.step - 1))
    callbacks.on_end(state)
    return told


def test_saves_at_validations_every_n_steps_and_at_the_end(engine: Engine, tmp_path: Path) -> None:
    saver = Saver(str(tmp_path), ALONE, attempt=1, keep_last=100)
    state = make_state({"checkpoint": {"every_steps": 4}}, engine=engine)
    told = drive(state, saver, until=9)
    assert steps(tmp_path) == told.complete == [4, 5, 8, 9]
    found = newest(str(tmp_path))
    assert found is not None
    assert (found.step, found.position) == (9, 72)
    assert found.metadata == run_metadata(state)
    assert found.metadata["best_step"] == 5

    again = make_state({"checkpoint": {"every_steps": 4}}, engine=engine)
    resume(again, found.step, found.position, found.metadata)
    before = (tmp_path / "checkpoints/step-000000009/checkpoint.json").stat().st_mtime_ns
    told = drive(again, Saver(str(tmp_path), ALONE, attempt=2, keep_last=100), until=12, saved=found.metadata)
    assert (told.steps, told.complete) == (12, [10, 12])
    assert again.best_step == 5
    assert steps(tmp_path) == [4, 5, 8, 9, 10, 12]
    assert (tmp_path / "checkpoints/step-000000009/checkpoint.json").stat().st_mtime_ns == before


def test_a_lost_run_may_not_write(engine: Engine, tmp_path: Path) -> None:
    def fence() -> None:
        raise RunError("another driver holds the run")

    checkpointing = Checkpointing(Saver(str(tmp_path), ALONE, attempt=1, keep_last=1), fence)
    state = make_state({}, engine=engine)
    checkpointing.on_start(state)
    state.step = 5
    checkpointing.on_step(state, make_record(4))
    with pytest.raises(RunError, match="another driver"):
        checkpointing.on_end(state)
    assert newest(str(tmp_path)) is None
