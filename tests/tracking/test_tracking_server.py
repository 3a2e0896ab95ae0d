"""A real MLflow server that is stopped and started again while metrics are logged: nothing lost, nothing twice."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from maestro_dist.tracking import MetricLog, open_run


class Server:
    """`mlflow server` with one worker on a free port of this machine."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.folder, self.uri = folder, f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self.folder / "server.txt").open("ab") as output:
            self.process = subprocess.Popen(
                command, cwd=self.folder, env=environment, stdout=output, stderr=output, start_new_session=True
            )
        deadline = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=1):
                    return
            except OSError:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    raise AssertionError((self.folder / "server.txt").read_text()) from None
                time.sleep(0.1)

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture
def server(tmp_path: Path, empty: Path) -> Iterator[Server]:
    shutil.copy(empty, tmp_path / "mlflow.db")
    server = Server(tmp_path)
    server.start()
    yield server
    server.kill()


def test_nothing_is_lost_or_doubled_over_a_dead_server(
    server: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    run = open_run(server.uri, "study", "one")
    first = MetricLog(tmp_path / "run", server.uri, run.run_id, run.start_ms, 0, interval_s=0.05)
    for step in range(1, 201):
        began = time.monotonic()
        first.log(step, {"loss": float(step)})
        assert time.monotonic() - began < 1.0, "logging never waits for the server"
        time.sleep(0.005)
        if step == 100:
            server.kill()
    assert not first.close(1.0), "half of the metrics cannot have been sent"
    assert capfd.readouterr().err.count("warning: tracking at") == 1

    second = MetricLog(tmp_path / "run", server.uri, run.run_id, None, 150, interval_s=0.05)
    while "warning: tracking at" not in capfd.readouterr().err:
        time.sleep(0.05)
    server.start()
    for step in range(151, 251):
        second.log(step, {"loss": float(step)})
    assert second.close(20)
    assert "answers again" in capfd.readouterr().out
    history = MlflowClient(server.uri).get_metric_history(run.run_id, "loss")
    found = sorted((metric.step, metric.value) for metric in history)
    assert found == [(step, float(step)) for step in range(1, 251)]
