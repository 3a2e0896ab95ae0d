"""`fit`: the training loop and the training step."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import closing
from typing import TYPE_CHECKING, cast

import torch

from maestro_dist.callbacks.base import Callback, State, StepRecord
from maestro_dist.optim import learning_rate, momentum
from maestro_dist.types import Batch, Output

if TYPE_CHECKING:
    from maestro_dist.model import Maestro

Batches = Callable[[int, int], Generator[Batch, None, None]]


def fit(state: State, batches: Batches, callbacks: Callback) -> None:
    """Train from the current step to the last one, or until a callback sets `state.stop`.

    `batches(position, end)` yields the micro-batches of this rank between two positions, in samples of the run.
    """
    state.callbacks = callbacks
    callbacks.on_start(state)
    if state.step < state.total_steps and not state.stop:
        with closing(batches(state.position, end_position(state))) as stream:
            state.engine.train()
            while state.step < state.total_steps and not state.stop:
                callbacks.on_step(state, train_step(state, stream))
    callbacks.on_end(state)


def train_step(state: State, stream: Generator[Batch, None, None]) -> StepRecord:
    """One optimizer step: forward and backward passes over the micro-batches of a global batch, then the update."""
    engine, clock, sums, communicated = state.engine, _Clock(), _StepSums(state), state.communicated_bytes
    while True:
        batch = next(stream)
        clock.lap("data")
        moved = engine.place(batch)
        output = engine(moved, batch.step)
        losses = state.task.loss(output, moved)
        loss = engine.scale_loss(losses, moved)
        clock.lap("forward")
        engine.backward(loss, batch.last)
        clock.lap("backward")
        sums.add(moved, output, losses)
        if batch.last:
            break
    at = state.config.optim, state.step, state.total_steps
    lr = learning_rate(*at)
    result = engine.step(lr, momentum(*at))
    if result.applied and state.config.model.moe.balance == "bias" and sums.expert_load.dim() == 3:
        cast("Maestro", engine.module).update_balance(engine.sum_over_ranks(sums.expert_load))
    clock.lap("optimizer")
    record = StepRecord(
        step=state.step,
        epoch=batch.epoch,
        loss=sums.loss / batch.global_samples,
        norm=result.norm,
        applied=result.applied,
        lr=lr,
        samples=batch.global_samples,
        tokens=sums.tokens,
        budgets=sums.budgets,
        present=sums.present,
        expert_load=sums.expert_load,
        communicated_bytes=state.communicated_bytes - communicated,
        data_s=clock["data"],
        forward_s=clock["forward"],
        backward_s=clock["backward"],
        optimizer_s=clock["optimizer"],
        keys=sums.keys,
        bad=sums.bad,
        bad_samples=sums.bad_samples,
    )
    state.step += 1
    state.position = batch.position
    return record


def end_position(state: State) -> int:
    """Number of samples consumed after the last step."""
    epochs, steps = divmod(state.total_steps, state.steps_per_epoch)
    batch = state.config.optim.global_batch
    return epochs * state.samples_per_epoch + min(steps * batch, state.samples_per_epoch)


class _StepSums:
    """Sums over the micro-batches of a step. They stay on the device."""

    def __init__(self, state: State) -> None:
        self._tokens_by_modality = state.tokens_by_modality
        self.loss = torch.zeros((), device=state.engine.device)
        self.budgets = self.present = torch.zeros(len(state.modalities), device=state.engine.device)
        self.expert_load = torch.zeros((), dtype=torch.int64, device=state.engine.device)
        self.tokens = 0
        self.keys: list[str] = []
        self.bad: list[str] = []
        self.bad_samples: list[int] = []

    def add(self, batch: Batch, output: Output, losses: torch.Tensor) -> None:
        self.loss = self.loss + losses.detach().sum()
        self.present = self.present + output.get("observed", batch.present).sum(0)
        if "budgets" in output:
            self.budgets = self.budgets + output["budgets"].sum(0)
        if "expert_load" in output:
            self.expert_load = self.expert_load + output["expert_load"]
        self.tokens += sum(rows.shape[0] * self._tokens_by_modality[name] for name, rows in batch.rows.items())
        self.keys += batch.keys
        self.bad += batch.bad
        self.bad_samples += batch.bad_samples


class _Clock(dict[str, float]):
    """Seconds of host time by phase."""

    def __init__(self) -> None:
        super().__init__()
        self._last = time.perf_counter()

    def lap(self, phase: str) -> None:
        now = time.perf_counter()
        self[phase] = self.get(phase, 0.0) + now - self._last
        self._last = now
