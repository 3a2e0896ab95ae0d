"""The result of an evaluation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from maestro_dist.errors import DataError
from maestro_dist.evaluation.expert_loads import ExpertLoad
from maestro_dist.evaluation.predictions import Predictions

if TYPE_CHECKING:
    import numpy as np


MOST_CLASSES = 256
"""Largest number of classes for which the confusion is stored as a square matrix."""


def percent(rate: float) -> str:
    """A share in percent: 0.4 -> "40 %"."""
    return f"{100 * rate:.4g} %"


@dataclass(frozen=True)
class Scenario:
    """Metrics of the split with one mask: missing rate `rate`, number of the random draw `draw`."""

    rate: float
    draw: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class Evaluation:
    """Metrics of every scenario of a split; the same on all ranks.

    metrics        names of the task's metrics, in the order of tables
    class_counts   samples of each class in the split (classification); over time the labels, as in `confusion`
    confusion      counts [C][C] of the complete scenario, true class by predicted class (classification)
    confused       instead of `confusion` for more than `MOST_CLASSES` classes: true class, predicted class, and samples
                   of each pair that occurs
    known          of several targets the samples (over time the parts) in which each is known, by its name
    labels         labelled parts of all samples, if there are labels over time
    loads          loads of the experts by missing set, over all scenarios (a model with experts)
    logits, target float32 [N, C] and [N] (of several targets [N, K], over time as in `Batch`) of the complete scenario
                   in manifest order; on rank 0 only, not in the JSON
    predictions    predictions of every scenario, if the plan keeps them; on rank 0 only, not in the JSON
    """

    split: str
    samples: int
    metrics: list[str]
    scenarios: list[Scenario]
    class_counts: list[int] | None = None
    confusion: list[list[int]] | None = None
    confused: list[list[int]] | None = None
    known: dict[str, int] | None = None
    labels: int | None = None
    loads: list[ExpertLoad] | None = None
    logits: np.ndarray | None = None
    target: np.ndarray | None = None
    predictions: Predictions | None = None

    @property
    def rates(self) -> list[float]:
        """The missing rates, ascending."""
        return sorted({scenario.rate for scenario in self.scenarios})

    def values(self, metric: str, rate: float) -> list[float]:
        """A metric for each draw at a rate; draws without a defined value are left out."""
        all_values = [scenario.metrics.get(metric, math.nan) for scenario in self.scenarios if scenario.rate == rate]
        return [value for value in all_values if not math.isnan(value)]

    def mean(self, metric: str, rate: float) -> float | None:
        """Mean over the draws at a rate; None if the metric is undefined."""
        values = self.values(metric, rate)
        return fmean(values) if values else None

    def spread(self, metric: str, rate: float) -> float | None:
        """Sample standard deviation over the draws at a rate; None with fewer than two draws."""
        values = self.values(metric, rate)
        return stdev(values) if len(values) > 1 else None

    def score(self, metric: str) -> float:
        """Mean of a metric over the rates; it chooses the best weights. Raises DataError if it is undefined."""
        means = [self.mean(metric, rate) for rate in self.rates]
        defined = [value for value in means if value is not None]
        if len(defined) < len(means):
            target = metric.partition(".")[2]
            why = f"no sample has a known {target}" if target else "does it have only one class?"
            raise DataError(f"{metric} is undefined on split {self.split!r} ({why}): choose another evaluation.metric")
        return fmean(defined)

    def majority(self) -> float | None:
        """Accuracy of always predicting the most frequent class (classification)."""
        labels = self.samples if self.labels is None else self.labels
        known = self.class_counts and sum(self.class_counts) == labels  # each label is one class
        return max(self.class_counts or [0]) / labels if known else None

    def flat(self, prefix: str) -> dict[str, float]:
        """Means with flat names: `<prefix>/accuracy` for complete samples, `<prefix>/accuracy_missing_40` and so on."""
        result = {}
        for rate in self.rates:
            suffix = f"_missing_{100 * rate:.4g}" if rate else ""
            for metric in self.metrics:
                value = self.mean(metric, rate)
                if value is not None:
                    result[f"{prefix}/{metric}{suffix}"] = value
        return result

    def to_json(self) -> dict[str, Any]:
        """Plain JSON of everything except logits, targets and predictions."""
        return {
            "split": self.split,
            "samples": self.samples,
            "metrics": self.metrics,
            "scenarios": [
                {"rate": scenario.rate, "draw": scenario.draw, "metrics": scenario.metrics}
                for scenario in self.scenarios
            ],
            "class_counts": self.class_counts,
            "confusion": self.confusion,
            "loads": None if self.loads is None else [load.to_json() for load in self.loads],
        } | {name: found for name in ("confused", "known", "labels") if (found := getattr(self, name)) is not None}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Evaluation:
        """The evaluation that `to_json` wrote."""
        scenarios: Sequence[dict[str, Any]] = content["scenarios"]
        loads = content.get("loads")
        return cls(
            **{
                **content,
                "scenarios": [Scenario(**scenario) for scenario in scenarios],
                "loads": None if loads is None else [ExpertLoad(**load) for load in loads],
            }
        )
