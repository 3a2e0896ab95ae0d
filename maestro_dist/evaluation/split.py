"""Evaluate a split over all ranks: complete, and with modalities missing at given rates."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from maestro_dist.data.missing import evaluation_mask
from maestro_dist.data.prefetch import Consumer
from maestro_dist.data.reader import SplitSource, presence
from maestro_dist.data.stream import DataRank, evaluation_batches
from maestro_dist.errors import DataError, NonFiniteError
from maestro_dist.evaluation.expert_loads import ExpertLoad, ExpertLoads
from maestro_dist.evaluation.gather import broadcast_array, gather_rows, in_manifest_order
from maestro_dist.evaluation.predictions import Predictions
from maestro_dist.evaluation.recorder import PredictionRecorder
from maestro_dist.evaluation.result import MOST_CLASSES, Evaluation, Scenario, percent

if TYPE_CHECKING:
    import torch

    from maestro_dist.parallel.mesh import Mesh
    from maestro_dist.task.base import Task
    from maestro_dist.types import Batch, Output


@dataclass(frozen=True)
class EvaluationPlan:
    """Which scenarios of a split are evaluated.

    rates             missing rates, 0 ... 1; 0 is the complete scenario
    draws             numbers of the random masks at each rate above 0
    keep_predictions  keep the predictions of every scenario (`Evaluation.predictions`, on rank 0)
    progress          show a progress bar on rank 0
    """

    split: str
    rates: Sequence[float]
    draws: Sequence[int]
    keep_predictions: bool = False
    progress: bool = False

    @property
    def scenarios(self) -> list[tuple[float, int]]:
        """(rate, draw) pairs, by ascending rate; the complete scenario needs one draw only."""
        return [(rate, draw) for rate in sorted(set(self.rates)) for draw in (self.draws if rate else self.draws[:1])]


@dataclass(frozen=True)
class EvaluationData:
    """The samples of a split for an evaluation.

    batches  this rank's batches for a mask bool [N, M] of the modalities to keep (None: all)
    present  bool [N, M]: which modalities the samples have
    always   [M]: modalities that no mask removes; None: there are none
    """

    batches: Callable[[np.ndarray | None], Iterator[Batch]]
    present: np.ndarray
    always: Sequence[bool] | None = None

    @staticmethod
    def of(source: SplitSource, batch: int, rank: DataRank, consumer: Consumer | None = None) -> EvaluationData:
        """The samples of `source`, `batch` at a time. Reads the indexes of the split."""
        return EvaluationData(
            lambda keep: evaluation_batches(source, batch, rank, keep, consumer),
            presence(source),
            [modality.always for modality in source.modalities],
        )


def evaluate_split(
    forward: Callable[[Batch], Output], task: Task, data: EvaluationData, plan: EvaluationPlan, mesh: Mesh
) -> Evaluation:
    """Metrics of each scenario on the complete split. Collective; the result is the same on all ranks.

    `forward` is the model in evaluation mode. Every rank calls it equally often, maybe with an empty batch. Metrics
    are computed once, on rank 0, so all ranks get the same numbers.

    Raises:
        DataError: the split is empty, or a sample was not evaluated exactly once.
        NonFiniteError: a prediction is NaN or infinite.
    """
    present, split, samples = data.present, plan.split, len(data.present)
    if samples == 0:
        raise DataError(f"split {split!r} has no samples")
    results: list[Scenario] = []
    loads = ExpertLoads()
    complete: tuple[np.ndarray, np.ndarray] | None = None
    recorder = PredictionRecorder() if plan.keep_predictions else None
    with _bar(plan.progress and mesh.rank == 0) as bar:
        progress_task = bar.add_task("", total=len(plan.scenarios) * samples) if bar else None
        for rate, draw in plan.scenarios:
            if bar:
                bar.update(
                    progress_task, description=f"{split}, {percent(rate)} missing" if rate else f"{split}, complete"
                )
            mask = evaluation_mask(present, rate, draw, data.always) if rate > 0 else None
            batches = data.batches(mask)
            rows = _predict(
                forward, task, batches, loads, recorder, lambda n: bar and bar.advance(progress_task, n * mesh.data)
            )
            loads.drain()
            all_rows = gather_rows(rows, mesh).cpu().numpy()
            table = in_manifest_order(all_rows[:, 0].astype(np.int64), all_rows[:, 1:], samples, split)
            target = table[:, 0] if task.targets == 1 else table[:, : task.targets]
            logits = table[:, task.targets :].astype(np.float32)
            if task.kind in ("classification", "multilabel") and task.label_steps == 1:
                target = target.astype(np.int64)
            bad = int((~np.isfinite(logits)).any(axis=1).sum())
            if bad:
                raise NonFiniteError(f"{bad} of {samples} predictions on split {split!r} are NaN or infinite")
            found = task.metrics(logits, target) if mesh.rank == 0 else {}
            values = np.array([found.get(name, np.nan) for name in task.metric_names])
            values = broadcast_array(values, mesh, rows.device)
            named = zip(task.metric_names, values.tolist(), strict=True)
            results.append(Scenario(rate, draw, {name: value for name, value in named if value == value}))
            if rate == 0:
                complete = (logits, target)
            if recorder:
                recorder.end_scenario(logits, present if mask is None else mask, mesh)
    predictions = recorder.result(plan.scenarios, target, mesh) if recorder else None
    expert_loads = loads.result(mesh, rows.device)
    return _evaluation(task, split, samples, results, complete, expert_loads, predictions, mesh)


def _predict(
    forward: Callable[[Batch], Output],
    task: Task,
    batches: Iterator[Batch],
    loads: ExpertLoads,
    recorder: PredictionRecorder | None,
    advance: Callable[[int], Any],
) -> torch.Tensor:
    """This rank's rows (sample number, K targets, `Task.rows` ...), float64 [n, 1 + K + C], which is exact for them."""
    import torch

    parts: list[torch.Tensor] = []
    with torch.no_grad():
        for batch in batches:
            output = forward(batch)
            logits = task.rows(output)
            loads.add(batch, output)
            if recorder:
                recorder.add(batch, output)
            target = batch.target if batch.target.ndim == 2 else batch.target[:, None]
            target = target[:, : task.targets]  # pre-training uses none of several
            head = torch.cat([batch.sample[:, None].double(), target.double()], dim=1).to(logits.device)
            parts.append(torch.cat([head, logits.double()], dim=1))
            advance(len(batch))
    return torch.cat(parts)


def _evaluation(
    task: Task,
    split: str,
    samples: int,
    results: list[Scenario],
    complete: tuple[np.ndarray, np.ndarray] | None,
    loads: list[ExpertLoad] | None,
    predictions: Predictions | None,
    mesh: Mesh,
) -> Evaluation:
    from maestro_dist.data.label_sets import ClassCounter
    from maestro_dist.task.classification import Classification
    from maestro_dist.task.multilabel import MultiLabel
    from maestro_dist.task.several_targets import SeveralTargets

    counts = confusion = confused = known = labels = logits = target = None
    if complete is not None:
        logits, target = complete
        one, rows, wanted = task.labelled(logits, target)
        labels = None if task.label_steps == 1 else len(rows)
        if isinstance(one, SeveralTargets):
            known = dict(zip(one.target_names, (~np.isnan(wanted)).sum(0).tolist(), strict=True))
        if isinstance(one, MultiLabel):
            counts = ClassCounter(one.outputs, several=True).counts(wanted)
        if isinstance(one, Classification):
            counts = np.bincount(wanted, minlength=one.outputs).tolist()
            if one.outputs <= MOST_CLASSES:
                confusion = one.confusion(rows, wanted).tolist()
            else:
                confused = one.confused(rows, wanted).tolist()
    return Evaluation(
        split=split,
        samples=samples,
        metrics=list(task.metric_names),
        scenarios=results,
        class_counts=counts,
        confusion=confusion,
        confused=confused,
        known=known,
        labels=labels,
        loads=loads,
        logits=logits if mesh.rank == 0 else None,
        target=target if mesh.rank == 0 else None,
        predictions=predictions,
    )


def _bar(shown: bool) -> AbstractContextManager[Any]:
    """A rich progress bar on stderr, or None."""
    if not shown:
        return nullcontext()
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(file=sys.stderr), transient=True)
