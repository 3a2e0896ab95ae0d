"""The results of finished cells: read from their runs or from what is kept, averaged, resampled and combined."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import numpy as np

from maestro_dist import rng
from maestro_dist.errors import DataError, RunError
from maestro_dist.evaluation import Evaluation, Predictions
from maestro_dist.task.classification import log_softmax
from suite.archive import RESULT_FILE, Archive, Record
from suite.matrix import ROOT, Cell, Plan
from suite.statistics import expert_information, subject_weights, weighted_metric

_PLACES = ("checkpoint", "model", "mlflow_model")  # keys of `result.json` that name folders of the run


@dataclass(frozen=True)
class Scores:
    """Metrics by "auroc@0.4"; NaN where one is undefined: a test split with one class has no AUROC."""

    values: dict[str, float]
    resampled: dict[str, np.ndarray]  # under each resample of the test subjects, [resamples]


@dataclass(frozen=True)
class Finished:
    """A finished cell. `content`: see `Kept.cells`; `scores`: mean over the draws, None for a pre-training."""

    cell: Cell
    record: Record
    content: dict[str, Any]
    scores: Scores | None


@dataclass
class Results:
    """All finished cells of a plan, by name; ensembles (the seeds' probabilities averaged) by model and data set."""

    plan: Plan
    finished: dict[str, Finished]
    ensembles: dict[tuple[str, str], Scores] = field(default_factory=dict)

    def of(self, model: str, data: str) -> list[Finished]:
        """All cells of a model on a data set; none where one is not finished."""
        cells = [self.finished.get(cell.name) for cell in self.plan.cells_of(model, data)]
        return [] if None in cells else [cell for cell in cells if cell]

    def seeds(self, model: str, data: str) -> dict[int, Scores]:
        """Scores of the finished seeds of a model, mean over folds; none for a pre-training."""
        by_seed: dict[int, list[Scores | None]] = {}
        for cell in self.plan.cells_of(model, data):
            item = self.finished.get(cell.name)
            by_seed.setdefault(cell.seed, []).append(item.scores if item else None)
        return {seed: average([s for s in by_seed[seed] if s]) for seed in sorted(by_seed) if None not in by_seed[seed]}

    def mean(self, model: str, data: str, metric: str, rate: float) -> float:
        """Mean of a metric over seeds, folds and draws; NaN where a cell of the model is not finished."""
        seeds = [*self.seeds(model, data).values()]
        return average(seeds).values[metric_key(metric, rate)] if seeds and self.of(model, data) else math.nan


def average(scores: Sequence[Scores]) -> Scores:
    """The mean of some scores."""
    values = {key: fmean(each.values[key] for each in scores) for key in scores[0].values}
    resampled = {key: np.mean([each.resampled[key] for each in scores], axis=0) for key in scores[0].resampled}
    return Scores(values, resampled)


def metric_key(metric: str, rate: float) -> str:
    """A metric at a missing rate: auroc@0.4."""
    return f"{metric}@{rate!r}"


def collect(archive: Archive) -> Results:
    """Read the results of all finished cells, and put new ones into `archive.kept`. A run is preferred to what is kept.

    Raises:
        RunError: a result lacks what the report needs.
        DataError: cells of a data set were tested on different samples.
    """
    plan, results, tested = archive.plan, Results(archive.plan, {}), dict[Any, Any]()
    for cell in plan.cells:
        if archive.has_run(cell):
            _read_run(archive, cell)
        elif not archive.is_kept(cell):
            continue
        kept = archive.kept[cell.data]
        content, resampled = kept.cells[cell.name], kept.rows(cell.name)
        evaluation = Evaluation.from_json(content["result"]["evaluation"])
        tests = itertools.product(plan.suite.data[cell.data].metrics, plan.suite.rates)
        means = {metric_key(metric, rate): evaluation.mean(metric, rate) for metric, rate in tests}
        values = {key: math.nan if mean is None else mean for key, mean in means.items()}
        scores = Scores(values, resampled) if cell.scored else None
        results.finished[cell.name] = Finished(cell, Record(**content["record"]), content, scores)
        if not cell.scored:
            continue
        wanted = _resampled_metrics(plan, cell.data)
        if any(len(resampled.get(key, ())) != plan.suite.resamples for key in wanted):
            said = f"do not have {plan.suite.resamples} resamples of {', '.join(wanted)}"
            raise RunError(f"{cell.name}: the kept results {said}; set results=null and run the cell again")
        place = cell.data, cell.fold, str(cell.settings.get("data.modalities"))
        if tested.setdefault(place, content["tested"]) != content["tested"]:
            raise DataError(f"{cell.name} was tested on other samples than other cells of {cell.data}; run it again")
    for model, data in ((model, data) for model, entry in plan.suite.models.items() for data in entry.data):
        cells, kept = plan.cells_of(model, data), archive.kept[data]
        seeds = [[cell for cell in cells if cell.seed == seed] for seed in results.seeds(model, data)]
        if len(seeds) > 1 and _keep_ensemble(archive, seeds):
            results.ensembles[model, data] = Scores(kept.ensembles[model]["values"], kept.rows(f"ensemble {model}"))
    return results


def _read_run(archive: Archive, cell: Cell) -> None:
    """Put what reports need of a finished run into `archive.kept`, where it is not there yet."""
    plan, kept, record = archive.plan, archive.kept[cell.data], archive.record(cell)
    assert record is not None
    content: dict[str, Any] = {
        # the root folder differs on other machines
        "record": vars(record) | {"command": record.command.replace(f"{ROOT}/", "")},
        "result": {k: v for k, v in json.loads(archive.run(cell).read(RESULT_FILE)).items() if k not in _PLACES},
        "tested": None,
        "experts": None,
        "numbers": [],
    }
    old = kept.cells.get(cell.name)
    if old is not None and (old["record"], old["result"]) == (content["record"], content["result"]):
        return
    if old is not None and old["result"]["evaluation"] != content["result"]["evaluation"]:
        kept.ensembles.pop(cell.model, None)  # it was made from the old result
        kept.arrays.pop(f"ensemble {cell.model}", None)
    if cell.scored:
        predictions = Predictions.read(archive.run(cell))
        content["tested"] = {
            "keys": hashlib.sha256("\n".join(map(str, predictions.key)).encode()).hexdigest()[:16],
            "subjects": len(np.unique(predictions.subject)),
            "modalities": [str(name) for name in predictions.modalities],
        }
        key = rng.key(cell.seed, "experts", cell.name)
        content["experts"] = expert_information(predictions, plan.suite.extreme_rates[-1], plan.suite.permutations, key)
        means = _metrics(plan, [(cell, [predictions])], plan.suite.extreme_rates)
        content["numbers"] = list(means)
        kept.arrays[cell.name] = np.array([rows[1:] for rows in means.values()], np.float32)
    kept.cells[cell.name] = content
    archive.new.append(cell)


def _keep_ensemble(archive: Archive, seeds: list[list[Cell]]) -> bool:
    """Put the ensemble of these cells into `archive.kept`. False if it is missing and cannot be made,
    because some runs are gone."""
    first, names = seeds[0][0], [cell.name for cells in seeds for cell in cells]
    kept = archive.kept[first.data]
    if first.model in kept.ensembles and {*kept.ensembles[first.model]["cells"]} == {*names}:
        return True
    if not all(archive.has_run(cell) for cells in seeds for cell in cells):
        return False
    folds = ((cells[0], [Predictions.read(archive.run(cell)) for cell in cells]) for cells in zip(*seeds, strict=True))
    means = _metrics(archive.plan, folds, archive.plan.suite.rates)
    numbers = _resampled_metrics(archive.plan, first.data)
    values = {key: float(rows[0]) for key, rows in means.items()}
    kept.ensembles[first.model] = {"cells": names, "values": values, "numbers": numbers}
    kept.arrays[f"ensemble {first.model}"] = np.array([means[key][1:] for key in numbers], np.float32)
    return True


def _metrics(
    plan: Plan, folds: Iterable[tuple[Cell, list[Predictions]]], rates: Sequence[float]
) -> dict[str, np.ndarray]:
    """Metrics by "auroc@0.4": as they are, then under each resample, [1 + resamples]; mean over folds and draws.

    folds: a cell of each fold and its predictions, or those of several seeds, whose probabilities are averaged.
    """
    parts: dict[str, list[np.ndarray]] = {}
    for cell, predictions in folds:
        names, subject = np.unique(predictions[0].subject, return_inverse=True)
        key = rng.key(0, "bootstrap", cell.data, -1 if cell.fold is None else cell.fold)
        weights = np.concatenate((np.ones((1, len(names))), subject_weights(len(names), plan.suite.resamples, key)))
        for metric, rate in itertools.product(plan.suite.data[cell.data].metrics, rates):
            for scenario in predictions[0].scenarios(rate):
                logits = predictions[0].logits[scenario]
                if len(predictions) > 1:
                    chance = np.mean([np.exp(log_softmax(each.logits[scenario])) for each in predictions], axis=0)
                    logits = np.log(chance + 1e-30)
                found = weighted_metric(metric, logits, predictions[0].target, subject, weights)
                parts.setdefault(metric_key(metric, rate), []).append(found)
    return {key: np.mean(each, axis=0) for key, each in parts.items()}


def _resampled_metrics(plan: Plan, data: str) -> list[str]:
    return [metric_key(metric, rate) for metric in plan.suite.data[data].metrics for rate in plan.suite.extreme_rates]
