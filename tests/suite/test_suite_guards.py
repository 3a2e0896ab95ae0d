"""What a suite is refused for before hours are spent on it, and what its report does with what is not there."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import yaml
from finished_cells import finish, make_plan
from suite.collect import collect
from suite.jobs import Jobs
from suite.plan import ROOT, Plan, load_plan, plan
from suite.record import run_of, settings_digest
from suite.report import check_loss, write_report
from suite.schema import Suite
from suite.work import Outcome, work

from maestro_dist.config.load import load_config
from maestro_dist.errors import ConfigError, RunError
from maestro_dist.evaluation import Evaluation, Predictions, Scenario

ONE = {"entry": "one", "data": "set"}
TRAIN = {"name": "ours", "kind": "maestro", "config": "configs/quickstart.yaml", "data": ["set"]}


def made(storage: Path, *overrides: str, **values: Any) -> Plan:
    """A suite of one model on one data set."""
    entry = {**TRAIN, "set": ["run.workers=1", *overrides], **values}
    data = [{"name": "set", "url": "data", "metrics": ["accuracy"]}]
    return plan(Suite.model_validate({"storage": str(storage), "data": data, "entries": [entry]}))


def test_answers_that_reports_need_are_kept(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"entry 'ours' on 'set': evaluation.predictions: false: reports are made from"
    ):
        made(tmp_path, "evaluation.predictions=false")
    assert made(tmp_path, "evaluation.predictions=false", "task.kind=pretrain").cells


def test_places_are_those_of_the_folder_where_the_suite_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (cell,) = made(tmp_path, "run.init_from=runs/pre", "data.cache=cache", seeds=[1]).cells
    config = load_config(str(ROOT / cell.arguments[1]), cell.arguments[2:])
    assert (config.run.init_from, config.data.cache) == (f"{tmp_path}/runs/pre", f"{tmp_path}/cache")
    (cell,) = made(tmp_path, "task.teachers=[runs/a, 's3://runs/b']", seeds=[1]).cells
    config = load_config(str(ROOT / cell.arguments[1]), cell.arguments[2:])
    assert config.task.teachers == [f"{tmp_path}/runs/a", "s3://runs/b"]


def test_a_configuration_outside_of_the_repository_is_found_by_a_job(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("run: {workers: 1}\n")
    (outside,) = made(tmp_path, config=os.path.relpath(own, ROOT), seeds=[1]).cells
    assert (outside.arguments[1], outside.config) == (str(own), str(own))
    (inside,) = made(tmp_path, config="tools/../configs/quickstart.yaml", seeds=[1]).cells
    assert (inside.arguments[1], inside.config) == ("configs/quickstart.yaml", "configs/quickstart.yaml")


def test_ablations_of_one_name_are_of_entries_on_different_data(tmp_path: Path) -> None:
    tree = yaml.safe_load((ROOT / "configs" / "suite_smoke.yaml").read_text())
    tree["data"].append({**tree["data"][0], "name": "other"})
    tree["entries"].append({"name": "lgb2", "kind": "lightgbm", "data": ["other"]})
    change = ["baseline.normalize=window"]
    tree["ablations"] = [
        {"name": "znorm", "of": "lightgbm", "set": change},
        {"name": "znorm", "of": "lgb2", "set": change, "data": ["other"]},
    ]
    path = tmp_path / "suite.yaml"
    path.write_text(yaml.safe_dump(tree))
    found = [(cell.entry, cell.data) for cell in load_plan(str(path)).cells if cell.entry == "znorm"]
    assert found == [("znorm", "excerpt"), ("znorm", "other")]


def test_what_is_lost_needs_what_was_there(tmp_path: Path) -> None:
    figure = {"name": "lost", "value": {**ONE, "of": "drop", "missing": 0.4}, "reach": 0.1}
    with pytest.raises(ConfigError, match=r"value.missing: 'one' is not tested at 0.0, but at \[0.1, 0.4\]"):
        make_plan(tmp_path, rates=[0.1, 0.4], figures=[figure])


def test_a_split_with_one_class_leaves_its_metric_undefined_and_the_rest_as_it_is(tmp_path: Path) -> None:
    ranked = {**ONE, "metric": "auroc"}
    figures = [
        {"name": "ranked", "value": ranked, "reach": 0.5},
        {"name": "right", "value": ONE, "reach": 0.5},
        {"name": "the better", "value": {**ranked, "entry": "two"}, "over": ranked},
    ]
    suite = make_plan(tmp_path / "runs", figures=figures, ablations=[])
    for cell in suite.cells:
        finish(suite, cell, right=0.8)
        if cell.entry == "one" and cell.fold == 1:
            run = run_of(suite, cell)
            answers = Predictions.read(run)
            replace(answers, target=np.zeros_like(answers.target)).write(run)
            content = json.loads(run.read("result.json"))
            old = Evaluation.from_json(content["evaluation"])
            scenarios = [
                Scenario(part.rate, part.draw, {k: v for k, v in part.metrics.items() if k != "auroc"})
                for part in old.scenarios
            ]
            new = Evaluation(old.split, old.samples, old.metrics, scenarios)
            run.write("result.json", json.dumps({"evaluation": new.to_json()}).encode())
    write_report(collect(suite), str(tmp_path), "command")
    report = (tmp_path / "RESULTS.md").read_text()
    assert "| ranked |  | undefined |  |" in report
    assert "| the better |  | undefined |  |" in report
    assert "| one | 3 | undefined | undefined | undefined |" in report
    assert "nan" not in report
    rows = json.loads((tmp_path / "results.json").read_text())
    assert [row["name"] for row in rows["rows"]] == ["right"]
    assert rows["notes"] == ["undefined: ranked", "undefined: the better"]


def test_a_report_of_finished_cells_is_not_replaced_by_one_of_none(tmp_path: Path) -> None:
    suite = make_plan(tmp_path / "runs")
    nothing = collect(suite)
    check_loss(nothing, str(tmp_path))
    write_report(nothing, str(tmp_path), "command")
    check_loss(nothing, str(tmp_path))
    finish(suite, suite.cells[0], right=0.8)
    write_report(collect(suite), str(tmp_path), "command")
    elsewhere = collect(make_plan(tmp_path / "elsewhere"))
    with pytest.raises(RunError, match=r"RESULTS.md tells of finished cells, and none is in .*/elsewhere"):
        check_loss(elsewhere, str(tmp_path))


class Left:
    """A job server on which a suite has left one job, of these settings."""

    def __init__(self, cell: str, settings: str) -> None:
        self.jobs, self.stopped, self.started = {cell: ("old", settings)}, list[str](), list[str]()

    def running(self) -> dict[str, tuple[str, str]]:
        return self.jobs

    def stop(self, jobs: list[str]) -> None:
        self.stopped += jobs

    def submit(self, cell: Any) -> str:
        self.started.append(cell.name)
        return "new"

    def status(self, job: str) -> str:
        return "FAILED"

    def log(self, job: str) -> str:
        return f"the log of {job}"


@pytest.mark.parametrize("same", [True, False])
def test_a_job_that_an_earlier_start_has_left_is_taken_over_if_it_is_this_cell(tmp_path: Path, same: bool) -> None:
    suite = make_plan(tmp_path)
    cell = suite.cells[0]
    server = Left(cell.name, settings_digest(cell) if same else "other")
    outcome, said = Outcome(), list[str]()
    jobs = cast(Jobs, server)
    work(suite, [cell], jobs, outcome, parallel=1, cpus=1, deadline=None, say=said.append)
    assert server.started == ([] if same else [cell.name])
    assert server.stopped == ([] if same else ["old"])
    assert f"the log of {'old' if same else 'new'}" in outcome.failed[cell.name]
    assert any("still runs with other settings" in line for line in said) is not same
