"""The goals of a suite, by the suite's name: what its results should reach. Each goal is a row of `results.json`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from benchmarks.common import Row

from maestro_dist.evaluation.table import metric_label
from suite.collect import Results

BASELINES = ("minirocket", "minirocket_drop", "lightgbm", "lightgbm_drop")
RECORDING = ("lightgbm_recording", "lightgbm_recording_drop")
A, B, C = "uci_hapt", "stress_folds", "physionet2012"


@dataclass(frozen=True)
class Goal:
    """A figure and what it should reach.

    value   NaN where cells are not finished, or where it is undefined: a test split with one class has no AUROC
    target  what to reach (NaN as above), and in `note` how it was found; None: there is nothing to compare with
    sense   "less than": strictly; the row says "at most"
    aim     a better value, shown and never counted
    form    how the report writes the numbers
    why     why the goal is missed, shown only where it is
    """

    name: str
    value: float
    unit: str
    target: float | None
    note: str = ""
    sense: Literal["at least", "at most", "less than"] = "at least"
    aim: float | None = None
    form: str = ".3f"
    why: str = ""

    @property
    def row(self) -> Row | None:
        """Value, target and whether it is reached; None where one of them is NaN."""
        if math.isnan(self.value) or math.isnan(self.target or 0.0):
            return None
        if self.target is None:
            return Row(self.name, self.value, self.unit)
        value, target = self.value, self.target
        holds = {"at least": value >= target, "at most": value <= target, "less than": value < target}[self.sense]
        sense: Literal["at least", "at most"] = "at least" if self.sense == "at least" else "at most"
        return Row(self.name, value, self.unit, target, holds, sense)


def mean(results: Results, model: str, data: str, metric: str, rate: float = 0.0) -> tuple[float, str]:
    """A model's mean over seeds, folds and draws, and its unit."""
    return results.mean(model, data, metric, rate), metric_label(metric)


def lost(results: Results, model: str, data: str, metric: str) -> tuple[float, str]:
    """What a model loses from complete data to 40 % missing, and its unit."""
    return results.mean(model, data, metric, 0.0) - results.mean(model, data, metric, 0.4), metric_label(metric)


def gain(results: Results, model: str, over: str, data: str, metric: str) -> tuple[float, str]:
    """How much better a model is than another one, on complete data, and its unit."""
    return results.mean(model, data, metric, 0.0) - results.mean(over, data, metric, 0.0), metric_label(metric)


def largest_p(results: Results, model: str, data: str) -> tuple[float, str]:
    """The largest p value of all runs that experts and missing sets are independent; 1 for a run without experts."""
    found = [item.content["experts"] or {"p": 1.0} for item in results.of(model, data)]
    return max((item["p"] for item in found), default=math.nan), "p"


def reached(goals: Sequence[Goal]) -> tuple[float, str]:
    """How many of some goals are reached."""
    rows = [goal.row for goal in goals]
    return math.nan if None in rows else float(sum(bool(row and row.holds) for row in rows)), f"of {len(rows)}"


def best_of(
    results: Results, models: Sequence[str], data: str, metric: str, rate: float = 0.0, more: float = 0.0
) -> tuple[float, str]:
    """A target: the best mean of some models, and `more`."""
    means = {model: results.mean(model, data, metric, rate) for model in models}
    best = max(models, key=means.__getitem__)
    whose = best if len(models) == 1 else f"{best}, the best of {len(models)},"
    found = f"{whose} {means[best]:.3f}" + (f" {more:+g}" if more else "")
    return (math.nan if any(map(math.isnan, means.values())) else means[best] + more), found


def least_lost(
    results: Results, models: Sequence[str], data: str, metric: str, *, like: str, within: float = 0.03
) -> tuple[float | None, str]:
    """A target: the least lost by models that are as good as `like` on complete data, within this difference."""
    whole, means = (results.mean(like, data, metric, 0.0), {m: results.mean(m, data, metric, 0.0) for m in models})
    losses = {m: lost(results, m, data, metric)[0] for m in models if not abs(means[m] - whole) > within}
    if not losses:
        return None, f"none of {len(models)} lies within {within:g} of {whole:.3f}"
    least = min(losses, key=losses.__getitem__)
    found = f"{least} {losses[least]:.3f}, the least of {len(losses)} within {within:g}"
    return (math.nan if any(map(math.isnan, losses.values())) else losses[least]), found


def suite_goals(results: Results) -> list[Goal]:
    """Of `configs/suite.yaml`."""
    ours = partial(mean, results, "maestro")

    def loss(name: str, data: str, metric: str, models: Sequence[str], why: str = "") -> Goal:
        target, note = least_lost(results, models, data, metric, like="maestro")
        name = f"{name} lost at 40 % missing, against the least of a baseline as good"
        aim = target and 0.5 * target
        return Goal(name, *lost(results, "maestro", data, metric), target, note, "less than", aim=aim, why=why)

    def pretraining(name: str, data: str, metric: str, why: str = "") -> Goal:
        name = f"{name} with a tenth of the labels, gained by pre-training"
        return Goal(name, *gain(results, "tenth_pretrained", "tenth", data, metric), 0.03, why=why)

    pretrained = [
        pretraining("A, macro-F1", A, "macro_f1"),
        pretraining(
            "B, AUROC", B, "auroc",
            "On validation people of three folds it gained .034 (.786 to .820), so it was chosen. On test people of "
            "five folds (one seed) a tenth of the labels alone gives .793, and all labels give .813: fewer than three "
            "points are left to gain.",
        ),
        pretraining(
            "C, AUROC", C, "auroc",
            "The choice of the stays (320, about one in seven ended in death) matters more than the weights at the "
            "start: without pre-training the three seeds are between .796 and .820 on set-b, and two draws on "
            "validation stays are at .758 and .844. Pre-training changes the three by +.011, -.013 and -.050, and the "
            "two by +.060 and -.003; an earlier trial on validation stays lost .011. Hiding half of the series "
            "instead of a third, or words of 6 or 12 hours instead of whole series, gained less on the first of the "
            "two.",
        ),
    ]  # fmt: skip
    return [
        Goal("A, accuracy, complete", *ours(A, "accuracy"), 0.96, aim=0.968),
        Goal("A, macro-F1, complete", *ours(A, "macro_f1"), 0.87, aim=0.88),
        Goal("A, accuracy, 40 % missing", *ours(A, "accuracy", 0.4), 0.895, aim=0.905),
        Goal("A, macro-F1, 40 % missing", *ours(A, "macro_f1", 0.4), 0.815, aim=0.83),
        Goal(
            "B, AUROC over five folds, complete, against the better LightGBM",
            *ours(B, "auroc"), *best_of(results, RECORDING, B, "auroc", more=0.02), aim=0.82,
        ),
        Goal(
            "B, AUROC over five folds, 40 % missing, against the better LightGBM",
            *ours(B, "auroc", 0.4), *best_of(results, RECORDING, B, "auroc", 0.4, more=0.02), aim=0.755,
        ),
        Goal("C, AUROC, complete", *ours(C, "auroc"), 0.866, aim=0.872),
        Goal("C, AUPRC, complete", *ours(C, "auprc"), 0.54, aim=0.555),
        Goal("C, AUROC, 40 % missing", *ours(C, "auroc", 0.4), 0.835, aim=0.842),
        Goal("C, AUPRC, 40 % missing", *ours(C, "auprc", 0.4), 0.48, aim=0.495),
        Goal(
            "A, accuracy, complete, against the best baseline",
            *ours(A, "accuracy"), *best_of(results, BASELINES, A, "accuracy"),
            why="It is .002 short, as much as the seeds differ. MiniRocket without dropout is this good on complete "
            "data only: with 40 % missing it is at .689, and with dropout it is at .945 on complete data.",
        ),
        Goal(
            "A, accuracy, 40 % missing, against the best baseline",
            *ours(A, "accuracy", 0.4), *best_of(results, BASELINES, A, "accuracy", 0.4),
        ),
        Goal(
            "C, AUROC, complete, against the best baseline",
            *ours(C, "auroc"), *best_of(results, BASELINES, C, "auroc"),
            why="It is less than .001 short, less than the seeds differ. LightGBM without dropout is this good on "
            "complete data only: with 40 % missing it is at .811, and with dropout it is at .866 on complete data.",
        ),
        Goal(
            "C, AUROC, 40 % missing, against the best baseline",
            *ours(C, "auroc", 0.4), *best_of(results, BASELINES, C, "auroc", 0.4),
        ),
        loss("A, accuracy", A, "accuracy", BASELINES),
        loss(
            "B, AUROC", B, "auroc", (*BASELINES, *RECORDING),
            "It is .001 short. More modality dropout (up to .5 instead of .4) changed neither end on validation "
            "people, and the loss starts from a higher value: LightGBM with dropout is at .728 where this model is at "
            ".752.",
        ),
        loss("C, AUROC", C, "auroc", BASELINES),
        *(
            Goal(f"{x}, experts and missing sets, largest p", *largest_p(results, "maestro", data), 0.01, "", "at most")
            for x, data in (("A", A), ("B", B), ("C", C))
        ),
        *pretrained,
        Goal(
            "Data sets on which pre-training gains three points", *reached(pretrained), 2.0, aim=3.0, form="g",
            why="Only A does. On B a tenth of the labels is almost as good as all of them; on C the gain has another "
            "sign for another seed (see both above).",
        ),
    ]  # fmt: skip


def smoke_goals(results: Results) -> list[Goal]:
    """Of `configs/suite_smoke.yaml`."""
    others = best_of(results, ("lightgbm", "maestro"), "excerpt", "accuracy", 0.4, more=0.02)
    missing = mean(results, "minirocket", "excerpt", "accuracy", 0.4)
    return [
        Goal("LightGBM, complete", *mean(results, "lightgbm", "excerpt", "accuracy"), 0.1, aim=0.9),
        Goal("MiniRocket against the best of the others, 40 % missing", *missing, *others),
    ]


GOALS: dict[str, Callable[[Results], list[Goal]]] = {"suite": suite_goals, "smoke": smoke_goals}
