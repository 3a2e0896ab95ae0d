"""Goals on results that are known: means, losses, gains, the best of others, p values, counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finished_cells import finish, make, results_of
from suite.archive import Archive
from suite.collect import Results
from suite.goals import GOALS, Goal, best_of, gain, judge, largest_p, least_lost, lost, mean, reached
from suite.matrix import ROOT, load_plan

DATA = {"set": {"url": "data", "metrics": ["accuracy", "auroc"], "config": "configs/quickstart.yaml"}}
RIGHT = {"ours": (0.9, 0.1), "near": (0.9, 0.3), "worse": (0.85, 0.5), "far": (0.3, 0.0)}
"""Share of right answers of each model, and how much less with sensors missing."""
NEAR = ("near", "worse", "far")
LOST = Goal(
    "lost", lost("ours", "set", "accuracy"), least_lost(NEAR, "set", "accuracy", like="ours", within=0.2),
    "less than", aim_share=0.5,
)  # fmt: skip


def made(storage: Path, *, done: bool = True, **changes: Any) -> Results:
    """A model with experts and three baselines, three seeds each, all finished."""
    models = {name: {"kind": "lightgbm", "data": {"set": {}}} for name in NEAR}
    models["ours"] = {"set": ["run.workers=1"], "data": {"set": {}}}
    plan = make(storage, data=DATA, models=models, ablations=[], **changes)
    for cell in plan.cells if done else ():
        right, less = RIGHT[cell.model]
        finish(plan, cell, right=right, lost=less, experts=cell.model == "ours")
    return results_of(plan)


def test_means_gains_and_the_best_of_others(tmp_path: Path) -> None:
    results = made(tmp_path)
    ours, worse = (np.mean(results.values(name, "set", "accuracy", 0.0)) for name in ("ours", "worse"))
    row = judge(Goal("mean", mean("ours", "set", "accuracy"), 0.7, aim=0.99), results).row
    assert row is not None
    assert (row.value, row.reach, row.holds, row.sense, row.unit) == (
        pytest.approx(ours), 0.7, True, "at least", "accuracy",
    )  # fmt: skip
    found = judge(
        Goal("best", mean("ours", "set", "accuracy"), best_of(("worse",), "set", "accuracy", more=0.5)), results
    )
    assert found.row is not None
    assert (found.row.reach, found.row.holds) == (pytest.approx(worse + 0.5), False)
    assert found.note == f"worse {worse:.3f} +0.5"
    both = judge(Goal("both", mean("ours", "set", "accuracy"), best_of(("far", "ours"), "set", "accuracy")), results)
    assert both.row is not None
    assert (both.row.reach, both.note) == (pytest.approx(ours), f"ours, the best of 2, {ours:.3f}")
    difference = judge(Goal("gain", gain("ours", "worse", "set", "accuracy")), results).row
    assert difference is not None
    assert (difference.value, difference.reach, difference.holds) == (pytest.approx(ours - worse), None, None)
    low = judge(Goal("low", mean("far", "set", "accuracy"), 0.9, "at most"), results).row
    assert low is not None
    assert (low.holds, low.sense) == (True, "at most")


def loss(results: Results, model: str) -> float:
    complete, missing = (results.values(model, "set", "accuracy", rate) for rate in (0.0, 0.4))
    return float(np.mean(complete) - np.mean(missing))


def test_a_loss_is_compared_with_the_least_of_models_as_good(tmp_path: Path) -> None:
    results = made(tmp_path)
    found = judge(LOST, results)
    assert found.row is not None
    assert loss(results, "far") < loss(results, "ours") < loss(results, "near") < loss(results, "worse")
    assert found.row.value == pytest.approx(loss(results, "ours"))
    assert found.row.reach == pytest.approx(loss(results, "near")), "far loses less, but has less to lose"
    assert found.row.holds
    assert found.aim == pytest.approx(loss(results, "near") / 2)
    assert found.note == f"near {found.row.reach:.3f}, the least of 2 within 0.2"
    same = judge(
        Goal(
            "same", lost("ours", "set", "accuracy"), least_lost(("ours",), "set", "accuracy", like="ours"), "less than"
        ),
        results,
    ).row
    assert same is not None
    assert same.value == same.reach
    assert same.holds is False, "the same loss is not less"


def test_without_a_model_as_good_there_is_no_target(tmp_path: Path) -> None:
    target = least_lost(("far",), "set", "accuracy", like="ours")
    found = judge(Goal("lost", lost("ours", "set", "accuracy"), target, "less than", aim_share=0.5), made(tmp_path))
    assert found.row is not None
    assert (found.row.reach, found.row.holds, found.aim) == (None, None, None)
    assert found.note.startswith("none of 1 lies within 0.03 of 0.9")


def test_the_largest_p_of_all_runs(tmp_path: Path) -> None:
    results = made(tmp_path)
    each = [item.experts for cells in results.seeds("ours", "set").values() for item in cells]
    assert len(each) == 3
    largest = max(item["p"] for item in each if item is not None)
    strict, easy = (judge(Goal("p", largest_p("ours", "set"), reach, "at most"), results).row for reach in (0.01, 1.0))
    assert strict is not None
    assert (strict.value, strict.unit, strict.holds) == (largest, "p", False), "experts are drawn by chance"
    assert easy is not None
    assert easy.holds
    none = judge(Goal("p", largest_p("near", "set"), 0.01, "at most"), results).row
    assert none is not None
    assert none.value == 1.0, "a baseline has no experts"


def test_a_count_of_goals_that_are_reached(tmp_path: Path) -> None:
    high, low = Goal("high", mean("ours", "set", "accuracy"), 0.99), Goal("low", mean("ours", "set", "accuracy"), 0.1)
    some = judge(Goal("two of three", reached((high, low, LOST)), 2.0), made(tmp_path)).row
    assert some is not None
    assert (some.value, some.unit, some.holds) == (2.0, "of 3", True)
    both = judge(Goal("all", reached((high, LOST)), 2.0), made(tmp_path)).row
    assert both is not None
    assert (both.value, both.holds) == (1.0, False)
    nothing = made(tmp_path / "none", done=False)
    found = [judge(goal, nothing) for goal in (high, LOST, Goal("count", reached((high, low)), 2.0))]
    assert [(item.row, item.note) for item in found] == [(None, "not finished")] * 3


def test_a_goal_waits_for_all_cells_of_its_models(tmp_path: Path) -> None:
    goal = Goal("ablation", mean("less", "set", "accuracy"), 0.0)
    plan = make(tmp_path)
    cells = plan.cells_of("less", "set")
    assert [cell.seed for cell in cells] == [1, 1], "one seed, both folds"
    finish(plan, cells[0], right=0.5)
    assert judge(goal, results_of(plan)).row is None
    finish(plan, cells[1], right=0.5)
    row = judge(goal, results_of(plan)).row
    assert row is not None
    assert row.holds


def test_the_goals_of_the_suites_name_models_and_metrics_that_exist() -> None:
    smoke = load_plan(str(ROOT / "configs" / "suite_smoke.yaml"))
    assert {judge(goal, Results(smoke, {})).note for goal in GOALS["smoke"]} == {"not finished"}
    suite = load_plan(str(ROOT / "configs" / "suite.yaml"))
    for goal in GOALS["suite"]:
        assert judge(goal, results_of(suite)).row is not None, goal.name
    assert Archive(suite).place is not None
