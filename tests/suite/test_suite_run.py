"""The smoke suite as a person starts it: killed in the middle, started again, reported from what it left."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import psutil
import pytest
import runs
from run_suite import main

from maestro_dist.config.learning import TaskConfig
from maestro_dist.data.storage import Storage
from maestro_dist.evaluation import Predictions
from maestro_dist.task.classification import Classification

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("lightgbm") is None, reason="needs the packages of the extra 'bench'"),
]


def command(folder: Path, *extra: str) -> list[str]:
    suite = [sys.executable, "tools/run_suite.py", str(runs.ROOT / "configs" / "suite_smoke.yaml")]
    return [
        *suite,
        f"storage={folder}/cells",
        f"data.excerpt.url={folder}/data",
        "--out",
        str(folder / "report"),
        *extra,
    ]


def start(folder: Path, *extra: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(folder, *extra), cwd=runs.ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def is_at_work(process: psutil.Process) -> bool:
    """Whether it is a part of Ray, or a cell, that could still do something."""
    try:
        words = " ".join(process.cmdline())
        alive = process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    return alive and any(name in words for name in ("raylet", "gcs_server", "maestro_dist.train"))


def test_a_killed_suite_goes_on_a_failed_cell_is_named_and_all_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = tmp_path / "cells"
    pretrain, maestro = cells / "excerpt.pretrain.s1", cells / "excerpt.maestro.s1"

    process = start(tmp_path, "--only", "*.pretrain.*")
    runs.wait_for((cells / "leases").exists, process)
    assert main(command(tmp_path)[2:]) == 1, "a second one at the same time"
    assert "held by another driver" in capsys.readouterr().err
    assert not (tmp_path / "report").exists(), "the first one writes the report"
    runs.wait_for((pretrain / "checkpoints" / "step-000000004" / "checkpoint.json").exists, process)
    # where it would write into a folder; now, because the cell goes on for a moment after its driver was killed
    (pretrain / "model").touch(exist_ok=False)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (pretrain / "result.json").exists(), "killed too late"
    runs.wait_for(lambda: not any(is_at_work(child) for child in children), seconds=30)

    process = start(tmp_path)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 1, printed
    assert "4 cells chosen, 0 done" in printed
    assert "2 done, 1 failed, 1 skipped" in printed
    assert "\nexcerpt.pretrain.s1 failed:\n" in printed
    assert "/excerpt.pretrain.s1/model" in printed
    assert "\nexcerpt.maestro.s1 is skipped: it needs excerpt.pretrain.s1, which has failed\n" in printed
    assert not maestro.exists(), "it has not been tried"
    assert "resumes at step" in (pretrain / "job.log").read_text(), "the run went on from its checkpoint"
    record = json.loads((pretrain / "cell.json").read_text())
    assert [attempt["status"] for attempt in record["attempts"]] == ["running", "failed"]
    rows = json.loads((tmp_path / "report" / "results.json").read_text())
    assert [row["name"] for row in rows["rows"]] == ["LightGBM, complete"]
    assert rows["notes"] == ["not finished: MiniRocket against the best of the others, 40 % missing"]

    (pretrain / "model").unlink()
    printed = runs.finish(start(tmp_path))
    assert "4 cells chosen, 2 done" in printed
    assert "4 done, 0 failed, 0 skipped" in printed
    assert printed.index("excerpt.pretrain.s1 done") < printed.index("excerpt.maestro.s1 starts")
    started = next(x for x in (maestro / "job.log").read_text().splitlines() if x.startswith("starts with "))
    assert f" from {pretrain}/checkpoints/" in started, "with what was learnt without labels"
    check_cells(cells)
    check_report(tmp_path, capsys)


def check_report(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It can be made again from what is there, byte for byte, without running anything."""
    report = folder / "report"
    files = {path: path.read_bytes() for path in report.rglob("*.*")}
    assert {path.name for path in files} == {"RESULTS.md", "results.json", "excerpt.png"}
    for path in files:
        path.unlink()
    assert main(command(folder, "--report")[2:]) == 0
    assert {path: path.read_bytes() for path in report.rglob("*.*")} == files
    rows = json.loads((report / "results.json").read_text())["rows"]
    assert len(rows) == 2
    assert rows[0]["value"] > 0.3
    capsys.readouterr()
    assert main(command(folder, "--list")[2:]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "4 of 4 done"
    assert main(command(folder)[2:]) == 0
    again = capsys.readouterr().out
    assert "4 done, 0 failed, 0 skipped" in again
    assert " starts: " not in again


def check_cells(cells: Path) -> None:
    """All are in one MLflow experiment, and what they answered gives the metrics that they report."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{cells}/mlflow.db")
    experiment = client.get_experiment_by_name("smoke")
    assert experiment is not None
    tracked = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    names = {path.parent.name for path in cells.glob("*/result.json")}
    assert set(tracked) == names
    people = None
    assert not (cells / "excerpt.pretrain.s1" / "predictions.npz").exists(), "it answers nothing"
    for name in names - {"excerpt.pretrain.s1"}:
        predictions = Predictions.read(Storage(str(cells)).join(name))
        result = json.loads((cells / name / "result.json").read_text())["evaluation"]
        classes = predictions.logits.shape[2]
        task = Classification(TaskConfig(), classes=[str(n) for n in range(classes)], class_counts=[1] * classes)
        assert len(result["scenarios"]) == len(predictions.rate) == 3
        for scenario, logits in zip(result["scenarios"], predictions.logits, strict=True):
            assert task.metrics(logits, predictions.target) == pytest.approx(scenario["metrics"])
        logged = tracked[name].data.metrics
        assert tracked[name].info.status == "FINISHED"
        complete = result["scenarios"][0]["metrics"]["accuracy"]
        missing = [scenario["metrics"]["accuracy"] for scenario in result["scenarios"][1:]]
        assert logged["test/accuracy"] == pytest.approx(complete)
        assert logged["test/accuracy_missing_40"] == pytest.approx(np.mean(missing))
        assert (predictions.experts is not None) == ("maestro" in name)
        people = predictions.subject if people is None else people
        assert np.array_equal(predictions.subject, people)
    assert people is not None
    assert len(np.unique(people)) == 3
