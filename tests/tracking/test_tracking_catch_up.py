"""Runs whose MLflow server dies or falls silent: they end well, and what MLflow lacks is sent later, once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import runs
from mlflow import MlflowClient
from mlflow_proxy import MlflowProxy
from test_tracking_server import Server, server  # noqa: F401

from maestro_dist.track import main as track
from maestro_dist.tracking.metric_file import sent_lines
from maestro_dist.tracking.unsent import PARTS, Unsent, read_unsent

pytestmark = pytest.mark.slow


@pytest.fixture
def proxy(server: Server) -> Iterator[MlflowProxy]:  # noqa: F811
    proxy = MlflowProxy(server.port)
    yield proxy
    proxy.close()


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """No limit for what works: this machine may be slow."""
    monkeypatch.setenv("MAESTRO_TRACKING_LIMIT_S", "900")


def ended_without_server(
    proxy: MlflowProxy, storage: Path, data: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> str:
    """A run in a process of its own, to whose server that happens at the first metrics; returns what it printed."""

    def fails() -> None:
        proxy.mode = mode

    proxy.at_metrics = fails
    with monkeypatch.context() as short:
        short.setenv("MAESTRO_TRACKING_LIMIT_S", "6")
        short.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3600")
        printed = runs.finish(runs.start(storage, data, f"tracking.uri={proxy.uri}"))
    assert proxy.at_metrics is None, "no metrics were sent while the run trained"
    return printed


def found(uri: str, run_id: str) -> dict[str, Any]:
    """What the server has of the run."""
    client = MlflowClient(uri)
    run = client.get_run(run_id)
    names = run.data.metrics
    return {
        "status": run.info.status,
        "end": run.info.end_time,
        "rows": {
            name: sorted((row.step, row.value) for row in client.get_metric_history(run_id, name)) for name in names
        },
        "models": [output.model_id for output in run.outputs.model_outputs] if run.outputs else [],
        "figures": sorted(file.path for file in client.list_artifacts(run_id, "figures")),
        "tags": {name: run.data.tags.get(name) for name in ("checkpoint.best", "model.mlflow")},
    }


def written(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Metric -> its rows, by the file of the run."""
    rows: dict[str, dict[int, float]] = {}
    for step, metrics in sent_lines(run / "metrics.jsonl"):
        for name, value in metrics.items():
            rows.setdefault(name, {}).setdefault(step, value)
    return {name: sorted(values.items()) for name, values in rows.items()}


def assert_complete(has: dict[str, Any], run: Path) -> None:
    result = json.loads((run / "result.json").read_text())
    assert has["status"] == "FINISHED"
    assert has["rows"] == written(run)
    assert len(has["models"]) == 1
    assert result["mlflow_model"] == has["tags"]["model.mlflow"] == f"models:/{has['models'][0]}"
    assert has["tags"]["checkpoint.best"] == result["checkpoint"]
    assert has["figures"] == sorted(f"figures/{path.name}" for path in (run / "figures").iterdir())


@pytest.mark.parametrize("mode", ["dead", "silent"])
def test_what_a_server_missed_is_sent_by_the_next_start(
    mode: str, proxy: MlflowProxy, synthetic: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed = ended_without_server(proxy, tmp_path, synthetic, mode, monkeypatch)
    run = tmp_path / "tiny"
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "finished"
    note = read_unsent(runs_storage(run))
    assert note is not None
    assert note.parts == PARTS
    assert f"lacks of this run: {', '.join(PARTS)}" in printed
    assert f"-m maestro_dist.track {run}" in printed
    assert "Traceback" not in printed

    still = runs.finish(runs.start(tmp_path, synthetic, f"tracking.uri={proxy.uri}")) if mode == "dead" else ""
    assert mode == "silent" or "does not answer" in still, "a finished run says so again and ends well"
    proxy.mode = "pass"
    before = found(proxy.uri, record["mlflow_run"])
    assert before["status"] == "RUNNING"
    assert before["rows"] != written(run)
    said = runs.finish(runs.start(tmp_path, synthetic, f"tracking.uri={proxy.uri}"))
    assert "is finished; nothing to do" in said
    assert f"tracking at {proxy.uri} has everything of this run now" in said
    has = found(proxy.uri, record["mlflow_run"])
    assert_complete(has, run)
    assert has["end"] == note.ended_ms, "the run ended then, not now"
    assert read_unsent(runs_storage(run)) == Unsent((), "FINISHED", note.ended_ms)

    assert track([str(run)]) == 0
    assert found(proxy.uri, record["mlflow_run"]) == has, "nothing twice"
    proxy.mode = "dead"
    again = runs.finish(runs.start(tmp_path, synthetic, f"tracking.uri={proxy.uri}"))
    assert "is finished; nothing to do" in again
    assert "does not answer" not in again, "the server is not asked any more"
    assert "lacks of this run" not in again


def test_the_command_sends_the_rest_or_says_what_to_do(
    proxy: MlflowProxy,
    synthetic: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ended_without_server(proxy, tmp_path, synthetic, "dead", monkeypatch)
    run = tmp_path / "tiny"
    assert track([str(run)]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: tracking at {proxy.uri} does not answer (")
    assert error.endswith(
        "start the server and repeat this command, or name another address of the same server with --uri"
    )
    server_uri = f"http://127.0.0.1:{proxy.port}"
    run_id = json.loads((run / "run.json").read_text())["mlflow_run"]
    for _ in range(2):
        assert track([str(run), "--uri", server_uri]) == 0
        assert_complete(found(server_uri, run_id), run)
    assert track([str(tmp_path / "tin")]) == 2
    assert f"did you mean {run}?" in capsys.readouterr().err


def test_a_run_that_was_stopped_gets_its_status(
    proxy: MlflowProxy, synthetic: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server dies at the first metrics, and the run is stopped."""
    process = runs.start(tmp_path, synthetic, f"tracking.uri={proxy.uri}", "optim.epochs=100000")

    def dies() -> None:
        proxy.mode = "dead"
        process.terminate()

    proxy.at_metrics = dies
    printed, _ = process.communicate(timeout=600)
    assert process.returncode == 130, printed
    run = tmp_path / "tiny"
    run_id = json.loads((run / "run.json").read_text())["mlflow_run"]
    proxy.mode = "pass"
    assert found(proxy.uri, run_id)["status"] == "RUNNING"
    assert track([str(run)]) == 0
    has = found(proxy.uri, run_id)
    assert has["status"] == "KILLED"
    assert has["rows"] == written(run)


def runs_storage(run: Path) -> Any:
    from maestro_dist.data.storage import Storage

    return Storage(str(run))
