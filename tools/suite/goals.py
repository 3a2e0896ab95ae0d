"""The goals of a suite, by the suite's name: what its results should reach. Each goal is a row of `results.json`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from benchmarks.common import Row

from maestro_dist.evaluation.table import metric_label
from suite.collect import NotFinished, Results

Measure = Callable[[Results], tuple[float, str]]
"""Results -> (value, unit). Raises NotFinished."""
Target = Callable[[Results], tuple[float | None, str]]
"""Results -> (what to reach, how it was found); None: nothing to compare with. Raises NotFinished."""


@dataclass(frozen=True)
class Goal:
    """sense      "less than": strictly; the row says "at most"
    aim        a better value, shown and never counted; with `aim_share` it is this share of the target
    form       how the report writes the numbers
    why        why the goal is missed, shown only where it is
    """

    name: str
    measure: Measure
    target: float | Target | None = None
    sense: Literal["at least", "at most", "less than"] = "at least"
    aim: float | None = None
    aim_share: float | None = None
    form: str = ".3f"
    why: str = ""


@dataclass(frozen=True)
class Judgement:
    """A goal, its row and its aim. Without a row, `note` says why; with one, how its target was found."""

    goal: Goal
    row: Row | None
    note: str = ""
    aim: float | None = None


def judge(goal: Goal, results: Results) -> Judgement:
    """Measure a goal and compare it with its target."""
    try:
        value, unit = goal.measure(results)
        target, note = goal.target(results) if callable(goal.target) else (goal.target, "")
    except NotFinished:
        return Judgement(goal, None, "not finished")
    if math.isnan(value) or (target is not None and math.isnan(target)):
        return Judgement(goal, None, "undefined")  # a test split with one class has no AUROC
    if target is None:
        return Judgement(goal, Row(goal.name, value, unit), note)
    holds = {"at least": value >= target, "at most": value <= target, "less than": value < target}[goal.sense]
    row = Row(goal.name, value, unit, target, holds, "at least" if goal.sense == "at least" else "at most")
    return Judgement(goal, row, note, goal.aim if goal.aim_share is None else goal.aim_share * target)


def mean(model: str, data: str, metric: str, rate: float = 0.0) -> Measure:
    """A model's mean over seeds, folds and draws."""
    return lambda results: (results.mean(model, data, metric, rate), metric_label(metric))


def lost(model: str, data: str, metric: str) -> Measure:
    """What a model loses from complete data to 40 % missing."""
    return lambda results: (_lost(results, model, data, metric), metric_label(metric))


def gain(model: str, over: str, data: str, metric: str) -> Measure:
    """How much better a model is than another one, on complete data."""
    return lambda results: (
        results.mean(model, data, metric, 0.0) - results.mean(over, data, metric, 0.0), metric_label(metric),
    )  # fmt: skip


def largest_p(model: str, data: str) -> Measure:
    """The largest p value of all runs that experts and missing sets are independent; 1 for a run without experts."""
    return lambda results: (max(item.experts["p"] if item.experts else 1.0 for item in results.of(model, data)), "p")


def reached(goals: Sequence[Goal]) -> Measure:
    """How many of some goals are reached."""

    def measure(results: Results) -> tuple[float, str]:
        rows = [judge(goal, results).row for goal in goals]
        if None in rows:
            raise NotFinished
        return float(sum(row is not None and row.holds is True for row in rows)), f"of {len(rows)}"

    return measure


def best_of(models: Sequence[str], data: str, metric: str, rate: float = 0.0, more: float = 0.0) -> Target:
    """The best mean of some models, and `more`."""

    def target(results: Results) -> tuple[float, str]:
        means = {model: results.mean(model, data, metric, rate) for model in models}
        best = max(models, key=lambda model: -math.inf if math.isnan(means[model]) else means[model])
        whose = best if len(models) == 1 else f"{best}, the best of {len(models)},"
        return means[best] + more, f"{whose} {means[best]:.3f}" + (f" {more:+g}" if more else "")

    return target


def least_lost(models: Sequence[str], data: str, metric: str, *, like: str, within: float = 0.03) -> Target:
    """The least that is lost by those models that are as good as `like` on complete data: within this difference."""

    def target(results: Results) -> tuple[float | None, str]:
        whole = results.mean(like, data, metric, 0.0)
        losses = {model: _lost(results, model, data, metric) for model in models}
        near = [model for model in models if abs(results.mean(model, data, metric, 0.0) - whole) <= within]
        if not near:
            return None, f"none of {len(models)} lies within {within:g} of {whole:.3f}"
        least = min(near, key=lambda model: losses[model])
        return losses[least], f"{least} {losses[least]:.3f}, the least of {len(near)} within {within:g}"

    return target


def _lost(results: Results, model: str, data: str, metric: str) -> float:
    return results.mean(model, data, metric, 0.0) - results.mean(model, data, metric, 0.4)


BASELINES = ("minirocket", "minirocket_drop", "lightgbm", "lightgbm_drop")
RECORDING = ("lightgbm_recording", "lightgbm_recording_drop")
A, B, C = "uci_hapt", "stress_folds", "physionet2012"
PRETRAINING = (
    Goal(
        "A, macro-F1 with a tenth of the labels, gained by pre-training",
        gain("tenth_pretrained", "tenth", A, "macro_f1"), 0.03,
    ),
    Goal(
        "B, AUROC with a tenth of the labels, gained by pre-training",
        gain("tenth_pretrained", "tenth", B, "auroc"), 0.03,
        why="On validation people of three folds it gained .034 (.786 to .820), so it was chosen. On test people of "
        "five folds (one seed) a tenth of the labels alone gives .793, and all labels give .813: fewer than three "
        "points are left to gain.",
    ),
    Goal(
        "C, AUROC with a tenth of the labels, gained by pre-training",
        gain("tenth_pretrained", "tenth", C, "auroc"), 0.03,
        why="The choice of the stays (320, about one in seven ended in death) matters more than the weights at the "
        "start: without pre-training the three seeds are between .796 and .820 on set-b, and two draws on validation "
        "stays are at .758 and .844. Pre-training changes the three by +.011, -.013 and -.050, and the two by +.060 "
        "and -.003; an earlier trial on validation stays lost .011. Hiding half of the series instead of a third, or "
        "words of 6 or 12 hours instead of whole series, gained less on the first of the two.",
    ),
)  # fmt: skip
GOALS: dict[str, tuple[Goal, ...]] = {
    "suite": (
        Goal("A, accuracy, complete", mean("maestro", A, "accuracy"), 0.96, aim=0.968),
        Goal("A, macro-F1, complete", mean("maestro", A, "macro_f1"), 0.87, aim=0.88),
        Goal("A, accuracy, 40 % missing", mean("maestro", A, "accuracy", 0.4), 0.895, aim=0.905),
        Goal("A, macro-F1, 40 % missing", mean("maestro", A, "macro_f1", 0.4), 0.815, aim=0.83),
        Goal(
            "B, AUROC over five folds, complete, against the better LightGBM",
            mean("maestro", B, "auroc"), best_of(RECORDING, B, "auroc", more=0.02), aim=0.82,
        ),
        Goal(
            "B, AUROC over five folds, 40 % missing, against the better LightGBM",
            mean("maestro", B, "auroc", 0.4), best_of(RECORDING, B, "auroc", 0.4, more=0.02), aim=0.755,
        ),
        Goal("C, AUROC, complete", mean("maestro", C, "auroc"), 0.866, aim=0.872),
        Goal("C, AUPRC, complete", mean("maestro", C, "auprc"), 0.54, aim=0.555),
        Goal("C, AUROC, 40 % missing", mean("maestro", C, "auroc", 0.4), 0.835, aim=0.842),
        Goal("C, AUPRC, 40 % missing", mean("maestro", C, "auprc", 0.4), 0.48, aim=0.495),
        Goal(
            "A, accuracy, complete, against the best baseline",
            mean("maestro", A, "accuracy"), best_of(BASELINES, A, "accuracy"),
            why="It is .002 short, as much as the seeds differ. MiniRocket without dropout is this good on complete "
            "data only: with 40 % missing it is at .689, and with dropout it is at .945 on complete data.",
        ),
        Goal(
            "A, accuracy, 40 % missing, against the best baseline",
            mean("maestro", A, "accuracy", 0.4), best_of(BASELINES, A, "accuracy", 0.4),
        ),
        Goal(
            "C, AUROC, complete, against the best baseline",
            mean("maestro", C, "auroc"), best_of(BASELINES, C, "auroc"),
            why="It is less than .001 short, less than the seeds differ. LightGBM without dropout is this good on "
            "complete data only: with 40 % missing it is at .811, and with dropout it is at .866 on complete data.",
        ),
        Goal(
            "C, AUROC, 40 % missing, against the best baseline",
            mean("maestro", C, "auroc", 0.4), best_of(BASELINES, C, "auroc", 0.4),
        ),
        Goal(
            "A, accuracy lost at 40 % missing, against the least of a baseline as good",
            lost("maestro", A, "accuracy"), least_lost(BASELINES, A, "accuracy", like="maestro"),
            "less than", aim_share=0.5,
        ),
        Goal(
            "B, AUROC lost at 40 % missing, against the least of a baseline as good",
            lost("maestro", B, "auroc"), least_lost((*BASELINES, *RECORDING), B, "auroc", like="maestro"),
            "less than", aim_share=0.5,
            why="It is .001 short. More modality dropout (up to .5 instead of .4) changed neither end on validation "
            "people, and the loss starts from a higher value: LightGBM with dropout is at .728 where this model is at "
            ".752.",
        ),
        Goal(
            "C, AUROC lost at 40 % missing, against the least of a baseline as good",
            lost("maestro", C, "auroc"), least_lost(BASELINES, C, "auroc", like="maestro"),
            "less than", aim_share=0.5,
        ),
        *(
            Goal(f"{letter}, experts and missing sets, largest p", largest_p("maestro", data), 0.01, "at most")
            for letter, data in (("A", A), ("B", B), ("C", C))
        ),
        *PRETRAINING,
        Goal(
            "Data sets on which pre-training gains three points", reached(PRETRAINING), 2.0, aim=3.0, form="g",
            why="Only A does. On B a tenth of the labels is almost as good as all of them; on C the gain has another "
            "sign for another seed (see both above).",
        ),
    ),
    "smoke": (
        Goal("LightGBM, complete", mean("lightgbm", "excerpt", "accuracy"), 0.1, aim=0.9),
        Goal(
            "MiniRocket against the best of the others, 40 % missing",
            mean("minirocket", "excerpt", "accuracy", 0.4),
            best_of(("lightgbm", "maestro"), "excerpt", "accuracy", 0.4, more=0.02),
        ),
    ),
}  # fmt: skip
