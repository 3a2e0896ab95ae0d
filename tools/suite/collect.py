"""The results of finished cells: read from their runs or from what is kept, averaged, resampled and combined."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
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

_PLACES = ("checkpoint", "model", "mlflow_model")
"""Keys of `result.json` that name folders of the run, which is not kept."""


class NotFinished(Exception):
    """A result needs a cell that is not finished."""


@dataclass(frozen=True)
class Finished:
    """A finished cell: what is kept of it, and its metrics under each resample, [resamples] by "auroc@0.4"."""

    cell: Cell
    content: dict[str, Any]
    resampled: dict[str, np.ndarray]

    @cached_property
    def evaluation(self) -> Evaluation:
        """Metrics of the test."""
        return Evaluation.from_json(self.content["result"]["evaluation"])

    @property
    def record(self) -> Record:
        """Settings, machine and attempts."""
        return Record(**self.content["record"])

    @property
    def experts(self) -> Any:
        """What `expert_information` tells, at the largest missing rate."""
        return self.content["experts"]


@dataclass
class Results:
    """All finished cells of a plan, by name.

    ensembles  of the averaged probabilities of a model's seeds, by (model, data set): metrics by "auroc@0.4", and
               these under each resample
    """

    plan: Plan
    finished: dict[str, Finished]
    ensembles: dict[tuple[str, str], tuple[dict[str, float], dict[str, np.ndarray]]] = field(default_factory=dict)

    def of(self, model: str, data: str) -> list[Finished]:
        """All cells of a model on a data set. Raises NotFinished where one is not finished."""
        cells = self.plan.cells_of(model, data)
        if not cells or any(cell.name not in self.finished for cell in cells):
            raise NotFinished
        return [self.finished[cell.name] for cell in cells]

    def seeds(self, model: str, data: str) -> dict[int, list[Finished]]:
        """The finished seeds of a model with their cells, one for each fold; none for a pre-training."""
        found: dict[int, list[Finished]] = {}
        cells = self.plan.cells_of(model, data)
        for seed in sorted({cell.seed for cell in cells}):
            mine = [cell for cell in cells if cell.seed == seed]
            if all(cell.scored and cell.name in self.finished for cell in mine):
                found[seed] = [self.finished[cell.name] for cell in mine]
        return found

    def values(self, model: str, data: str, metric: str, rate: float, of: Sequence[int] | None = None) -> list[float]:
        """A metric of each finished seed (or of those in `of`), mean over folds and draws.

        NaN where it is undefined: a test split with one class has no AUROC.
        """
        return [
            fmean(math.nan if (mean := item.evaluation.mean(metric, rate)) is None else mean for item in cells)
            for seed, cells in self.seeds(model, data).items()
            if of is None or seed in of
        ]

    def mean(self, model: str, data: str, metric: str, rate: float) -> float:
        """Mean of `values`. Raises NotFinished where a cell of the model is not finished."""
        self.of(model, data)
        return fmean(self.values(model, data, metric, rate))

    def bootstrap(self, model: str, data: str, metric: str, rate: float, of: Sequence[int] | None = None) -> np.ndarray:
        """The mean of `values` under each resample of the test subjects, [resamples]."""
        seeds, key = self.seeds(model, data), metric_key(metric, rate)
        chosen = [cells for seed, cells in seeds.items() if of is None or seed in of]
        found: np.ndarray = np.mean([np.mean([c.resampled[key] for c in cells], axis=0) for cells in chosen], axis=0)
        return found


def metric_key(metric: str, rate: float) -> str:
    """A metric at a missing rate: auroc@0.4."""
    return f"{metric}@{rate!r}"


def collect(archive: Archive) -> Results:
    """Read the results of all finished cells, and put new ones into `archive.kept`. A run is preferred to what is kept.

    Raises:
        RunError: a result is damaged, or lacks what the report needs.
        DataError: cells of a data set were tested on different samples.
    """
    plan, results, tested = archive.plan, Results(archive.plan, {}), dict[Any, Any]()
    for cell in plan.cells:
        kept, has_run = archive.kept[cell.data], archive.has_run(cell)
        if has_run:
            _read_run(archive, cell)
        elif archive.kept_cell(cell) is None:
            continue
        content = kept.cells[cell.name]
        found = Finished(cell, content, kept.rows(cell.name, content["numbers"]))
        results.finished[cell.name] = found
        if not cell.scored:
            continue
        wanted = [metric_key(metric, rate) for metric, rate in _ends(plan, cell.data)]
        if any(len(found.resampled.get(key, ())) != plan.suite.resamples for key in wanted):
            said = f"do not have {plan.suite.resamples} resamples of {', '.join(wanted)}"
            raise RunError(f"{cell.name}: the kept results {said}; set results=null and run the cell again")
        place = cell.data, cell.fold, str(cell.settings.get("data.modalities"))
        if tested.setdefault(place, content["tested"]) != content["tested"]:
            raise DataError(f"{cell.name} was tested on other samples than other cells of {cell.data}; run it again")
    for model, entry in plan.suite.models.items():
        for data in entry.data:
            kept, seeds = archive.kept[data], list(results.seeds(model, data).values())
            items = [item for cells in seeds for item in cells]
            now = {item.cell.name: _short_hash([_dumped(item.content["result"]["evaluation"])]) for item in items}
            stale = model not in kept.ensembles or kept.ensembles[model]["cells"] != now
            if len(seeds) < 2 or (stale and not all(archive.has_run(item.cell) for item in items)):
                continue  # where it is stale, the predictions of some seeds are gone
            if stale:
                _read_ensemble(archive, seeds, now)
            found_values, numbers = kept.ensembles[model]["values"], kept.ensembles[model]["numbers"]
            results.ensembles[model, data] = found_values, kept.rows(f"ensemble {model}", numbers)
    return results


def _read_run(archive: Archive, cell: Cell) -> None:
    """Put what reports need of a finished run into `archive.kept`, where it is not there yet."""
    kept, suite = archive.kept[cell.data], archive.plan.suite
    record, result = archive.record(cell), archive.read_json(cell, RESULT_FILE)
    assert record is not None
    assert result is not None
    content: dict[str, Any] = {
        "record": vars(record) | {"command": record.command.replace(f"{ROOT}/", "")},  # elsewhere it is another folder
        "result": {key: value for key, value in result.items() if key not in _PLACES},
        "tested": None,
        "experts": None,
        "numbers": [],
    }
    old = kept.cells.get(cell.name)
    if old is not None and all(_dumped(old[key]) == _dumped(content[key]) for key in ("record", "result")):
        return
    if cell.scored:
        answers = Predictions.read(archive.run(cell))
        content["tested"] = {
            "keys": _short_hash(map(str, answers.key)),
            "subjects": len(np.unique(answers.subject)),
            "modalities": [str(name) for name in answers.modalities],
        }
        subject, weights = _resamples(archive.plan, cell, answers)
        rows = []
        for metric, rate in _ends(archive.plan, cell.data):
            logits = answers.logits[answers.scenarios(rate)]
            parts = [weighted_metric(metric, each, answers.target, subject, weights) for each in logits]
            rows.append(np.mean(parts, axis=0))
            content["numbers"].append(metric_key(metric, rate))
        key = rng.key(cell.seed, "experts", cell.name)
        content["experts"] = expert_information(answers, suite.ends[-1], suite.permutations, key)
        kept.arrays[cell.name] = np.array(rows, np.float32)
    kept.cells[cell.name] = content
    archive.new.append(cell)


def _read_ensemble(archive: Archive, seeds: list[list[Finished]], fingerprints: dict[str, str]) -> None:
    cell, plan = seeds[0][0].cell, archive.plan
    values: dict[str, list[np.ndarray]] = {}
    for cells in zip(*seeds, strict=True):  # one fold of all seeds
        answers = [Predictions.read(archive.run(item.cell)) for item in cells]
        subject, weights = _resamples(plan, cells[0].cell, answers[0])
        rows = np.concatenate((np.ones((1, weights.shape[1])), weights))
        for rate in sorted(plan.suite.rates):
            for scenario in answers[0].scenarios(rate):
                chance = np.mean([np.exp(log_softmax(each.logits[scenario])) for each in answers], axis=0)
                for metric in plan.suite.data[cell.data].metrics:
                    found = weighted_metric(metric, np.log(chance + 1e-30), answers[0].target, subject, rows)
                    values.setdefault(metric_key(metric, rate), []).append(found)
    means = {key: np.mean(parts, axis=0) for key, parts in values.items()}
    numbers = [metric_key(metric, rate) for metric, rate in _ends(plan, cell.data)]
    content = {"cells": fingerprints, "values": {key: float(mean[0]) for key, mean in means.items()}}
    archive.kept[cell.data].ensembles[cell.model] = content | {"numbers": numbers}
    archive.kept[cell.data].arrays[f"ensemble {cell.model}"] = np.array([means[key][1:] for key in numbers], np.float32)


def _ends(plan: Plan, data: str) -> list[tuple[str, float]]:
    return [(metric, rate) for metric in plan.suite.data[data].metrics for rate in plan.suite.ends]


def _resamples(plan: Plan, cell: Cell, answers: Predictions) -> tuple[np.ndarray, np.ndarray]:
    """Number of each sample's subject [N]; weights of the subjects [resamples, subjects]."""
    names, subject = np.unique(answers.subject, return_inverse=True)
    key = rng.key(0, "bootstrap", cell.data, -1 if cell.fold is None else cell.fold)
    return subject, subject_weights(len(names), plan.suite.resamples, key)


def _dumped(content: Any) -> str:
    return json.dumps(content, sort_keys=True)


def _short_hash(texts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]
