"""Training metrics: kept on the device each step, summed over ranks every n steps, logged for every step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from maestro_dist.callbacks.base import Callback, State, StepRecord
from maestro_dist.tracking.metrics import Meter, memory_bytes

if TYPE_CHECKING:
    from torch import Tensor

    from maestro_dist.tracking import MetricLog


_MOST_TRACKED = 64
"""Modalities, or experts of a layer, that have a metric each in MLflow."""
_MOST_TRACKED_TABLE = 512
"""Experts by modality, over all layers, that have a metric each in MLflow."""
_MOST_LOCAL = 20_000
"""Experts by modality, over all layers, that are kept at all."""


@dataclass(frozen=True)
class Window:
    """The steps since the last record, over all ranks; the same on all ranks but for `rates` and `memory`.

    steps, losses  optimizer steps done (1-based) and the mean loss of each one's global batch
    bad            samples that were skipped as bad, those of ranks that share sequences counted by each
    rates          throughput (see `Meter.read`), `memory` in bytes: as rank 0 saw them
    """

    steps: list[int]
    losses: list[float]
    lr: float
    rates: dict[str, float]
    memory: int
    bad: int = 0


class Metrics(Callback):
    """Logs loss, gradient norm and learning rate of every step; budgets, expert load and throughput of some.

    Ranks talk once every `tracking.every_steps` steps, at the end of an epoch and where a checkpoint is due, in one
    small sum; nothing waits for the device in between. What is logged depends on the step alone (throughput apart), so
    a run that was resumed logs the same numbers as one that was not: the sums are of float32 numbers in float64, where
    their order does not matter.
    """

    def __init__(self, log: MetricLog | None) -> None:
        """`log` on rank 0, None elsewhere."""
        self.latest: Window | None = None
        self._log = log
        self._records: list[StepRecord] = []
        self._meter = Meter()

    def on_step(self, state: State, record: StepRecord) -> None:
        """Keep the step; record all kept ones when it is time."""
        self._records.append(record)
        seconds = record.data_s + record.forward_s + record.backward_s + record.optimizer_s
        self._meter.add(record.samples, seconds, record.data_s)
        if self.due(state):
            self.flush(state, details=True)

    def on_end(self, state: State) -> None:
        """Record what is left."""
        self.flush(state)

    @staticmethod
    def due(state: State) -> bool:
        """Whether the step just done is one after which the ranks talk. A function of the step alone."""
        checkpoint = state.config.checkpoint.every_steps
        return (
            state.step % state.config.tracking.every_steps == 0
            or state.at_epoch_end
            or (checkpoint is not None and state.step % checkpoint == 0)
        )

    def flush(self, state: State, *, details: bool = False) -> None:
        """Record the kept steps now; all ranks together. `details` adds budgets and expert load of the last one."""
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
    """Sums over all ranks of: loss of each step, bad samples of each step, tokens, seconds waited, details if asked."""
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
    """Mean budget of each modality where it is present; share of its tokens that went to each expert.

    Shares over all modalities come with every record, by modality only at the end of an epoch. Returns what goes to
    MLflow, and what is too much for it (a chart a number) and stays in the metrics file, for pictures.
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
    """Numbers that are told one by one where they are few, and by their extremes where they are many."""

    def __init__(self) -> None:
        self.tracked: dict[str, float] = {}
        self.local: dict[str, float] = {}

    def add(self, found: dict[str, float], name: str = "", *, few: bool) -> None:
        """`few` must be the same at each step. `name`: what their extremes are called; none: these are not told."""
        if few:
            self.tracked |= found
            return
        self.local |= found
        if name and found:
            self.tracked |= {f"{name}/least": min(found.values()), f"{name}/most": max(found.values())}


def _shares(prefix: str, tokens: np.ndarray) -> dict[str, float]:
    """Each expert's share of the tokens; nothing where there are none."""
    total = tokens.sum()
    return {f"{prefix}/{expert}": float(share) for expert, share in enumerate(tokens / total)} if total else {}
