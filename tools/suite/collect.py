"""The results of finished cells: read from their runs or from what is kept, averaged, resampled and combined."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from statistics import fmean
from typing import Any

import numpy as np

from maestro_dist import rng
from maestro_dist.data.storage import ObjectMissing
from maestro_dist.errors import DataError, RunError
from maestro_dist.evaluation import Evaluation, Predictions
from suite.archive import RESULT_FILE, Archive, Kept, Record, portable, short_hash
from suite.bootstrap import subject_weights, weighted_metric
from suite.experts import Information, expert_information
from suite.matrix import Cell, Plan

_PLACES = ("checkpoint", "model", "mlflow_model")
"""Keys of `result.json` that name folders of the run, which is not kept."""


class NotFinished(Exception):
    """A result needs a cell that is not finished."""


@dataclass(frozen=True)
class Finished:
    """A finished cell.

    content    plain JSON: "record" (or None), "result", "tested" and "experts" (None without scores or experts)
    resampled  a metric at a missing rate under each resample of the test subjects, by "auroc@0.4": [resamples]
    """

    cell: Cell
    content: dict[str, Any]
    resampled: dict[str, np.ndarray]
    is_kept: bool

    @cached_property
    def evaluation(self) -> Evaluation:
        """Metrics of the test. Raises RunError."""
        try:
            return Evaluation.from_json(self.content["result"]["evaluation"])
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"the result of {self.cell.name} is damaged ({error}); remove it") from None

    @property
    def record(self) -> Record | None:
        """Settings, machine and attempts."""
        found = self.content["record"]
        return None if found is None else Record(**found)

    @property
    def experts(self) -> Information | None:
        """Of experts and missing sets, at the largest missing rate."""
        found = self.content["experts"]
        return None if found is None else Information(**found)

    @property
    def fingerprint(self) -> str:
        """Changes with the result."""
        return short_hash([json.dumps(self.content["result"]["evaluation"], sort_keys=True)])


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
            _mean([item.evaluation.mean(metric, rate) for item in cells])
            for seed, cells in self.seeds(model, data).items()
            if of is None or seed in of
        ]

    def mean(self, model: str, data: str, metric: str, rate: float) -> float:
        """Mean of `values`. Raises NotFinished where a cell of the model is not finished."""
        cells = self.plan.cells_of(model, data)
        if not cells or any(cell.name not in self.finished for cell in cells):
            raise NotFinished
        values = self.values(model, data, metric, rate)
        if not values:  # a pre-training has no scores
            raise NotFinished
        return fmean(values)

    def bootstrap(
        self, model: str, data: str, metric: str, rate: float, of: Sequence[int] | None = None
    ) -> np.ndarray | None:
        """The mean of `values` under each resample of the test subjects, [resamples]; None without a finished seed."""
        seeds = self.seeds(model, data).items()
        key = metric_key(metric, rate)
        found = [
            np.mean([item.resampled[key] for item in cells], axis=0)
            for seed, cells in seeds
            if of is None or seed in of
        ]
        return np.mean(found, axis=0) if found else None


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
            found = reader.ensemble(model, data, results.seeds(model, data))
            if found is not None:
                results.ensembles[model, data] = found
    return results


def keep(archive: Archive, results: Results) -> int:
    """Add the results of runs to the kept files. Returns the number of cells added."""
    if archive.place is None:
        return 0
    number = 0
    for data in results.plan.suite.data:
        new = Kept()
        for item in results.finished.values():
            if item.cell.data == data and not item.is_kept:
                new.cells[item.cell.name] = item.content | {"numbers": list(item.resampled)}
                new.arrays[item.cell.name] = _array(item.resampled)
        for (model, place), found in results.ensembles.items():
            if place == data and not found.is_kept:
                seeds = results.seeds(model, data).values()
                cells = {item.cell.name: item.fingerprint for items in seeds for item in items}
                new.ensembles[model] = {"cells": cells, "values": found.values, "numbers": list(found.resampled)}
                new.arrays[f"ensemble {model}"] = _array(found.resampled)
        if new.cells:
            new.merge(archive.place, data)
            number += len(new.cells)
    return number


class _Reader:
    """Reads cells; remembers what all cells of a data set share: the tested samples and the resamples."""

    def __init__(self, archive: Archive) -> None:
        self.archive, self.suite = archive, archive.plan.suite
        self._people: dict[tuple[str, int | None], tuple[np.ndarray, np.ndarray]] = {}
        self._tested: dict[tuple[Any, ...], Any] = {}

    def from_run(self, cell: Cell) -> Finished:
        """What reports need of a finished run."""
        run, record = self.archive.run(cell), self.archive.record(cell)
        try:
            result = json.loads(run.read(RESULT_FILE))
        except ValueError as error:
            raise RunError(f"{run.name(RESULT_FILE)} is damaged ({error}); remove it") from None
        content: dict[str, Any] = {
            "record": record and vars(replace(record, command=portable(record.command))),
            "result": {key: value for key, value in result.items() if key not in _PLACES},
            "tested": None,
            "experts": None,
        }
        resampled: dict[str, np.ndarray] = {}
        if cell.scored:
            answers = self._predictions(cell)
            content["tested"] = {
                "keys": short_hash(map(str, answers.key)),
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
            experts = expert_information(answers, self.suite.ends[-1], self.suite.permutations, key)
            content["experts"] = experts and asdict(experts)
        return Finished(cell, content, resampled, is_kept=False)

    def from_kept(self, cell: Cell, kept: dict[str, Any]) -> Finished:
        """What is kept of a cell."""
        resampled = _by_key(kept["numbers"], self.archive.kept[cell.data].arrays.get(cell.name))
        wanted = [metric_key(metric, rate) for metric, rate in self._ends(cell.data)] if cell.scored else []
        if any(len(resampled.get(key, ())) != self.suite.resamples for key in wanted):
            raise RunError(
                f"{cell.name}: the kept results do not have {self.suite.resamples} resamples of {', '.join(wanted)}; "
                "set results=null and run the cell again"
            )
        if kept["tested"] is not None:
            self._check(cell, kept["tested"])
        return Finished(cell, kept, resampled, is_kept=True)

    def ensemble(self, model: str, data: str, seeds: dict[int, list[Finished]]) -> Ensemble | None:
        """None with fewer than two seeds, or where predictions of a seed are gone and no ensemble of them is kept."""
        items = [item for cells in seeds.values() for item in cells]
        if len(seeds) < 2:
            return None
        if any(item.is_kept for item in items):
            file = self.archive.kept[data]
            kept = file.ensembles.get(model)
            if kept is None or kept["cells"] != {item.cell.name: item.fingerprint for item in items}:
                return None
            return Ensemble(kept["values"], _by_key(kept["numbers"], file.arrays[f"ensemble {model}"]), is_kept=True)
        values: dict[str, list[np.ndarray]] = {}
        for cells in zip(*seeds.values(), strict=True):  # one fold of all seeds
            answers = [self._predictions(item.cell) for item in cells]
            subject, weights = self._resamples(cells[0].cell, answers[0])
            rows = np.concatenate((np.ones((1, weights.shape[1])), weights))
            for metric in self.suite.data[data].metrics:
                for rate in sorted(self.suite.rates):
                    for scenario in answers[0].scenarios(rate):
                        chance = np.mean([_softmax(each.logits[scenario]) for each in answers], axis=0)
                        found = weighted_metric(metric, np.log(chance + 1e-30), answers[0].target, subject, rows)
                        values.setdefault(metric_key(metric, rate), []).append(found)
        means = {key: np.mean(parts, axis=0) for key, parts in values.items()}
        ends = [metric_key(metric, rate) for metric, rate in self._ends(data)]
        resampled = {key: _rounded(means[key][1:]) for key in ends}
        return Ensemble({key: float(mean[0]) for key, mean in means.items()}, resampled, is_kept=False)

    def _ends(self, data: str) -> list[tuple[str, float]]:
        return [(metric, rate) for metric in self.suite.data[data].metrics for rate in self.suite.ends]

    def _predictions(self, cell: Cell) -> Predictions:
        run = self.archive.run(cell)
        try:
            return Predictions.read(run)
        except ObjectMissing:
            raise RunError(f"{run.name()} has no predictions.npz (evaluation.predictions); run it again") from None

    def _check(self, cell: Cell, tested: dict[str, Any]) -> None:
        """Raise DataError where a cell was tested on other samples than the others of its data set."""
        if self._tested.setdefault((cell.data, cell.fold), tested["keys"]) != tested["keys"]:
            raise DataError(f"{cell.name} was tested on other samples than other cells of {cell.data}; run it again")
        place = (cell.data, cell.fold, str(cell.settings.get("data.modalities")))
        if self._tested.setdefault(place, tested["modalities"]) != tested["modalities"]:
            raise DataError(
                f"{cell.name} was tested with {', '.join(tested['modalities'])}, another cell with "
                f"{', '.join(self._tested[place])}: the data set was packed in two ways; run one of them again"
            )

    def _resamples(self, cell: Cell, answers: Predictions) -> tuple[np.ndarray, np.ndarray]:
        """Number of each sample's subject [N]; weights of the subjects [resamples, subjects]."""
        place = cell.data, cell.fold
        if place not in self._people:
            names, subject = np.unique(answers.subject, return_inverse=True)
            key = rng.key(0, "bootstrap", cell.data, -1 if cell.fold is None else cell.fold)
            self._people[place] = subject, subject_weights(len(names), self.suite.resamples, key)
        return self._people[place]


def _rounded(values: np.ndarray) -> np.ndarray:
    """As the kept file holds them, so that reports with and without the runs are the same."""
    return values.astype(np.float32).astype(np.float64)


def _array(resampled: dict[str, np.ndarray]) -> np.ndarray:
    return np.array(list(resampled.values()), np.float32)


def _by_key(numbers: Sequence[str], array: np.ndarray | None) -> dict[str, np.ndarray]:
    return {} if array is None else {key: row.astype(np.float64) for key, row in zip(numbers, array, strict=False)}


def _mean(values: Sequence[float | None]) -> float:
    return fmean(math.nan if value is None else value for value in values)


def _softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    odds = np.exp(shifted)
    return odds / odds.sum(1, keepdims=True)
