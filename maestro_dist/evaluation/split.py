"""Evaluate a split over all ranks: complete, and with modalities missing at given rates."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np

from maestro_dist.data.missing import evaluation_mask
from maestro_dist.errors import DataError, NonFiniteError
from maestro_dist.evaluation.gather import all_rows, broadcast, in_order
from maestro_dist.evaluation.keep import Keeper
from maestro_dist.evaluation.loads import SetLoad, SetLoads
from maestro_dist.evaluation.predictions import Predictions
from maestro_dist.evaluation.result import MOST_CLASSES, Evaluation, Scenario, percent

if TYPE_CHECKING:
    import torch

    from maestro_dist.parallel.mesh import Mesh
    from maestro_dist.task.base import Task
    from maestro_dist.types import Batch, Output


def scenarios_of(rates: Sequence[float], draws: Sequence[int]) -> list[tuple[float, int]]:
    """(rate, draw) pairs in order; complete samples need one draw only."""
    return [(rate, draw) for rate in sorted(set(rates)) for draw in (draws if rate > 0 else draws[:1])]


def evaluate_split(
    forward: Callable[[Batch], Output],
    task: Task,
    batches_for: Callable[[np.ndarray | None], Iterator[Batch]],
    present: np.ndarray,
    *,
    rates: Sequence[float],
    draws: Sequence[int],
    mesh: Mesh,
    split: str = "validation",
    always: Sequence[bool] | None = None,
    keep: bool = False,
    progress: bool = False,
) -> Evaluation:
    """Metrics of each (rate, draw) on the whole split; called on all ranks together, the result is the same on all.

    forward      the model in evaluation mode; called equally often on every rank, maybe with an empty batch
    batches_for  this rank's batches for a mask `keep` bool [N, M] (None: nothing is removed)
    present      bool [N, M], what the split's samples naturally have
    always       [M], modalities that no mask removes; by default there are none
    keep         keep the answers of every scenario (`Evaluation.predictions`, on rank 0)
    progress     show a progress bar on rank 0

    Metrics are computed once, on rank 0, so that ranks can never differ in what they choose by them.
    Raises DataError if a sample was not evaluated exactly once, NonFiniteError if a prediction is NaN or infinite.
    """
    samples = len(present)
    if samples == 0:
        raise DataError(f"split {split!r} has no samples")
    plan = scenarios_of(rates, draws)
    results: list[Scenario] = []
    loads = SetLoads()
    complete: tuple[np.ndarray, np.ndarray] | None = None
    keeper = Keeper() if keep else None
    with _bar(progress and mesh.rank == 0) as bar:
        line = bar.add_task("", total=len(plan) * samples) if bar else None
        for rate, draw in plan:
            if bar:
                bar.update(line, description=f"{split}, {percent(rate)} missing" if rate else f"{split}, complete")
            mask = evaluation_mask(present, rate, draw, always) if rate > 0 else None
            batches = batches_for(mask)
            rows = _predict(forward, task, batches, loads, keeper, lambda n: bar and bar.advance(line, n * mesh.data))
            loads.drain()
            whole = all_rows(rows, mesh).cpu().numpy()
            table = in_order(whole[:, 0].astype(np.int64), whole[:, 1:], samples, split)
            target, logits = table[:, 0], table[:, 1:].astype(np.float32)
            if task.kind == "classification":
                target = target.astype(np.int64)
            bad = int((~np.isfinite(logits)).any(axis=1).sum())
            if bad:
                raise NonFiniteError(f"{bad} of {samples} predictions on split {split!r} are NaN or infinite")
            found = task.metrics(logits, target) if mesh.rank == 0 else {}
            values = np.array([found.get(name, np.nan) for name in task.metric_names])
            values = broadcast(values, mesh, rows.device)
            named = zip(task.metric_names, values.tolist(), strict=True)
            results.append(Scenario(rate, draw, {name: value for name, value in named if value == value}))
            if rate == 0:
                complete = (logits, target)
            if keeper:
                keeper.end_scenario(logits, present if mask is None else mask, mesh)
    predictions = keeper.result(plan, target, mesh) if keeper else None
    expert_loads = loads.result(mesh, rows.device)
    return _evaluation(task, split, samples, results, complete, expert_loads, predictions, mesh)


def _predict(
    forward: Callable[[Batch], Output],
    task: Task,
    batches: Iterator[Batch],
    loads: SetLoads,
    keeper: Keeper | None,
    advance: Callable[[int], Any],
) -> torch.Tensor:
    """This rank's rows (sample number, target, `Task.rows` ...), float64 [n, 2 + C]: exact for what they hold."""
    import torch

    parts: list[torch.Tensor] = []
    with torch.no_grad():
        for batch in batches:
            output = forward(batch)
            logits = task.rows(output)
            loads.add(batch, output)
            if keeper:
                keeper.add(batch, output)
            head = torch.stack([batch.sample.double(), batch.target.double()], dim=1).to(logits.device)
            parts.append(torch.cat([head, logits.double()], dim=1))
            advance(len(batch))
    return torch.cat(parts)


def _evaluation(
    task: Task,
    split: str,
    samples: int,
    results: list[Scenario],
    complete: tuple[np.ndarray, np.ndarray] | None,
    loads: list[SetLoad] | None,
    predictions: Predictions | None,
    mesh: Mesh,
) -> Evaluation:
    from maestro_dist.task.classification import Classification

    counts = confusion = confused = logits = target = None
    if complete is not None:
        logits, target = complete
        if isinstance(task, Classification):
            counts = np.bincount(target, minlength=task.outputs).tolist()
            if task.outputs <= MOST_CLASSES:
                confusion = task.confusion(logits, target).tolist()
            else:
                confused = task.confused(logits, target).tolist()
    return Evaluation(
        split=split,
        samples=samples,
        metrics=list(task.metric_names),
        scenarios=results,
        class_counts=counts,
        confusion=confusion,
        confused=confused,
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
