"""Goals on results that are known: means, losses, gains, the best of others, p values, counts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.common import Row
from finished_cells import finish, make, results_of
from suite.archive import Archive
from suite.collect import Results
from suite.goals import GOALS, Goal, best_of, largest_p, least_lost, lost
from suite.matrix import ROOT, load_plan

DATA = {"set": {"url": "data", "metrics": ["accuracy", "auroc"], "config": "configs/quickstart.yaml"}}
RIGHT = {"ours": (0.9, 0.1), "near": (0.9, 0.3), "worse": (0.85, 0.5), "far": (0.3, 0.0)}
"""Share of right answers of each model, and how much less with sensors missing."""
NEAR = ("near", "worse", "far")


def made(storage: Path, *, done: bool = True, **changes: Any) -> Results:
    """A model with experts and three baselines, three seeds each, all finished."""
    models = {name: {"kind": "lightgbm", "data": {"set": {}}} for name in NEAR}
    models["ours"] = {"set": ["run.workers=1"], "data": {"set": {}}}
    plan = make(storage, data=DATA, models=models, ablations=[], **changes)
    for cell in plan.cells if done else ():
        right, less = RIGHT[cell.model]
        finish(plan, cell, right=right, lost=less, experts=cell.model == "ours")
    return results_of(plan)


def average(results: Results, model: str, rate: float = 0.0) -> float:
    return float(np.mean([seed.values[f"accuracy@{rate}"] for seed in results.seeds(model, "set").values()]))


def test_a_mean_and_the_best_of_others(tmp_path: Path) -> None:
    results = made(tmp_path)
    ours = average(results, "ours")
    assert results.mean("ours", "set", "accuracy", 0.0) == pytest.approx(ours)
    found = best_of(results, ("far", "ours"), "set", "accuracy")
    assert found == (pytest.approx(ours), f"ours, the best of 2, {ours:.3f}")
    found = best_of(results, ("ours", "far"), "set", "accuracy", more=0.5)
    assert found == (pytest.approx(ours + 0.5), f"ours, the best of 2, {ours:.3f} +0.5")


@pytest.mark.parametrize(
    ("sense", "said", "holds"),
    [
        ("at least", "at least", (True, True, False)),
        ("at most", "at most", (False, True, True)),
        ("less than", "at most", (False, False, True)),
    ],
)
def test_a_goal_becomes_a_row(sense: Any, said: Any, holds: tuple[bool, ...]) -> None:
    for target, reached_it in zip((0.6, 0.7, 0.8), holds, strict=True):
        row = Goal("name", 0.7, "accuracy", target, sense=sense).row
        assert row == Row("name", 0.7, "accuracy", target, reached_it, said)
    assert Goal("name", 0.7, "accuracy", None, sense=sense).row == Row("name", 0.7, "accuracy")
    assert Goal("name", math.nan, "accuracy", 0.5, sense=sense).row is None
    assert Goal("name", 0.7, "accuracy", math.nan, sense=sense).row is None


def test_a_loss_is_compared_with_the_least_of_models_as_good(tmp_path: Path) -> None:
    results = made(tmp_path)
    loss = {model: average(results, model) - average(results, model, 0.4) for model in RIGHT}
    assert loss["far"] < loss["ours"] < loss["near"] < loss["worse"]
    assert lost(results, "ours", "set", "accuracy") == pytest.approx(loss["ours"])
    target, note = least_lost(results, NEAR, "set", "accuracy", like="ours", within=0.2)
    assert target == pytest.approx(loss["near"]), "far loses less, but has less to lose"
    assert note == f"near {target:.3f}, the least of 2 within 0.2"
    target, note = least_lost(results, ("far",), "set", "accuracy", like="ours")
    assert target is None, "no model is as good"
    assert note.startswith("none of 1 lies within 0.03 of 0.9")


def test_the_largest_p_of_all_runs(tmp_path: Path) -> None:
    results = made(tmp_path)
    each = [item.content["experts"]["p"] for item in results.of("ours", "set")]
    assert len(each) == 3
    assert largest_p(results, "ours", "set") == max(each)
    assert max(each) > 0.01, "experts are drawn by chance"
    assert largest_p(results, "near", "set") == 1.0, "a baseline has no experts"


def test_a_goal_waits_for_all_cells_of_its_models(tmp_path: Path) -> None:
    nothing = made(tmp_path / "none", done=False)
    found = [
        nothing.mean("ours", "set", "accuracy", 0.0),
        lost(nothing, "ours", "set", "accuracy"),
        largest_p(nothing, "ours", "set"),
        best_of(nothing, NEAR, "set", "accuracy")[0],
        least_lost(nothing, NEAR, "set", "accuracy", like="ours")[0],
    ]
    assert np.isnan(np.array(found, float)).all()
    plan = make(tmp_path)
    cells = plan.cells_of("less", "set")
    assert [cell.seed for cell in cells] == [1, 1], "one seed, both folds"
    finish(plan, cells[0], right=0.5)
    assert math.isnan(results_of(plan).mean("less", "set", "accuracy", 0.0))
    finish(plan, cells[1], right=0.5)
    assert results_of(plan).mean("less", "set", "accuracy", 0.0) > 0


def test_the_goals_of_the_suites_name_models_and_metrics_that_exist() -> None:
    smoke = load_plan(str(ROOT / "configs" / "suite_smoke.yaml"))
    assert {goal.row for goal in GOALS["smoke"](Results(smoke, {}))} == {None}
    suite = load_plan(str(ROOT / "configs" / "suite.yaml"))
    for goal in GOALS["suite"](results_of(suite)):
        assert goal.row is not None, goal.name
    assert Archive(suite).place is not None
