"""Drops among equals, p of the experts, counts of figures, and pre-trainings, which have no scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from finished_cells import finish, make_plan
from suite.collect import Results, collect
from suite.figures import Found, figure_rows
from suite.record import run_of
from suite.report import write_report

from maestro_dist.errors import ConfigError

DATA = [{"name": "set", "url": "data", "metrics": ["accuracy", "auroc"]}]
TRAIN = {"kind": "maestro", "config": "configs/quickstart.yaml", "data": ["set"], "set": ["run.workers=1"]}
PRETRAIN = {**TRAIN, "name": "pretrain", "label": "pre-training", "set": ["run.workers=1", "task.kind=pretrain"]}
OURS = {"entry": "ours", "data": "set", "missing": 0.4}
DROP = {**OURS, "of": "drop"}
NAMES = ["near", "worse", "far"]
LOST = {
    "name": "lost",
    "value": DROP,
    "over": {**DROP, "entry": NAMES, "within": 0.2},
    "sense": "at most",
    "aim_share": 0.5,
}
RIGHT = {"ours": (0.9, 0.1), "near": (0.9, 0.3), "worse": (0.85, 0.5), "far": (0.3, 0.0)}


def made(storage: Path, *figures: dict[str, Any], done: bool = True, **values: Any) -> Results:
    """A model, three baselines and a pre-training; all finished but the pre-training, of which only a result is."""
    entries = [{**TRAIN, "name": "ours"}, PRETRAIN]
    entries += [{"name": name, "kind": "lightgbm", "data": ["set"]} for name in NAMES]
    tree = {"data": DATA, "entries": entries, "ablations": [], "figures": list(figures), "permutations": 99, **values}
    plan = make_plan(storage, **tree)
    for cell in plan.cells if done else ():
        right, lost = RIGHT.get(cell.entry, (0.5, 0.0))
        finish(plan, cell, right=right, lost=lost, experts=cell.entry == "ours")
        if cell.entry == "pretrain":
            assert run_of(plan, cell).local is not None
            (storage / cell.name / "predictions.npz").unlink()
            scenario = {"rate": 0.0, "draw": 0, "metrics": {"loss": 1.0, "perplexity": 2.7}}
            evaluation = {"split": "test", "samples": 40, "metrics": ["loss"], "scenarios": [scenario]}
            (storage / cell.name / "result.json").write_text(json.dumps({"evaluation": evaluation}))
    return collect(plan)


def found(results: Results) -> dict[str, Found]:
    return {item.figure.name: item for item in figure_rows(results)}


def lost(results: Results, entry: str) -> float:
    complete, missing = (results.values(entry, "set", "accuracy", rate) for rate in (0.0, 0.4))
    return sum(complete) / len(complete) - sum(missing) / len(missing)


def test_a_drop_is_held_against_the_least_of_those_as_good(tmp_path: Path) -> None:
    results = made(tmp_path, LOST)
    item = found(results)["lost"]
    assert item.row is not None
    assert lost(results, "far") < lost(results, "ours") < lost(results, "near") < lost(results, "worse")
    assert item.row.value == pytest.approx(lost(results, "ours"))
    assert item.row.reach == pytest.approx(lost(results, "near")), "far loses less, but has less to lose"
    assert item.row.holds
    assert item.aim == pytest.approx(lost(results, "near") / 2)
    assert item.said == f"near {item.row.reach:.3f}, the least of 2 within 0.2"


def test_to_lose_as_much_is_not_to_lose_less(tmp_path: Path) -> None:
    same = {**LOST, "over": {**DROP, "entry": ["ours", "worse"], "within": 0.2}}
    results = made(tmp_path, same)
    item = found(results)["lost"]
    assert item.row is not None
    assert item.row.value == item.row.reach
    assert item.row.holds is False
    write_report(results, str(tmp_path / "report"), "the command")
    assert "| less than 0." in (tmp_path / "report" / "RESULTS.md").read_text()


def test_where_none_is_as_good_nothing_is_to_be_reached(tmp_path: Path) -> None:
    results = made(tmp_path, {**LOST, "over": {**DROP, "entry": ["far"], "within": 0.03}})
    item = found(results)["lost"]
    assert item.row is not None
    assert (item.row.reach, item.row.holds, item.aim) == (None, None, None)
    write_report(results, str(tmp_path / "report"), "the command")
    line = next(x for x in (tmp_path / "report" / "RESULTS.md").read_text().splitlines() if x.startswith("| lost |"))
    assert "| none (none of 1 lies within 0.03 of 0.9" in line


def test_experts_the_largest_p_of_all_runs(tmp_path: Path) -> None:
    figures = [
        {"name": "p", "value": {**OURS, "of": "expert_p"}, "reach": 0.01, "sense": "at most"},
        {"name": "any", "value": {**OURS, "of": "expert_p"}, "reach": 1, "sense": "at most"},
    ]
    results = made(tmp_path, *figures)
    runs = [item for cells in results.seeds("ours", "set").values() for item in cells]
    each = [results.experts(item, 0.4) for item in runs]
    assert len(each) == 3
    largest = max(item.p for item in each if item is not None)
    rows = found(results)
    assert rows["p"].row is not None
    assert (rows["p"].row.value, rows["p"].row.unit, rows["p"].row.holds) == (largest, "p", False), "drawn by chance"
    assert rows["any"].row is not None
    assert rows["any"].row.holds


def test_a_count_of_figures_that_hold(tmp_path: Path) -> None:
    figures = [
        {"name": "two of three", "count": ["high", "low", "lost"], "reach": 2, "aim": 3},
        {"name": "all", "count": ["high", "lost"], "reach": 2},
        {"name": "high", "value": OURS, "reach": 0.99},
        {"name": "low", "value": OURS, "reach": 0.1},
        LOST,
    ]
    results = made(tmp_path, *figures)
    rows = found(results)
    some, both = rows["two of three"].row, rows["all"].row
    assert some is not None
    assert both is not None
    assert (some.value, some.unit, some.holds) == (2.0, "of 3", True)
    assert (both.value, both.holds) == (1.0, False)
    assert list(rows) == [figure["name"] for figure in figures], "in the order of the suite"
    write_report(results, str(tmp_path / "report"), "the command")
    assert "| two of three | at least 2; aim 3 | 2 of 3 | yes |" in (tmp_path / "report" / "RESULTS.md").read_text()
    assert all(item.row is None for item in found(made(tmp_path / "none", *figures, done=False)).values())


def test_a_pretraining_has_a_duration_and_no_scores(tmp_path: Path) -> None:
    results = made(tmp_path)
    assert results.seeds("pretrain", "set") == {}
    write_report(results, str(tmp_path / "report"), "the command")
    text = (tmp_path / "report" / "RESULTS.md").read_text()
    assert "15 of 15 cells are finished." in text
    scores, durations = text.split("## Durations")
    assert "pre-training" not in scores
    assert "| set | pre-training | 3 | 2 min | 4 min |" in durations


@pytest.mark.parametrize(
    ("figure", "said"),
    [
        ({"name": "x", "value": {"entry": "pretrain", "data": "set"}}, "'pretrain' is a pre-training, which has no"),
        ({"name": "x", "value": {"entry": "near", "data": "set", "of": "expert_p"}}, "'near' is a baseline"),
        ({"name": "x", "count": ["lots"]}, "'x': count: no figure 'lots'; did you mean 'lost'"),
        ({"name": "x", "count": ["x"]}, "'x': count: no figure 'x'"),
        ({"name": "lost", "value": OURS}, "'lost': two figures have this name"),
    ],
)
def test_figures_that_cannot_be_are_refused(figure: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        made(tmp_path, LOST, figure, done=False)


@pytest.mark.parametrize(
    ("figure", "said"),
    [
        ({"value": OURS, "count": ["lost"]}, "either a value or a count"),
        ({}, "either a value or a count"),
        ({"value": OURS, "over": {**OURS, "within": 0.1}}, "it needs of: drop"),
        ({"value": {**DROP, "within": 0.1}}, "belongs to over"),
        ({**LOST, "sense": "at least"}, "sense: at most"),
        ({**LOST, "value": {**DROP, "missing": 0.0}}, "must have the same data, metric, missing, of"),
        ({**LOST, "aim": 0.1}, "give a number, or aim_share, not both"),
        ({"value": {**OURS, "entry": ["ours", "near"], "of": "expert_p"}}, "expert_p is of one entry"),
        ({"count": ["lost"], "minus": OURS}, "nothing is taken away from it"),
    ],
)
def test_figures_that_make_no_sense_are_refused(figure: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        made(tmp_path, {"name": "x"} | figure, done=False)


def test_an_ablation_that_changes_nothing_is_refused(tmp_path: Path) -> None:
    changed = {"name": "changed", "of": "near", "set": ["baseline.trees=7"]}
    nothing = {"name": "nothing", "of": "ours", "set": ["model.embedding=patch"], "seeds": [7]}
    same = {"name": "same", "of": "near", "set": ["baseline.trees=1000"]}
    made(tmp_path, done=False, ablations=[changed])
    said = r"change nothing .*: nothing on 'set' \(model.embedding=patch\); same on 'set' \(baseline.trees=1000\)$"
    with pytest.raises(ConfigError, match=said):
        made(tmp_path, done=False, ablations=[changed, nothing, same])
