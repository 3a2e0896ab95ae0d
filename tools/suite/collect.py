"""The results of finished cells: read from their runs or from what is kept, averaged, resampled and combined."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from statistics import fmean
from typing import Any

import numpy as np

from maestro_dist import rng
from maestro_dist.errors import DataError, RunError
from maestro_dist.evaluation import Evaluation, Predictions
from maestro_dist.task.classification import log_softmax
from suite.archive import RESULT_FILE, Archive, Kept, Record, portable
from suite.matrix import Cell, Plan
from suite.statistics import expert_information, subject_weights, weighted_metric

_PLACES = ("checkpoint", "model", "mlflow_model")
"""Keys of `result.json` that name folders of the run, which is not kept."""


class NotFinished(Exception):
    """A result needs a cell that is not finished."""


@dataclass(frozen=True)
class Finished:
    """A finished cell.

    content    plain JSON: "record", "result", "tested" and "experts" (None without scores or experts)
    resampled  a metric at a missing rate under each resample of the test subjects, by "auroc@0.4": [resamples]
    """

    cell: Cell
    content: dict[str, Any]
    resampled: dict[str, np.ndarray]
    is_kept: bool

    @cached_property
    def evaluation(self) -> Evaluation:
        """Metrics of the test."""
        return Evaluation.from_json(self.content["result"]["evaluation"])

    @property
    def record(self) -> Record:
        """Settings, machine and attempts."""
        return Record(**self.content["record"])

    @property
    def experts(self) -> dict[str, Any] | None:
        """What `expert_information` tells, at the largest missing rate."""
        found: dict[str, Any] | None = self.content["experts"]
        return found

    @property
    def fingerprint(self) -> str:
        """Changes with the result."""
        return _short_hash([json.dumps(self.content["result"]["evaluation"], sort_keys=True)])


@dataclass(frozen=True)
class Ensemble:
    """Of the averaged probabilities of a model's seeds: metrics by "auroc@0.4", and resampled as in `Finished`."""

    values: dict[str, float]
    resampled: dict[str, np.ndarray]
    is_kept: bool


@dataclass
class Results:
    """All finished cells of a plan, by name, and ensembles by (model, data set)."""

    plan: Plan
    finished: dict[str, Finished]
    ensembles: dict[tuple[str, str], Ensemble] = field(default_factory=dict)

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
    """Read the results of all finished cells. A run is preferred to what is kept of an earlier one.

    Raises:
        RunError: a result is damaged, or lacks what the report needs.
        DataError: cells of a data set were tested on different samples.
    """
    reader, results = _Reader(archive), Results(archive.plan, {})
    for cell in archive.plan.cells:
        kept = archive.kept_cell(cell)
        if archive.has_run(cell):
            results.finished[cell.name] = reader.from_run(cell)
        elif kept is not None:
            results.finished[cell.name] = reader.from_kept(cell, kept)
    for model, entry in archive.plan.suite.models.items():
        for data in entry.data:
            found = reader.ensemble(model, data, list(results.seeds(model, data).values()))
            if found is not None:
                results.ensembles[model, data] = found
    return results


def keep(archive: Archive, results: Results) -> int:
    """Add the results of runs to the kept files. Returns the number of cells added."""
    number = 0
    for data in results.plan.suite.data if archive.place else ():
        new = Kept()
        for name, item in results.finished.items():
            if item.cell.data == data and not item.is_kept:
                new.cells[name] = item.content | {"numbers": list(item.resampled)}
                new.arrays[name] = np.array(list(item.resampled.values()), np.float32)
        for (model, place), found in results.ensembles.items():
            if place == data and not found.is_kept:
                cells = {item.cell.name: item.fingerprint for item in results.of(model, data)}
                new.ensembles[model] = {"cells": cells, "values": found.values, "numbers": list(found.resampled)}
                new.arrays[f"ensemble {model}"] = np.array(list(found.resampled.values()), np.float32)
        if new.cells and archive.place:
            new.merge(archive.place, data)
            number += len(new.cells)
    return number


class _Reader:
    """Reads cells; remembers what all cells of a data set share: the tested samples and the resamples."""

    def __init__(self, archive: Archive) -> None:
        self.archive, self.suite = archive, archive.plan.suite
        self._tested: dict[tuple[Any, ...], dict[str, Any]] = {}

    def from_run(self, cell: Cell) -> Finished:
        """What reports need of a finished run."""
        record, result = self.archive.record(cell), self.archive.read_json(cell, RESULT_FILE)
        assert record is not None
        assert result is not None
        content: dict[str, Any] = {
            "record": vars(replace(record, command=portable(record.command))),
            "result": {key: value for key, value in result.items() if key not in _PLACES},
            "tested": None,
            "experts": None,
        }
        resampled: dict[str, np.ndarray] = {}
        if cell.scored:
            answers = Predictions.read(self.archive.run(cell))
            content["tested"] = {
                "keys": _short_hash(map(str, answers.key)),
                "subjects": len(np.unique(answers.subject)),
                "modalities": [str(name) for name in answers.modalities],
            }
            self._check(cell, content["tested"])
            subject, weights = self._resamples(cell, answers)
            for metric, rate in self._ends(cell.data):
                parts = [
                    weighted_metric(metric, answers.logits[scenario], answers.target, subject, weights)
                    for scenario in answers.scenarios(rate)
                ]
                resampled[metric_key(metric, rate)] = _rounded(np.mean(parts, axis=0))
            key = rng.key(cell.seed, "experts", cell.name)
            content["experts"] = expert_information(answers, self.suite.ends[-1], self.suite.permutations, key)
        return Finished(cell, content, resampled, is_kept=False)

    def from_kept(self, cell: Cell, kept: dict[str, Any]) -> Finished:
        """What is kept of a cell."""
        resampled = self._kept_arrays(cell.data, kept["numbers"], cell.name)
        if cell.scored:
            self._check(cell, kept["tested"])
            wanted = [metric_key(metric, rate) for metric, rate in self._ends(cell.data)]
            if any(len(resampled.get(key, ())) != self.suite.resamples for key in wanted):
                raise RunError(
                    f"{cell.name}: the kept results do not have {self.suite.resamples} resamples of "
                    f"{', '.join(wanted)}; set results=null and run the cell again"
                )
        return Finished(cell, kept, resampled, is_kept=True)

    def ensemble(self, model: str, data: str, seeds: list[list[Finished]]) -> Ensemble | None:
        """None with fewer than two seeds, or where predictions of a seed are gone and no ensemble of them is kept."""
        items = [item for cells in seeds for item in cells]
        if len(seeds) < 2:
            return None
        if any(item.is_kept for item in items):
            kept = self.archive.kept[data].ensembles.get(model)
            if kept is None or kept["cells"] != {item.cell.name: item.fingerprint for item in items}:
                return None
            return Ensemble(kept["values"], self._kept_arrays(data, kept["numbers"], f"ensemble {model}"), is_kept=True)
        values: dict[str, list[np.ndarray]] = {}
        for cells in zip(*seeds, strict=True):  # one fold of all seeds
            answers = [Predictions.read(self.archive.run(item.cell)) for item in cells]
            subject, weights = self._resamples(cells[0].cell, answers[0])
            rows = np.concatenate((np.ones((1, weights.shape[1])), weights))
            for rate in sorted(self.suite.rates):
                for scenario in answers[0].scenarios(rate):
                    chance = np.mean([np.exp(log_softmax(each.logits[scenario])) for each in answers], axis=0)
                    for metric in self.suite.data[data].metrics:
                        found = weighted_metric(metric, np.log(chance + 1e-30), answers[0].target, subject, rows)
                        values.setdefault(metric_key(metric, rate), []).append(found)
        means = {key: np.mean(parts, axis=0) for key, parts in values.items()}
        resampled = {key: _rounded(means[key][1:]) for key in (metric_key(*end) for end in self._ends(data))}
        return Ensemble({key: float(mean[0]) for key, mean in means.items()}, resampled, is_kept=False)

    def _ends(self, data: str) -> list[tuple[str, float]]:
        return [(metric, rate) for metric in self.suite.data[data].metrics for rate in self.suite.ends]

    def _kept_arrays(self, data: str, numbers: Sequence[str], name: str) -> dict[str, np.ndarray]:
        rows = self.archive.kept[data].arrays.get(name, ())
        return {key: row.astype(np.float64) for key, row in zip(numbers, rows, strict=False)}

    def _check(self, cell: Cell, tested: dict[str, Any]) -> None:
        """Raise DataError where a cell was tested on other samples than the others of its data set."""
        place = cell.data, cell.fold, str(cell.settings.get("data.modalities"))
        if self._tested.setdefault(place, tested) != tested:
            raise DataError(f"{cell.name} was tested on other samples than other cells of {cell.data}; run it again")

    def _resamples(self, cell: Cell, answers: Predictions) -> tuple[np.ndarray, np.ndarray]:
        """Number of each sample's subject [N]; weights of the subjects [resamples, subjects]."""
        names, subject = np.unique(answers.subject, return_inverse=True)
        key = rng.key(0, "bootstrap", cell.data, -1 if cell.fold is None else cell.fold)
        return subject, subject_weights(len(names), self.suite.resamples, key)


def _rounded(values: np.ndarray) -> np.ndarray:
    """As the kept file holds them, so that reports with and without the runs are the same."""
    return values.astype(np.float32).astype(np.float64)


def _short_hash(texts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]
