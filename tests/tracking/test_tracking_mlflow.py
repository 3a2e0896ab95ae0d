"""The MLflow run with a real SQLite store: opened, continued, metrics without gaps or duplicates."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient

from maestro_dist.errors import RunError
from maestro_dist.tracking import MetricLog, close_run, log_files, open_run
from maestro_dist.tracking.run import check_server


def stored(uri: str, run_id: str, key: str) -> list[tuple[int, float, int]]:
    history = MlflowClient(uri).get_metric_history(run_id, key)
    return sorted((metric.step, metric.value, metric.timestamp) for metric in history)


def test_params_once_tags_each_time_artifacts_beside_the_database(uri: str, tmp_path: Path) -> None:
    params = {"model": {"width": 64, "moe": {"experts": 4}}, "data": {"modalities": None}, "task": {"kind": "auto"}}
    first = open_run(uri, "study", "one", params=params, tags={"mesh": {"data": 2}, "store": "http://me:secret@host/x"})
    assert close_run(uri, first.run_id, "FAILED")
    again = open_run(uri, "study", "one", run_id=first.run_id, params=params, tags={"mesh": {"data": 4}})
    assert again == first
    run = MlflowClient(uri).get_run(first.run_id)
    assert run.info.status == "RUNNING"
    assert run.info.run_name == "one"
    assert run.data.params == {
        "model.width": "64",
        "model.moe.experts": "4",
        "data.modalities": "null",
        "task.kind": "auto",
    }
    assert run.data.tags["mesh.data"] == "4"
    assert run.data.tags["store"] == "http://host/x"
    assert run.info.artifact_uri.startswith((tmp_path / "mlartifacts").as_uri())
    note = tmp_path / "note.txt"
    note.write_text("x")
    assert log_files(uri, first.run_id, [note], "notes")
    assert [file.path for file in MlflowClient(uri).list_artifacts(first.run_id, "notes")] == ["notes/note.txt"]


def test_more_metrics_than_one_request_takes_and_longer_params(uri: str, tmp_path: Path) -> None:
    classes = [f"class $_{number}^" for number in range(1200)]
    run = open_run(uri, "study", "one", params={"classes": classes}, tags={"classes": classes})
    log = MetricLog(tmp_path / "run", uri, run.run_id, run.start_ms)
    log.log(1, {f"budgets/{'m' * 40}_{number}": 1.0 for number in range(1100)})
    assert log.close(60)
    found = MlflowClient(uri).get_run(run.run_id).data
    assert len(found.metrics) == 1100
    assert len(found.params["classes"]) == 6000


def test_an_experiment_that_mlflow_refuses_is_told_as_such(uri: str) -> None:
    with pytest.raises(RunError, match=r"refuses this run \(.*\); choose another tracking\.experiment or run\.name"):
        open_run(uri, "x" * 600, "one")


def test_a_continued_run_that_is_gone_is_started_anew(uri: str) -> None:
    run = open_run(uri, "study", "one", run_id="0" * 32)
    assert MlflowClient(uri).get_run(run.run_id).info.run_name == "one"


@pytest.mark.slow
def test_a_dead_server_stops_a_first_start_but_not_a_resume(capsys: pytest.CaptureFixture[str]) -> None:
    dead = "http://me:secret@127.0.0.1:9"
    with pytest.raises(
        RunError, match=r"tracking at http://127\.0\.0\.1:9 does not answer .*; start it or set tracking\.uri"
    ):
        open_run(dead, "study", "one")
    with pytest.raises(RunError, match=r"http://127\.0\.0\.1:9 does not answer .*; start it or choose another"):
        check_server(dead, "study")
    assert open_run(dead, "study", "one", run_id="abc").run_id == "abc"
    assert not close_run(dead, "abc", "FINISHED")
    assert "secret" not in capsys.readouterr().err


def test_metrics_arrive_with_fixed_timestamps(uri: str, tmp_path: Path) -> None:
    run = open_run(uri, "study", "one")
    log = MetricLog(tmp_path / "run", uri, run.run_id, run.start_ms, 0)
    for step in range(1, 1501):
        log.log(step, {"train/loss": 1 / step, "train/lr": float("nan") if step == 3 else 0.1})
    assert log.close(30)
    assert run.start_ms is not None
    expected = [(step, pytest.approx(1 / step), run.start_ms + step) for step in range(1, 1501)]
    assert stored(uri, run.run_id, "train/loss") == expected
    assert len(stored(uri, run.run_id, "train/lr")) == 1499


def test_a_resume_sends_no_step_twice(uri: str, tmp_path: Path) -> None:
    """Attempt 1 dies at step 10, attempt 2 goes on from 6 with values that differ in their last bits."""
    run = open_run(uri, "study", "one")
    first = MetricLog(tmp_path / "run", uri, run.run_id, run.start_ms, 0)
    for step in range(1, 11):
        first.log(step, {"loss": float(step)})
    assert first.close(30)
    for folder in ("run", "another machine"):
        second = MetricLog(tmp_path / folder, uri, run.run_id, None, 6)
        for step in range(7, 14):
            second.log(step, {"loss": step + 1e-9, "new": 1.0})
        assert second.close(30)
    assert [step for step, _, _ in stored(uri, run.run_id, "loss")] == list(range(1, 14))
    assert [value for step, value, _ in stored(uri, run.run_id, "loss") if step <= 10] == [
        float(s) for s in range(1, 11)
    ]
    assert [step for step, _, _ in stored(uri, run.run_id, "new")] == list(range(7, 14))
    steps, values = second.history()["loss"]
    assert steps.tolist() == list(range(7, 14))
    assert values[0] == 7 + 1e-9
