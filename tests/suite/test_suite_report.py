"""Tables and pictures from results that are known."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from finished_cells import PEOPLE, SAMPLES, finish, make, results_of
from suite.archive import Archive
from suite.collect import average, metric_key
from suite.goals import Goal, best_of
from suite.matrix import Plan
from suite.report import write_report

from maestro_dist.errors import DataError
from maestro_dist.evaluation import Evaluation, Predictions, Scenario


def report(plan: Plan, out: Path) -> None:
    """Write the report of all finished cells, with three goals."""
    results = results_of(plan)
    one, two = (results.mean(model, "set", "accuracy", 0.0) for model in ("one", "two"))
    goals = [
        Goal("mean", two, "accuracy", 0.7, aim=0.99, why="it is reached, so this is not shown"),
        Goal("relative", two, "accuracy", *best_of(results, ("one",), "set", "accuracy", more=0.5), why="too much"),
        Goal("best of both", one, "accuracy", *best_of(results, ("one", "two"), "set", "accuracy")),
    ]
    write_report(results, goals, str(out), "the command")


def means(storage: Path) -> tuple[float, float]:
    """Finish all cells but the ablation's; returns the accuracy of both models."""
    plan, right = make(storage), {"one": 0.6, "two": 0.85}
    found: dict[str, list[float]] = {"one": [], "two": []}
    for cell in plan.cells:
        if cell.model in right:
            found[cell.model].append(finish(plan, cell, right=right[cell.model], lost=0.2, experts=cell.model == "two"))
    return float(np.mean(found["one"])), float(np.mean(found["two"]))


def test_the_ensemble_averages_probabilities(tmp_path: Path) -> None:
    means(tmp_path)
    plan = make(tmp_path)
    results, archive = results_of(plan), Archive(plan)
    found = results.ensembles["two", "set"]
    by_fold = []
    for fold in range(2):
        cells = [cell for cell in plan.cells_of("two", "set") if cell.fold == fold]
        answers = [Predictions.read(archive.run(cell)) for cell in cells]
        logits = [each.logits[0].astype(np.float64) for each in answers]
        chance = [np.exp(part) / np.exp(part).sum(1, keepdims=True) for part in logits]
        by_fold.append((np.mean(chance, axis=0).argmax(1) == answers[0].target).mean())
    assert found.values[metric_key("accuracy", 0.0)] == pytest.approx(np.mean(by_fold))
    alone = results.mean("two", "set", "accuracy", 0.4)
    assert found.values[metric_key("accuracy", 0.4)] > alone, "three that are right alone on two thirds are better"


def test_the_same_results_give_the_same_report(tmp_path: Path) -> None:
    one, two = means(tmp_path / "runs")
    plan = make(tmp_path / "runs")
    for cell in plan.cells_of("less", "set"):
        finish(plan, cell, right=0.6)
    for name in ("first", "second"):
        report(plan, tmp_path / name)
    files = {path.name: path.read_bytes() for path in (tmp_path / "first").iterdir()}
    assert set(files) == {"RESULTS.md", "results.json", "set.png"}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "second").iterdir()}
    lines = files["RESULTS.md"].decode().splitlines()

    def has(start: str, end: str = "") -> bool:
        return any(line.startswith(start) and line.endswith(end) for line in lines)

    assert has("14 of 14 cells are finished. The sum of their times is 21 min (20")
    assert has("Machine: a processor, 2 cores, a system; python 3.11.")
    split = f"{2 * SAMPLES} test samples of {2 * PEOPLE} subjects, 2 of 2 folds by subject; 2 modalities: acc, gyro."
    assert split in lines
    rows = [line for line in lines if line.startswith("| The second | 3 | ")]
    assert rows[0].startswith(f"| The second | 3 | {two:.3f} ± ")
    assert has(f"| one | 3 | {one:.3f} ± ")
    assert has("![set](set.png)")
    assert has("| The second | accuracy | 3 | "), "an ensemble of three"
    assert has("| fewer features | The second | 1 | "), "an ablation on one seed"
    assert has("| two, seed 1, fold 0 | "), "experts"
    assert has("| mean | at least 0.700; aim 0.99 | ", "| yes |")
    assert has("| relative | at least ", "| **no** |")
    missed = ["* relative: too much", "* best of both: no reason is given.", ""]
    assert lines[lines.index("Not reached:") + 2 :][:3] == missed
    written = json.loads(files["results.json"])
    assert written["benchmark"] == "made"
    assert written["machine"]["date"] == "2026-09-21T14:14:53+00:00"
    assert {"name", "value", "unit", "reach", "holds", "sense", "aim"} == set(written["rows"][0])
    assert [row["name"] for row in written["rows"]] == ["mean", "relative", "best of both"]


def test_a_report_of_nothing(tmp_path: Path) -> None:
    report(make(tmp_path / "runs"), tmp_path)
    text = (tmp_path / "RESULTS.md").read_text()
    assert "0 of 14 cells are finished." in text
    assert "Nothing is finished yet." in text
    assert json.loads((tmp_path / "results.json").read_text())["rows"] == []


def test_a_pretraining_has_a_duration_and_no_scores(tmp_path: Path) -> None:
    data = {"set": {"url": "data", "metrics": ["accuracy"], "config": "configs/quickstart.yaml"}}
    models = {
        "ours": {"set": ["run.workers=1"], "data": {"set": {}}},
        "pretrain": {"label": "pre-training", "set": ["run.workers=1", "task.kind=pretrain"], "data": {"set": {}}},
    }
    plan = make(tmp_path, data=data, models=models, ablations=[])
    for cell in plan.cells:
        finish(plan, cell, right=0.5)
        if cell.model == "pretrain":
            (tmp_path / cell.name / "predictions.npz").unlink()
            scenario = {"rate": 0.0, "draw": 0, "metrics": {"loss": 1.0, "perplexity": 2.7}}
            evaluation = {"split": "test", "samples": 40, "metrics": ["loss"], "scenarios": [scenario]}
            (tmp_path / cell.name / "result.json").write_text(json.dumps({"evaluation": evaluation}))
    results = results_of(plan)
    assert results.seeds("pretrain", "set") == {}
    write_report(results, [], str(tmp_path / "report"), "the command")
    text = (tmp_path / "report" / "RESULTS.md").read_text()
    assert "6 of 6 cells are finished." in text
    scores, durations = text.split("## Durations")
    assert "pre-training" not in scores
    assert "| set | pre-training | 3 |" in durations


def test_a_split_with_one_class_leaves_its_metric_undefined_and_the_rest_as_it_is(tmp_path: Path) -> None:
    plan = make(tmp_path / "runs", ablations=[])
    for cell in plan.cells:
        finish(plan, cell, right=0.8)
        if cell.model == "one" and cell.fold == 1:
            run = Archive(plan).run(cell)
            answers = Predictions.read(run)
            replace(answers, target=np.zeros_like(answers.target)).write(run)
            old = Evaluation.from_json(json.loads(run.read("result.json"))["evaluation"])
            scenarios = [
                Scenario(part.rate, part.draw, {k: v for k, v in part.metrics.items() if k != "auroc"})
                for part in old.scenarios
            ]
            new = Evaluation(old.split, old.samples, old.metrics, scenarios)
            run.write("result.json", json.dumps({"evaluation": new.to_json()}).encode())
    results = results_of(plan)
    goals = [
        Goal("ranked", results.mean("one", "set", "auroc", 0.0), "AUROC", 0.5),
        Goal("right", results.mean("one", "set", "accuracy", 0.0), "accuracy", 0.5),
        Goal("the better", 0.5, "AUROC", *best_of(results, ("one",), "set", "auroc")),
    ]
    write_report(results, goals, str(tmp_path), "command")
    text = (tmp_path / "RESULTS.md").read_text()
    assert math.isnan(results.mean("one", "set", "auroc", 0.0))
    assert "| one | 3 | undefined | undefined | undefined |" in text
    assert "nan" not in text
    rows = json.loads((tmp_path / "results.json").read_text())
    assert [row["name"] for row in rows["rows"]] == ["right"]
    assert rows["notes"] == ["undefined: ranked", "undefined: the better"]


def test_intervals_hold_the_mean(tmp_path: Path) -> None:
    _, two = means(tmp_path)
    seeds = results_of(make(tmp_path)).seeds("two", "set")
    drawn = average([*seeds.values()]).resampled[metric_key("accuracy", 0.0)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert low < two < high
    assert drawn.mean() == pytest.approx(two, abs=0.01)


def test_cells_with_other_test_samples_are_not_compared(tmp_path: Path) -> None:
    means(tmp_path)
    plan = make(tmp_path)
    cell = plan.cells_of("two", "set")[0]
    run = Archive(plan).run(cell)
    found = Predictions.read(run)
    replace(found, key=found.key[::-1]).write(run)
    with pytest.raises(DataError, match=r"set\.f0\.two\.s1 was tested on other samples"):
        results_of(plan)


def test_a_cell_of_other_settings_is_another_cell(tmp_path: Path) -> None:
    means(tmp_path)
    plan = make(tmp_path)
    cell = plan.cells_of("one", "set")[0]
    archive = Archive(plan)
    assert archive.is_done(cell)
    assert archive.changes(cell) == []
    models = {"one": {"kind": "lightgbm", "set": ["baseline.trees=7"], "data": {"set": {}}}}
    other = make(tmp_path, models=models, ablations=[])
    assert Archive(other).changes(other.cells[0]) == ["baseline.trees 1000 -> 7"]
    assert len(archive.begin_attempt(cell).attempts) == 2
