"""Training metrics: kept on the device in each step, summed over ranks every n steps, logged for every step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from maestro_dist.callbacks.base import Callback, State, StepRecord
from maestro_dist.tracking.throughput import Meter, memory_bytes

if TYPE_CHECKING:
    from torch import Tensor

    from maestro_dist.tracking import MetricLog


_MOST_TRACKED = 64
"""Up to this many modalities, or experts of a layer, have a metric each in MLflow."""
_MOST_TRACKED_TABLE = 512
"""Up to this many pairs of expert and modality, over all layers, have a metric each in MLflow."""
_MOST_LOCAL = 20_000
"""Up to this many pairs of expert and modality, over all layers, are kept at all."""


@dataclass(frozen=True)
class Window:
    """The steps since the last sum over ranks. All fields but `rates` and `memory` are the same on all ranks.

    steps, losses  optimizer steps (counted from 1) and the mean loss of the global batch of each
    bad            number of samples skipped as bad; each of the ranks that share a sequence counts them
    rates, memory  throughput (see `Meter.read`), and memory in bytes, of this rank
    """

    steps: list[int]
    losses: list[float]
    lr: float
    rates: dict[str, float]
    memory: int
    bad: int = 0


class Metrics(Callback):
    """Logs loss, gradient norm and learning rate of every step; budgets, expert load and throughput of some.

    One small all-reduce every `tracking.every_steps` steps, at the end of an epoch and where a checkpoint is due;
    nothing waits for the device in between. What is logged depends on the step alone, except throughput, so a resumed
    run logs the same numbers: float32 numbers are summed in float64, where their order does not matter.
    """

    def __init__(self, log: MetricLog | None) -> None:
        """`log` on rank 0, None elsewhere."""
        self.latest: Window | None = None
        self._log = log
        self._records: list[StepRecord] = []
        self._meter = Meter()

    def on_step(self, state: State, record: StepRecord) -> None:
        """Keep the step. Log all kept steps when it is due."""
        self._records.append(record)
        seconds = record.data_s + record.forward_s + record.backward_s + record.optimizer_s
        self._meter.add(record.samples, seconds, record.data_s)
        if self.due(state):
            self.flush(state, details=True)

    def on_end(self, state: State) -> None:
        """Log the remaining steps."""
        self.flush(state)

    def add(self, state: State, metrics: dict[str, float]) -> None:
        """Log further metrics of this step, where there is a log."""
        if self._log is not None:
            self._log.log(state.step, metrics)

    @staticmethod
    def due(state: State) -> bool:
        """Whether losses are summed over ranks after this step. It depends on the step alone."""
        checkpoint = state.config.checkpoint.every_steps
        return (
            state.step % state.config.tracking.every_steps == 0
            or state.at_epoch_end
            or (checkpoint is not None and state.step % checkpoint == 0)
        )

    def flush(self, state: State, *, details: bool = False) -> None:
        """Log the kept steps now; all ranks call it. `details` adds budgets and expert load of the last step."""
        if not self._records:
            return
        records, self._records = self._records, []
        sums = _sum_over_ranks(records, details, self._meter.data_s, state)
        count = len(records)
        losses = [loss / state.mesh.sequence for loss in sums[:count]]
        bad, (tokens, data_s), rest = sums[count : 2 * count], sums[2 * count : 2 * count + 2], sums[2 * count + 2 :]
        rates = self._meter.read(tokens / state.mesh.sequence, data_s / state.mesh.world)
        memory = memory_bytes(records[-1].loss.device)
        self.latest = Window([r.step + 1 for r in records], losses, records[-1].lr, rates, memory, int(sum(bad)))
        if self._log is None:
            return
        for record, loss, lost in zip(records, losses, bad, strict=True):
            local: dict[str, float] = {}
            metrics = {"train/loss": loss, "train/grad_norm": record.norm, "train/lr": record.lr}
            if not record.applied:
                metrics["train/skipped"] = 1.0
            if lost:
                metrics["data/bad_samples"] = lost / state.mesh.sequence
            if record is records[-1]:
                metrics |= rates | {"system/memory_gb": memory / 1e9, "train/epoch": state.step / state.steps_per_epoch}
                if state.groups:
                    metrics["system/collectives_mb"] = record.communicated_bytes / 1e6
                if details:
                    tracked, local = _details(rest, record, state)
                    metrics |= tracked
            self._log.log(record.step + 1, metrics, local)


def _sum_over_ranks(records: list[StepRecord], details: bool, data_s: float, state: State) -> list[float]:
    """Sums over all ranks: loss of each step, bad samples of each step, tokens, seconds of waiting, and details."""
    import torch
    from torch import distributed as dist

    last = records[-1]
    host = [*(len(record.bad) for record in records), sum(record.tokens for record in records), data_s]
    parts: list[Tensor] = [
        torch.stack([record.loss for record in records]),
        last.loss.new_tensor(host, dtype=torch.double),
    ]
    if details:
        parts += [last.budgets, last.present, last.expert_load.flatten()]
    vector = torch.cat([part.double() for part in parts])
    if state.mesh.world > 1:
        dist.all_reduce(vector)
    return vector.tolist()


def _details(sums: list[float], record: StepRecord, state: State) -> tuple[dict[str, float], dict[str, float]]:
    """Mean budget of each modality where it is present, and the share of tokens that each expert got.

    Shares over all modalities are in every record; shares by modality only at the end of an epoch. Returns the metrics
    for MLflow, and those that are too many for it (it draws a chart for each) and stay in the metrics file, for
    pictures.
    """
    names = [modality.name for modality in state.modalities]
    budgets, present = np.split(np.array(sums[: 2 * len(names)]), 2)
    there = np.flatnonzero(present)
    found = {f"budgets/{names[index]}": float(budgets[index] / present[index]) for index in there}
    many = _Many()
    many.add(found, "budgets", few=len(names) <= _MOST_TRACKED)
    if record.expert_load.dim() != 3:
        return many.tracked, many.local
    layers, modalities, experts = record.expert_load.shape
    load = np.array(sums[2 * len(names) :]).reshape(layers, modalities, experts)
    for layer in range(layers):
        prefix = f"experts/layer{layer}"
        many.add(_shares(prefix, load[layer].sum(axis=0)), prefix, few=experts <= _MOST_TRACKED)
        if state.at_epoch_end and load.size <= _MOST_LOCAL:
            by_name = zip(names, load[layer], strict=True)
            rows = {key: share for name, row in by_name for key, share in _shares(f"{prefix}/{name}", row).items()}
            many.add(rows, few=load.size <= _MOST_TRACKED_TABLE)
    return many.tracked, many.local


class _Many:
    """Few numbers are logged one by one; of many numbers only the smallest and largest."""

    def __init__(self) -> None:
        self.tracked: dict[str, float] = {}
        self.local: dict[str, float] = {}

    def add(self, found: dict[str, float], name: str = "", *, few: bool) -> None:
        """`few` must be the same in each step. `name` is the prefix of the extremes; without it they are not logged."""
        if few:
            self.tracked |= found
            return
        self.local |= found
        if name and found:
            self.tracked |= {f"{name}/least": min(found.values()), f"{name}/most": max(found.values())}


def _shares(prefix: str, tokens: np.ndarray) -> dict[str, float]:
    """The share of tokens that each expert got; empty if there are no tokens."""
    total = tokens.sum()
    return {f"{prefix}/{expert}": float(share) for expert, share in enumerate(tokens / total)} if total else {}
