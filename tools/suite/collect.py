"""The results of finished cells, by data set, entry, seed and fold."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean

import numpy as np

from maestro_dist import rng
from maestro_dist.data.storage import ObjectMissing, Storage
from maestro_dist.errors import DataError, RunError
from maestro_dist.evaluation import Evaluation, Predictions
from maestro_dist.task.base import higher_is_better
from suite.bootstrap import subject_weights, weighted_metric
from suite.cells import Cell
from suite.experts import Information, expert_information
from suite.plan import Plan
from suite.record import RESULT_FILE, Record, read_record, run_of


@dataclass
class Finished:
    """A cell that has its result; the answers of its test are read when they are first needed."""

    cell: Cell
    evaluation: Evaluation
    record: Record | None
    run: Storage

    @cached_property
    def predictions(self) -> Predictions:
        """Raises RunError where the run has kept none."""
        try:
            return Predictions.read(self.run)
        except ObjectMissing:
            raise RunError(f"{self.run.name()} has no predictions.npz (evaluation.predictions); run it again") from None


@dataclass
class Results:
    """All finished cells of a plan."""

    plan: Plan
    finished: dict[str, Finished]
    _tested: dict[tuple[str, int | None], tuple[np.ndarray, ...]] = field(default_factory=dict)
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
        """A metric of each of an entry's finished seeds (or of those in `of`): mean over its folds and draws."""
        return [
            _defined([item.evaluation.mean(metric, rate) for item in cells], f"{entry} on {data}: {metric} at {rate}")
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

    def best(self, entries: Sequence[str], data: str, metric: str, rate: float) -> str | None:
        """The entry with the best mean."""
        found = {name: self.values(name, data, metric, rate) for name in entries}
        means = {name: fmean(values) for name, values in found.items() if values}
        if not means:
            return None
        return (max if higher_is_better(metric) else min)(means, key=lambda name: means[name])

    def experts(self, item: Finished, rate: float) -> Information | None:
        """Of a run's experts and missing sets at a rate; None where it has no experts, or there is one set only."""
        place = item.cell.name, rate
        if place not in self._informed:
            key = rng.key(item.cell.seed, "experts", item.cell.name)
            self._informed[place] = expert_information(item.predictions, rate, self.plan.suite.permutations, key)
        return self._informed[place]

    def _resampled_seed(self, cells: list[Finished], metric: str, rate: float) -> np.ndarray:
        """One seed's metric under each resample of the subjects, mean over folds and draws: float64 [R]."""
        name = (cells[0].cell.name, metric, rate)
        if name not in self._resampled:
            parts = []
            for item in cells:
                subject, weights = self._people(item)
                predictions = item.predictions
                for scenario in predictions.scenarios(rate):
                    logits = predictions.logits[scenario]
                    parts.append(weighted_metric(metric, logits, predictions.target, subject, weights))
            self._resampled[name] = np.mean(parts, axis=0)
        return self._resampled[name]

    def subjects(self, data: str) -> int:
        """Test subjects of a data set, over all folds with a finished cell."""
        seen = {}
        for item in self.finished.values():
            if item.cell.data == data and item.cell.scored:
                seen[item.cell.fold] = len(np.unique(item.predictions.subject))
        return sum(seen.values())

    def _people(self, item: Finished) -> tuple[np.ndarray, np.ndarray]:
        """(subject's number of each sample, weights [R, S]) of a data set's fold, the same for all its cells."""
        place = item.cell.data, item.cell.fold
        predictions = item.predictions
        if place not in self._tested:
            people, subject = np.unique(predictions.subject, return_inverse=True)
            key = rng.key(0, "bootstrap", item.cell.data, -1 if item.cell.fold is None else item.cell.fold)
            weights = subject_weights(len(people), self.plan.suite.resamples, key)
            self._tested[place] = predictions.key, subject, weights
        keys, subject, weights = self._tested[place]
        if not np.array_equal(predictions.key, keys):
            raise DataError(f"{item.run.name()} was tested on other samples than the cells beside it; run it again")
        return subject, weights


def collect(plan: Plan) -> Results:
    """Read the results of all cells that have one."""
    found = {}
    for cell in plan.cells:
        run = run_of(plan, cell)
        try:
            content = json.loads(run.read(RESULT_FILE))
            evaluation = Evaluation.from_json(content["evaluation"])
        except ObjectMissing:
            continue
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"{run.name(RESULT_FILE)} is damaged ({error}); remove it") from None
        found[cell.name] = Finished(cell, evaluation, read_record(run), run)
    return Results(plan, found)


def _defined(values: Sequence[float | None], what: str) -> float:
    found = [value for value in values if value is not None]
    if len(found) < len(values):
        raise DataError(f"{what} is undefined (has a test split one class only?)")
    return fmean(found)


def _softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    odds = np.exp(shifted)
    return odds / odds.sum(1, keepdims=True)
