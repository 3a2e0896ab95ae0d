"""Which cells run and how they end, with jobs that only pretend; `test_suite_run` has a real server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
from finished_cells import finish, make
from run_suite import main
from suite import jobs as module
from suite.archive import Archive
from suite.jobs import Jobs, cells_to_run, run_cells
from suite.matrix import ROOT, Cell, Plan
from test_suite_needs import TUNED, needing

from maestro_dist.errors import RunError


class Pretended:
    """Jobs that end at once: those of models in `failing` fail, the others leave a result.

    Where `failing` is None they do not end, and somebody stops the suite.
    """

    def __init__(self, plan: Plan, failing: set[str] | None) -> None:
        self.plan, self.failing, self.started, self.stopped = plan, failing, list[str](), list[str]()

    def submit(self, cell: Cell) -> str:
        self.started.append(cell.name)
        if self.failing is not None and cell.model not in self.failing:
            Archive(self.plan).run(cell).write("result.json", b"{}")
        return f"job of {cell.name}"

    def status(self, job: str) -> str:
        if self.failing is None:
            raise KeyboardInterrupt
        return "SUCCEEDED"

    def log(self, job: str) -> str:
        return f"the log of the {job}"

    def stop(self, jobs: list[str]) -> None:
        self.stopped += jobs


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_POLL_S", 0.0)


def ran(plan: Plan, failing: set[str]) -> tuple[list[str], dict[str, str], dict[str, str]]:
    """Names of the cells in the order of their start, and those that failed and that were skipped."""
    archive, server = Archive(plan), Pretended(plan, failing)
    failed, skipped = run_cells(archive, cast(Jobs, server), cells_to_run(archive, plan.cells))
    return server.started, failed, skipped


def test_a_failed_cell_is_named_and_does_not_stop_others(tmp_path: Path) -> None:
    plan = make(tmp_path)
    started, failed, skipped = ran(plan, {"two"})
    names = [cell.name for cell in plan.cells]
    assert started == names
    assert (sorted(failed), skipped) == (sorted(name for name in names if ".two." in name), {})
    assert failed["set.f0.two.s1"].startswith("the log of the job of set.f0.two.s1\n(whole log: ")
    assert (tmp_path / "set.f0.one.s1" / "job.log").read_text() == "the log of the job of set.f0.one.s1\n"
    assert ran(plan, set()) == ([name for name in names if ".two." in name], {}, {})
    record = json.loads((tmp_path / "set.f0.two.s1" / "cell.json").read_text())
    assert len(record["attempts"]) == 2


def test_without_data_nothing_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite = str(ROOT / "configs" / "suite_smoke.yaml")
    missing = ["data.excerpt.source=", f"data.excerpt.url={tmp_path}/none", f"storage={tmp_path}/runs"]
    assert main([suite, *missing]) == 1
    printed = capsys.readouterr()
    assert f"{tmp_path}/none: there is no manifest; pack the data set first, or set its source" in printed.err
    assert " starts: " not in printed.out


def test_what_needs_a_failed_cell_is_skipped(tmp_path: Path) -> None:
    further = {**TUNED, "set": ["run.init_from={run:tuned}", "run.workers=1"]}
    pretrain = {**TUNED, "set": ["task.kind=pretrain", "run.workers=1"]}
    plan = needing(tmp_path, {"further": further, "tuned": TUNED, "pretrain": pretrain}, seeds=[1])
    started, _, skipped = ran(plan, {"pretrain"})
    assert {name.split(".")[2] for name in started} == {"pretrain"}
    assert skipped["set.f0.tuned.s1"] == "it needs set.f0.pretrain.s1, which has failed"
    assert skipped["set.f1.further.s1"].startswith("it needs set.f1.tuned.s1")
    started, failed, skipped = ran(plan, set())
    assert started.index("set.f0.pretrain.s1") < started.index("set.f0.tuned.s1")
    assert (len(started), failed, skipped) == (6, {}, {})


def test_what_a_chosen_cell_needs_runs_too(tmp_path: Path) -> None:
    plan = needing(tmp_path)
    tuned = plan.cells_of("tuned", "set")
    finish(plan, plan.cells_of("pretrain", "set")[0], right=0.5)
    found = [cell.name for cell in cells_to_run(Archive(plan), tuned[:2])]
    assert found == ["set.f0.tuned.s1", "set.f0.pretrain.s2", "set.f0.tuned.s2"]
    finish(plan, tuned[1], right=0.5)
    assert [cell.name for cell in cells_to_run(Archive(plan), tuned[:2])] == ["set.f0.tuned.s1"]


def test_running_cells_are_stopped_when_the_suite_is(tmp_path: Path) -> None:
    plan = make(tmp_path)
    server, archive = Pretended(plan, None), Archive(plan)
    with pytest.raises(KeyboardInterrupt):
        run_cells(archive, cast(Jobs, server), plan.cells)
    assert 1 <= len(server.started) < len(plan.cells)
    assert server.stopped == [f"job of {name}" for name in server.started]
    record = json.loads((tmp_path / server.started[0] / "cell.json").read_text())
    assert record["attempts"][-1]["status"] == "stopped"


def test_a_run_of_other_settings_is_not_overwritten(tmp_path: Path) -> None:
    plan = make(tmp_path)
    finish(plan, plan.cells_of("one", "set")[0], right=0.5)
    models = {"one": {"kind": "lightgbm", "set": ["baseline.trees=7"], "data": {"set": {}}}}
    other = make(tmp_path, models=models, ablations=[])
    said = r"set\.f0\.one\.s1 was begun with other settings: baseline\.trees 1000 -> 7; rename the model"
    with pytest.raises(RunError, match=said):
        cells_to_run(Archive(other), other.cells)


def test_a_server_that_misses_requests_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Any] = [ConnectionError("refused"), "RUNNING"]

    def call() -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    assert module._retry(call) == "RUNNING"
    monkeypatch.setattr(module, "_PATIENCE_S", -1.0)
    answers.append(ConnectionError("connection refused"))
    with pytest.raises(RunError, match=r"job server does not answer: connection refused"):
        module._retry(call)
