"""Figures, tables and pictures from results that are known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from finished_cells import PEOPLE, SAMPLES, finish, make_plan
from suite.collect import collect
from suite.figures import figure_rows
from suite.record import begin_attempt, changes, is_done, run_of
from suite.report import check_place, write_report

from maestro_dist.errors import ConfigError, DataError
from maestro_dist.evaluation import Predictions

ONE = {"entry": "one", "data": "set"}
TWO = {"entry": "two", "data": "set"}
FIGURES = [
    {"name": "mean", "value": TWO, "reach": 0.7, "aim": 0.99, "why": "it is reached, so nobody asks"},
    {"name": "relative", "value": TWO, "over": ONE, "by": 0.5, "why": "half is\n too little"},
    {"name": "best of both", "value": ONE, "over": {**ONE, "entry": ["one", "two"]}},
    {"name": "difference", "value": TWO, "minus": ONE},
    {"name": "drop", "value": {**TWO, "of": "drop", "missing": 0.4}, "reach": 0.9, "sense": "at most"},
    {"name": "spread", "value": {**TWO, "of": "spread"}},
    {"name": "ensemble", "value": {**TWO, "of": "ensemble", "missing": 0.4}},
]


def means(storage: Path) -> tuple[float, float, float]:
    """Finish all cells but the ablation's; accuracy of one, two, and of two with sensors missing."""
    plan = make_plan(storage)
    right = {"one": 0.6, "two": 0.85}
    found: dict[str, list[float]] = {"one": [], "two": []}
    for cell in plan.cells:
        if cell.entry in right:
            found[cell.entry].append(finish(plan, cell, right=right[cell.entry], lost=0.2, experts=cell.entry == "two"))
    results = collect(plan)
    missing = np.mean(
        [results.finished[cell.name].evaluation.mean("accuracy", 0.4) for cell in plan.cells_of("two", "set")]
    )
    return float(np.mean(found["one"])), float(np.mean(found["two"])), float(missing)


def test_figures(tmp_path: Path) -> None:
    one, two, missing = means(tmp_path)
    plan = make_plan(tmp_path, figures=FIGURES)
    rows = {item.figure.name: item.row for item in figure_rows(collect(plan))}
    mean, relative, best, difference, drop, spread, ensemble = (rows[str(figure["name"])] for figure in FIGURES)
    assert mean is not None
    assert (mean.value, mean.reach, mean.holds, mean.sense, mean.unit) == (
        pytest.approx(two), 0.7, True, "at least", "accuracy",
    )  # fmt: skip
    assert relative is not None
    assert (relative.reach, relative.holds) == (pytest.approx(one + 0.5), False)
    assert best is not None
    assert (best.value, best.reach, best.holds) == (pytest.approx(one), pytest.approx(two), False)
    assert difference is not None
    assert (difference.value, difference.reach, difference.holds) == (pytest.approx(two - one), None, None)
    assert drop is not None
    assert (drop.value, drop.holds, drop.sense) == (pytest.approx(two - missing), True, "at most")
    assert spread is not None
    by_seed = [collect(plan).values("two", "set", "accuracy", 0.0)]
    assert spread.value == pytest.approx(np.std(by_seed, ddof=1))
    assert ensemble is not None
    assert ensemble.value > missing, "three that are right alone on two thirds are better together"


def test_a_figure_waits_for_all_of_its_cells(tmp_path: Path) -> None:
    means(tmp_path)
    plan = make_plan(tmp_path, figures=[{"name": "ablation", "value": {"entry": "less", "data": "set"}, "reach": 0}])
    cells = plan.cells_of("less", "set")
    assert [cell.seed for cell in cells] == [1, 1], "one seed, both folds"
    finish(plan, cells[0], right=0.5)
    assert figure_rows(collect(plan))[0].row is None
    finish(plan, cells[1], right=0.5)
    row = figure_rows(collect(plan))[0].row
    assert row is not None
    assert row.holds


def test_the_ensemble_averages_probabilities(tmp_path: Path) -> None:
    means(tmp_path)
    plan = make_plan(tmp_path)
    results = collect(plan)
    found = results.ensemble("two", "set", "accuracy", 0.0)
    assert found is not None
    by_fold = []
    for cells in zip(*results.seeds("two", "set").values(), strict=True):
        logits = [item.predictions.logits[0].astype(np.float64) for item in cells]
        chance = [np.exp(part) / np.exp(part).sum(1, keepdims=True) for part in logits]
        by_fold.append((np.mean(chance, axis=0).argmax(1) == cells[0].predictions.target).mean())
    assert found[0] == pytest.approx(np.mean(by_fold))


def test_report_is_made_from_the_cells_byte_for_byte(tmp_path: Path) -> None:
    one, two, _ = means(tmp_path / "runs")
    plan = make_plan(tmp_path / "runs", figures=FIGURES)
    for cell in plan.cells_of("less", "set"):
        finish(plan, cell, right=0.6)
    for name in ("first", "second"):
        write_report(collect(plan), str(tmp_path / name), "the command")
    files = sorted(path.relative_to(tmp_path / "first") for path in (tmp_path / "first").rglob("*.*"))
    assert {str(path) for path in files} == {"RESULTS.md", "results.json", "results/set.png"}
    for path in files:
        assert (tmp_path / "first" / path).read_bytes() == (tmp_path / "second" / path).read_bytes()
    text = (tmp_path / "first" / "RESULTS.md").read_text()
    lines = text.splitlines()
    assert any(
        line.startswith("14 of 14 cells are finished. They took 21 min one after the other, 20") for line in lines
    )
    assert "Machine: a processor, 2 cores, a system; python 3.11." in lines
    assert (
        f"{2 * SAMPLES} test samples of {2 * PEOPLE} subjects, 2 of 2 folds by subject; 2 modalities: acc, gyro."
        in lines
    )
    rows = [line for line in lines if line.startswith("| The second | 3 | ")]
    assert rows[0].startswith(f"| The second | 3 | {two:.3f} ± ")
    assert any(line.startswith(f"| one | 3 | {one:.3f} ± ") for line in lines)
    assert "![set](results/set.png)" in lines
    assert any(line.startswith("| The second | accuracy | 3 | ") for line in lines), "an ensemble of three"
    assert any(line.startswith("| less | The second | 1 | ") for line in lines), "an ablation on one seed"
    assert any(line.startswith("| two, seed 1, fold 0 | ") for line in lines), "experts"
    assert any(line.startswith("| relative | at least ") and line.endswith("| **no** |") for line in lines)
    assert lines[lines.index("Not reached:") + 2 :][:3] == [
        "* relative: half is too little",
        "* best of both: no reason is given.",
        "",
    ]
    written = json.loads((tmp_path / "first" / "results.json").read_text())
    assert written["benchmark"] == "made"
    assert written["machine"]["date"] == "2026-09-21T14:14:53+00:00"
    assert {"name", "value", "unit", "reach", "holds", "sense", "aim"} == set(written["rows"][0])
    assert [row["name"] for row in written["rows"]] == [figure["name"] for figure in FIGURES]


def test_a_report_of_another_suite_is_not_written_over(tmp_path: Path) -> None:
    plan = make_plan(tmp_path / "runs")
    check_place(plan, str(tmp_path))
    write_report(collect(plan), str(tmp_path), "the command")
    check_place(plan, str(tmp_path))
    with pytest.raises(ConfigError, match=r"RESULTS\.md is not of this suite \(other\); choose --out"):
        check_place(make_plan(tmp_path / "runs", name="other"), str(tmp_path))


def test_a_report_of_nothing(tmp_path: Path) -> None:
    write_report(collect(make_plan(tmp_path / "runs", figures=FIGURES)), str(tmp_path), "the command")
    text = (tmp_path / "RESULTS.md").read_text()
    assert "0 of 14 cells are finished." in text
    assert "Nothing is finished yet." in text
    assert json.loads((tmp_path / "results.json").read_text())["rows"] == []


def test_intervals_hold_what_was_found(tmp_path: Path) -> None:
    _, two, _ = means(tmp_path)
    results = collect(make_plan(tmp_path))
    drawn = results.bootstrap("two", "set", "accuracy", 0.0)
    assert drawn is not None
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert low < two < high
    assert drawn.mean() == pytest.approx(two, abs=0.01)


def test_cells_with_other_test_samples_are_not_compared(tmp_path: Path) -> None:
    means(tmp_path)
    plan = make_plan(tmp_path)
    cell = plan.cells_of("two", "set")[0]
    found = Predictions.read(run_of(plan, cell))
    replace(found, key=found.key[::-1]).write(run_of(plan, cell))
    results = collect(plan)
    results.bootstrap("one", "set", "accuracy", 0.0)
    with pytest.raises(DataError, match=r"set\.f0\.two\.s1 was tested on other samples"):
        results.bootstrap("two", "set", "accuracy", 0.0)


def test_a_cell_of_other_settings_is_not_taken_for_this_one(tmp_path: Path) -> None:
    means(tmp_path)
    plan = make_plan(tmp_path)
    cell = plan.cells_of("one", "set")[0]
    assert is_done(plan, cell)
    assert changes(plan, cell) == []
    entries = [{"name": "one", "kind": "lightgbm", "data": ["set"], "set": ["baseline.trees=7"]}]
    other = make_plan(tmp_path, entries=entries, ablations=[])
    assert changes(other, other.cells[0]) == ["baseline.trees 1000 -> 7"]
    assert len(begin_attempt(plan, cell).attempts) == 2
