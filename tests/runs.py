"""Whole runs for tests: a tiny configuration, the public command in this process or another, and what a run left."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
TINY = [
    "model.width=16",
    "model.heads=2",
    "model.word=8",
    "model.dropout=0.1",
    "model.stem.channels=8",
    "model.stem.layers=1",
    "model.moe.top_k=2",
    "optim.global_batch=16",
    "optim.epochs=3",
    "optim.lr=5e-3",
    "tracking.every_steps=3",
    "run.name=tiny",
]

RAY = ["run.launcher=ray", "run.workers=2", "checkpoint.every_steps=2"]


def arguments(storage: Path | str, data: str, *extra: str) -> list[str]:
    """Overrides of a tiny run of the inline launcher; later ones win."""
    return [*TINY, "run.launcher=inline", f"run.storage={storage}", f"data.url={data}", *extra]


def train(storage: Path | str, data: str, *extra: str) -> int:
    """The command in this process; returns its exit code."""
    from maestro_dist.train import main

    return main(arguments(storage, data, *extra))


def start(storage: Path | str, data: str, *extra: str) -> subprocess.Popen[str]:
    """The command in a process of its own, as a user types it."""
    command = [sys.executable, "-m", "maestro_dist.train", *arguments(storage, data, *extra)]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ}
    )


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for the command to end well; returns what it printed."""
    printed, _ = process.communicate(timeout=600)
    assert process.returncode == 0, printed
    return printed


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str] | None = None, seconds: float = 600) -> None:
    """Poll until the condition holds; fails when the process ends first, with what it printed."""
    deadline = time.monotonic() + seconds
    while not condition():
        if process is not None and process.poll() is not None:
            raise AssertionError(f"ended with {process.returncode} too early: {process.communicate()[0]}")
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def rewind(run: Path, *steps: int) -> None:
    """Make a finished run one that died before these steps' checkpoints."""
    for step in steps:
        shutil.rmtree(run / "checkpoints" / f"step-{step:09d}")
    (run / "result.json").unlink()
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "status": "running"}))


def rewind_to(run: Path, step: int) -> None:
    """Make a finished run one that died after this step's checkpoint."""
    steps = [int(folder.name.removeprefix("step-")) for folder in (run / "checkpoints").iterdir()]
    rewind(run, *(other for other in steps if other > step))


def weights(storage: Path | str, name: str = "tiny") -> dict[str, np.ndarray]:
    """The newest checkpoint's parameters and buffers."""
    from maestro_dist.checkpoint import full_weights, newest

    found = newest(f"{storage}/{name}")
    assert found is not None
    return {key: tensor.numpy() for key, tensor in full_weights(found).items()}


def assert_same_weights(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    """Bitwise."""
    assert one.keys() == other.keys()
    different = [name for name in one if not np.array_equal(one[name], other[name])]
    assert different == []


def tracked(storage: Path, key: str = "train/loss") -> tuple[str, list[tuple[int, float]]]:
    """Status of the one MLflow run in `storage`, and a metric's history as (step, value)."""
    client, run = _the_run(storage)
    history = client.get_metric_history(run.info.run_id, key)
    return run.info.status, sorted((metric.step, metric.value) for metric in history)


def tags(storage: Path) -> dict[str, str]:
    """Tags of the one MLflow run in `storage`."""
    return dict(_the_run(storage)[1].data.tags)


def _the_run(storage: Path) -> tuple[Any, Any]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{storage}/mlflow.db")
    experiments = client.search_experiments(filter_string="name = 'maestro_dist'")
    runs = client.search_runs([experiments[0].experiment_id])
    assert len(runs) == 1
    return client, runs[0]
