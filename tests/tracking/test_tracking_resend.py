"""Rows that MLflow lacks in the middle, the limit of the end of a run, and the copy of the metrics in storage."""

from __future__ import annotations

import json
import os
import socket
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric

from maestro_dist.data.storage import Storage
from maestro_dist.errors import RunError
from maestro_dist.tracking import MetricLog, open_run
from maestro_dist.tracking.client import client
from maestro_dist.tracking.end_limit import EndLimit, limit_s
from maestro_dist.tracking.metric_copy import MetricCopy, fetch_metrics
from maestro_dist.tracking.metric_file import MetricFile, read_history
from maestro_dist.tracking.resend import send_missing_metrics
from maestro_dist.tracking.unsent import PARTS, Unsent, read_unsent, write_unsent


def rows(uri: str, run_id: str, name: str) -> list[tuple[int, float, int]]:
    history = MlflowClient(uri).get_metric_history(run_id, name)
    return sorted((row.step, row.value, row.timestamp) for row in history)


def test_rows_that_are_missing_in_the_middle_are_sent_once(uri: str, tmp_path: Path) -> None:
    """MLflow has steps 1 to 3 and 8 to 10; the run went back from 10 to 6, where its numbers changed a little."""
    run = open_run(uri, "study", "one")
    start = run.start_ms or 0
    first = MetricFile(tmp_path, 0)
    for step in range(1, 11):
        first.append(step, {"loss": float(step)}, {"local": 1.0})
    second = MetricFile(tmp_path, 6)
    for step in range(7, 13):
        second.append(step, {"loss": step + 0.5, **({"new": 1.0} if step == 9 else {})})
    had = [Metric("loss", float(step), start + step, step) for step in (1, 2, 3, 8, 9, 10)]
    MlflowClient(uri).log_batch(run.run_id, metrics=had)
    assert send_missing_metrics(tmp_path, uri, run.run_id) == 7
    values = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.5, 8.0, 9.0, 10.0, 11.5, 12.5]
    expected = [(step, value, start + step) for step, value in enumerate(values, 1)]
    assert rows(uri, run.run_id, "loss") == expected
    assert send_missing_metrics(tmp_path, uri, run.run_id) == 0
    assert rows(uri, run.run_id, "loss") == expected
    assert rows(uri, run.run_id, "new") == [(9, 1.0, start + 9)]
    assert "local" not in MlflowClient(uri).get_run(run.run_id).data.metrics
    assert send_missing_metrics(tmp_path / "none", uri, run.run_id) == 0


@pytest.fixture
def silent() -> Iterator[str]:
    """A server that takes connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(64)
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_silent_server_is_left_alone_at_the_limit(silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TIMEOUT": "3600", "MAX_RETRIES": "2", "BACKOFF_FACTOR": "1"}.items():
        monkeypatch.setenv(f"MLFLOW_HTTP_REQUEST_{name}", value)
    limit, ended = EndLimit(silent, 1.0), threading.Event()

    def asks() -> None:
        try:
            client(silent).get_run("0" * 32)
        finally:
            ended.set()

    with pytest.raises(Exception, match=r"MAESTRO_TRACKING_LIMIT_S|timed out|timeout"):
        limit.run("the status", asks)
    assert ended.wait(300), "its request has a limit as well"
    limit.end()
    with pytest.raises(TimeoutError, match=r"^the status took longer than the limit of the end of a run"):
        limit.run("the status", threading.Event().wait)
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "3600"


def test_the_limit_passes_on_results_and_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = EndLimit("http://127.0.0.1:9", 600.0)
    assert limit.run("one", lambda: 1) == 1
    with pytest.raises(ValueError, match="mine"):
        limit.run("one", lambda: int("mine"))
    limit.end()
    limit.allow_bytes(10**9)
    assert limit.left_s == 100.0
    local = EndLimit("sqlite:////tmp/x.db", 0.0)
    assert local.run("one", lambda: 1) == 1, "a file has no limit"
    monkeypatch.setenv("MAESTRO_TRACKING_LIMIT_S", "7")
    assert limit_s() == 7.0
    monkeypatch.setenv("MAESTRO_TRACKING_LIMIT_S", "soon")
    assert limit_s() == 30.0


def test_a_note_of_what_is_unsent_is_read_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Storage(str(tmp_path))
    assert read_unsent(run) is None
    for unsent in (Unsent(()), Unsent(("metrics", "status"), "KILLED", 5)):
        assert write_unsent(run, unsent)
        assert read_unsent(run) == unsent
    run.write("tracking.json", json.dumps({"unsent": 3}).encode())
    assert read_unsent(run) is None
    assert "tracking.json cannot be read" in capsys.readouterr().err
    assert set(PARTS) == {"metrics", "figures", "model", "tags", "status"}


@pytest.fixture
def remote() -> str:
    return f"memory://{uuid.uuid4()}/run"


def losses(folder: Path) -> list[tuple[int, float]]:
    steps, values = read_history(folder)["loss"]
    return list(zip(steps.tolist(), values.tolist(), strict=True))


def append(folder: Path, resume: int, steps: range, value: float) -> MetricFile:
    file = MetricFile(folder, resume)
    for step in steps:
        file.append(step, {"loss": value})
    return file


def test_metrics_follow_rank_0_to_another_machine_and_back(remote: str, tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    append(one, 0, range(1, 6), 1.0)
    copy = MetricCopy(one, remote, lambda: None)
    copy.update()
    append(one, 5, range(6, 9), 1.0)  # lost with the machine
    fetch_metrics(other, remote)
    assert losses(other) == [(step, 1.0) for step in range(1, 6)]
    append(other, 4, range(5, 8), 2.0)
    MetricCopy(other, remote, lambda: None).update()
    expected = [(step, 1.0) for step in range(1, 5)] + [(step, 2.0) for step in range(5, 8)]
    fetch_metrics(other, remote)
    assert losses(other) == expected, "it has everything already"
    fetch_metrics(one, remote)
    assert losses(one) == expected, "what the later attempt wrote counts"
    fetch_metrics(tmp_path / "none", f"memory://{uuid.uuid4()}")
    assert not (tmp_path / "none").exists()


def test_a_driver_that_lost_the_run_copies_nothing(
    remote: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def lost() -> None:
        raise RunError("another driver holds the run")

    append(tmp_path, 0, range(1, 3), 1.0)
    copy = MetricCopy(tmp_path, remote, lost)
    copy.update()
    copy.update()
    assert not Storage(remote).exists("metrics.jsonl")
    assert capsys.readouterr().err.count("another driver holds the run") == 1


def test_a_log_copies_its_file_only_while_tracking_lacks_metrics(uri: str, remote: str, tmp_path: Path) -> None:
    run = open_run(uri, "study", "one")
    for server, copied in ((uri, False), ("http://127.0.0.1:9", True)):
        log = MetricLog(tmp_path / str(copied), server, run.run_id, run.start_ms)
        log.copy_to(remote, lambda: None)
        log.log(1, {"loss": 1.0})
        assert log.close(60.0 if server == uri else 1.0) is not copied
        assert Storage(remote).exists("metrics.jsonl") is copied
