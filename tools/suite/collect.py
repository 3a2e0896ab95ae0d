"""The results of finished cells, by data set, entry, seed and fold: from their runs, or from what was kept of them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from statistics import fmean
from typing import Any

import numpy as np

from maestro_dist import rng
from maestro_dist.data.storage import ObjectMissing, Storage
from maestro_dist.errors import DataError, RunError
from maestro_dist.evaluation import Evaluation, Predictions
from maestro_dist.task.base import higher_is_better
from suite.bootstrap import subject_weights, weighted_metric
from suite.cells import Cell
from suite.experts import Information, expert_information
from suite.keep import DIGEST_FILE, Digest, names_digest, number_key
from suite.plan import Plan
from suite.record import (
    RESULT_FILE,
    Record,
    kept_of,
    portable,
    read_record,
    result_of,
    run_of,
    settings_digest,
    write_record,
)

_PLACES = ("checkpoint", "model", "mlflow_model")


@dataclass
class Finished:
    """A cell that has its result; the answers of its test are read when they are first needed.

    kept: what was kept of it, where its run is not there any more.
    """

    cell: Cell
    evaluation: Evaluation
    record: Record | None
    run: Storage
    kept: Digest | None = None

    @cached_property
    def predictions(self) -> Predictions:
        """Raises RunError where the run has kept none."""
        try:
            return Predictions.read(self.run)
        except ObjectMissing:
            raise RunError(f"{self.run.name()} has no predictions.npz (evaluation.predictions); run it again") from None

    @property
    def tested(self) -> dict[str, Any]:
        """Who and what was tested: names_digest of the samples ("keys"), "subjects" (how many), "modalities"."""
        if self.kept is not None:
            return {name: self.kept.about[name] for name in ("keys", "subjects", "modalities")}
        found = self.predictions
        return {
            "keys": names_digest(map(str, found.key)),
            "subjects": len(np.unique(found.subject)),
            "modalities": [str(name) for name in found.modalities],
        }


@dataclass
class Results:
    """All finished cells of a plan."""

    plan: Plan
    finished: dict[str, Finished]
    _tested: dict[tuple[str, int | None], tuple[np.ndarray, ...]] = field(default_factory=dict)
    _keys: dict[tuple[str, int | None], str] = field(default_factory=dict)
    _modalities: dict[tuple[str, int | None, str], list[str]] = field(default_factory=dict)
    _resampled: dict[tuple[object, ...], np.ndarray] = field(default_factory=dict)
    _informed: dict[tuple[str, float], Information | None] = field(default_factory=dict)

    def seeds(self, entry: str, data: str) -> dict[int, list[Finished]]:
        """Its seeds with all folds, with their cells by fold; a pre-training, which has no scores, has none."""
        found: dict[int, list[Finished]] = {}
        for seed in dict.fromkeys(cell.seed for cell in self.plan.cells_of(entry, data)):
            cells = [cell for cell in self.plan.cells_of(entry, data) if cell.seed == seed]
            if all(cell.scored and cell.name in self.finished for cell in cells):
                found[seed] = [self.finished[cell.name] for cell in cells]
        return found

    def values(self, entry: str, data: str, metric: str, rate: float, of: Sequence[int] | None = None) -> list[float]:
        """A metric of each of an entry's finished seeds (or of those in `of`): mean over its folds and draws.

        NaN where it is undefined (a test split that has one class only).
        """
        return [
            _mean([item.evaluation.mean(metric, rate) for item in cells])
            for seed, cells in self.seeds(entry, data).items()
            if of is None or seed in of
        ]

    def bootstrap(
        self, entry: str, data: str, metric: str, rate: float, of: Sequence[int] | None = None
    ) -> np.ndarray | None:
        """The mean of `values` under each resample of the test subjects: float64 [R]; None where there is no seed."""
        seeds = self.seeds(entry, data)
        found = [self._resampled_seed(cells, metric, rate) for seed, cells in seeds.items() if of is None or seed in of]
        return np.mean(found, axis=0) if found else None

    def ensemble(self, entry: str, data: str, metric: str, rate: float) -> tuple[float, np.ndarray] | None:
        """Of the average of the seeds' probabilities, and that under each resample; None with fewer than two seeds."""
        seeds = self.seeds(entry, data)
        if len(seeds) < 2:
            return None
        if any(item.kept is not None for cells in seeds.values() for item in cells):
            return kept_ensemble(self.plan, entry, data, metric, rate)
        parts = []
        for cells in zip(*seeds.values(), strict=True):  # one fold of all seeds
            subject, weights = self._people(cells[0])
            rows = np.concatenate((np.ones((1, weights.shape[1])), weights))
            for scenario in cells[0].predictions.scenarios(rate):
                chance = np.mean([_softmax(item.predictions.logits[scenario]) for item in cells], axis=0)
                logits = np.log(chance + 1e-30)
                parts.append(weighted_metric(metric, logits, cells[0].predictions.target, subject, rows))
        both = np.mean(parts, axis=0)
        return float(both[0]), both[1:]

    def lacking(self, entry: str, data: str) -> bool:
        """Whether an entry has several seeds but no ensemble, as the answers of some are no longer there."""
        metric, rate = self.plan.data(data).metrics[0], min(self.plan.suite.rates)
        return len(self.seeds(entry, data)) > 1 and self.ensemble(entry, data, metric, rate) is None

    def best(self, entries: Sequence[str], data: str, metric: str, rate: float) -> str | None:
        """The entry with the best mean."""
        found = {name: self.values(name, data, metric, rate) for name in entries}
        means = {name: fmean(values) for name, values in found.items() if values and np.isfinite(values).all()}
        if not means:
            return None
        return (max if higher_is_better(metric) else min)(means, key=lambda name: means[name])

    def experts(self, item: Finished, rate: float) -> Information | None:
        """Of a run's experts and missing sets at a rate; None where it has no experts, or there is one set only."""
        place = item.cell.name, rate
        if item.kept is not None:
            told = item.kept.about["experts"]
            if told["rate"] != rate:
                raise RunError(f"{item.run.name()} tells of experts at {told['rate']:g}, not at {rate:g}; run it again")
            return None if told["found"] is None else Information(**told["found"])
        if place not in self._informed:
            key = rng.key(item.cell.seed, "experts", item.cell.name)
            self._informed[place] = expert_information(item.predictions, rate, self.plan.suite.permutations, key)
        return self._informed[place]

    def _resampled_seed(self, cells: list[Finished], metric: str, rate: float) -> np.ndarray:
        """One seed's metric under each resample of the subjects, mean over folds and draws: float64 [R]."""
        found: np.ndarray = np.mean([self.resampled(item, metric, rate) for item in cells], axis=0)
        return found

    def resampled(self, item: Finished, metric: str, rate: float) -> np.ndarray:
        """A cell's metric under each resample of its test subjects, mean over the draws: float64 [R]."""
        self._same_samples(item)
        if item.kept is not None:
            found = item.kept.numbers.get((metric, rate))
            if found is None or len(found) != self.plan.suite.resamples:
                raise RunError(
                    f"{item.run.name()} has not the {self.plan.suite.resamples} resamples of {metric} at {rate:g}; "
                    "remove it, and run the cell again"
                )
            return found
        name = (item.cell.name, metric, rate)
        if name not in self._resampled:
            subject, weights = self._people(item)
            predictions = item.predictions
            parts = [
                weighted_metric(metric, predictions.logits[scenario], predictions.target, subject, weights)
                for scenario in predictions.scenarios(rate)
            ]
            self._resampled[name] = np.mean(parts, axis=0)
        return self._resampled[name]

    def subjects(self, data: str) -> int:
        """Test subjects of a data set, over all folds with a finished cell."""
        seen = {}
        for item in self.finished.values():
            if item.cell.data == data and item.cell.scored:
                seen[item.cell.fold] = int(item.tested["subjects"])
        return sum(seen.values())

    def _same_samples(self, item: Finished) -> None:
        place, tested = (item.cell.data, item.cell.fold), item.tested
        if self._keys.setdefault(place, tested["keys"]) != tested["keys"]:
            raise DataError(f"{item.run.name()} was tested on other samples than the cells beside it; run it again")
        chosen = (*place, str(item.cell.settings.get("data.modalities")))
        if self._modalities.setdefault(chosen, tested["modalities"]) != tested["modalities"]:
            raise DataError(
                f"{item.run.name()} was tested with {', '.join(tested['modalities'])}, a cell beside it with "
                f"{', '.join(self._modalities[chosen])}: the data set was packed in two ways; run one of them again"
            )

    def _people(self, item: Finished) -> tuple[np.ndarray, np.ndarray]:
        """(subject's number of each sample, weights [R, S]) of a data set's fold, the same for all its cells."""
        place = item.cell.data, item.cell.fold
        self._same_samples(item)
        if place not in self._tested:
            people, subject = np.unique(item.predictions.subject, return_inverse=True)
            key = rng.key(0, "bootstrap", item.cell.data, -1 if item.cell.fold is None else item.cell.fold)
            weights = subject_weights(len(people), self.plan.suite.resamples, key)
            self._tested[place] = subject, weights
        subject, weights = self._tested[place]
        return subject, weights


def collect(plan: Plan) -> Results:
    """Read the results of all cells that have one; a run is preferred to what was kept of an earlier one."""
    found = {}
    for cell in plan.cells:
        place = result_of(plan, cell)
        if place is None:
            continue
        try:
            content = json.loads(place.read(RESULT_FILE))
            evaluation = Evaluation.from_json(content["evaluation"])
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"{place.name(RESULT_FILE)} is damaged ({error}); remove it") from None
        kept = None
        if place.url != run_of(plan, cell).url:
            kept = Digest.read(place, DIGEST_FILE)
            if kept is None:
                raise RunError(f"{place.name()} has no {DIGEST_FILE}; remove it, and run the cell")
        found[cell.name] = Finished(cell, evaluation, read_record(place), place, kept)
    return Results(plan, found)


def keep(results: Results) -> int:
    """Keep what reports need of the runs that are there, where the suite says so. Returns how many cells it wrote."""
    plan, wrote = results.plan, 0
    rates = sorted(plan.suite.rates)
    ends = list(dict.fromkeys((rates[0], rates[-1])))
    for item in results.finished.values():
        place = kept_of(plan, item.cell)
        if place is None or item.kept is not None:
            continue
        about: dict[str, Any] = {"keys": "", "subjects": 0, "modalities": [], "experts": None}
        numbers: dict[tuple[str, float], np.ndarray] = {}
        if item.cell.scored:
            answer = results.experts(item, rates[-1])
            experts = {"rate": rates[-1], "found": None if answer is None else asdict(answer)}
            about = {**item.tested, "experts": experts}
            metrics = plan.data(item.cell.data).metrics
            numbers = {(metric, rate): results.resampled(item, metric, rate) for metric in metrics for rate in ends}
        place.write(DIGEST_FILE, Digest(about, numbers).to_bytes())
        # of the result without where weights and model lie: they are not kept
        told = {key: value for key, value in json.loads(item.run.read(RESULT_FILE)).items() if key not in _PLACES}
        place.write(RESULT_FILE, json.dumps(told, indent=1).encode())
        if item.record is not None:
            write_record(place, portable(item.record))
        wrote += 1
    for entry in plan.suite.entries:
        for data in entry.data:
            _keep_ensemble(results, entry.name, data, rates, ends)
    return wrote


def _keep_ensemble(results: Results, entry: str, data: str, rates: list[float], ends: list[float]) -> None:
    plan = results.plan
    cells = [results.finished.get(cell.name) for cell in plan.cells_of(entry, data)]
    if plan.kept is None or any(item is None or item.kept is not None for item in cells):
        return
    values: dict[str, float] = {}
    numbers: dict[tuple[str, float], np.ndarray] = {}
    for metric in plan.data(data).metrics:
        for rate in rates:
            found = results.ensemble(entry, data, metric, rate)
            if found is None:
                return
            values[number_key(metric, rate)] = found[0]
            if rate in ends:
                numbers[metric, rate] = found[1]
    about = {"values": values, "cells": ensemble_cells(plan, entry, data)}
    Storage(plan.kept).join("ensembles").write(f"{data}.{entry}.npz", Digest(about, numbers).to_bytes())


def kept_ensemble(plan: Plan, entry: str, data: str, metric: str, rate: float) -> tuple[float, np.ndarray] | None:
    """As `Results.ensemble`, of an ensemble that was kept; None where none was, or of other cells."""
    if plan.kept is None:
        return None
    kept = Digest.read(Storage(plan.kept).join("ensembles"), f"{data}.{entry}.npz")
    if kept is None or kept.about["cells"] != ensemble_cells(plan, entry, data):
        return None
    value = kept.about["values"].get(number_key(metric, rate))
    return None if value is None else (float(value), kept.numbers.get((metric, rate), np.empty(0)))


def ensemble_cells(plan: Plan, entry: str, data: str) -> dict[str, str]:
    """The cells of an entry, each with its `settings_digest`."""
    return {cell.name: settings_digest(cell) for cell in plan.cells_of(entry, data)}


def _mean(values: Sequence[float | None]) -> float:
    return fmean(math.nan if value is None else value for value in values)


def _softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    odds = np.exp(shifted)
    return odds / odds.sum(1, keepdims=True)
