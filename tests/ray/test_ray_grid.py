"""Runs of the public command on real data, on grids of sequence and expert ranks, against one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import runs

pytestmark = pytest.mark.slow

STEPS = 4
OPTIONS = [
    "configs/stress_predict.yaml", "model.dropout=0.1", "model.moe.top_k=2", "optim.optimizer=sgd", "optim.lr=0.05",
    f"optim.max_steps={STEPS}", "optim.global_batch=24", "missing.ramp_start=0", "missing.ramp_end=0", "run.name=tiny",
    "run.timeout_s=180", "evaluation.test_rates=[0.0,0.4]", "evaluation.draws=[0]",
    # many words, so that ranks have something to share
    "model.word={acc: 64, bvp: 128, eda: 8, temp: 8, hr: 2}", "model.embedding=patch", "model.encoder_layers=1",
    # and small, whatever the recipe has
    "model.width=32", "model.summary_bands=6",
]  # fmt: skip


@pytest.fixture(scope="module")
def stress(tmp_path_factory: pytest.TempPathFactory) -> str:
    """URL of the packed excerpt: two people's wrist bands, five signals at rates of their own."""
    out = str(tmp_path_factory.mktemp("stress"))
    source = runs.ROOT / "tests" / "data" / "stress_predict"
    command = [sys.executable, "tools/pack_dataset.py", "stress_predict", "--source", str(source), "--out", out]
    subprocess.run(command, cwd=runs.ROOT, check=True, capture_output=True)
    return out


def run(storage: Path, data: str, *extra: str) -> tuple[list[float], dict[str, Any]]:
    """Training losses, and the test's results."""
    command = [sys.executable, "-m", "maestro_dist.train", *OPTIONS, f"run.storage={storage}", f"data.url={data}"]
    process = subprocess.Popen(
        [*command, *extra],
        cwd=runs.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ},
    )
    runs.finish(process)
    return [value for _, value in runs.tracked(storage)[1]], json.loads((storage / "tiny" / "result.json").read_text())


@pytest.fixture(scope="module")
def alone(stress: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[float], dict[str, Any]]:
    """The same in one process."""
    return run(tmp_path_factory.mktemp("alone"), stress, "run.launcher=inline", "run.workers=1")


@pytest.mark.parametrize(
    "grid",
    [
        {"run.workers": 2, "mesh.sequence": 2, "mesh.expert": 2, "engine.zero_stage": 2},
        {"run.workers": 4, "mesh.sequence": 4, "engine.zero_stage": 3},
        {"run.workers": 2, "mesh.sequence": 2, "mesh.sequence_method": "ulysses"},
    ],
    ids=lambda grid: " ".join(f"{key}={value}" for key, value in grid.items()),
)
def test_a_grid_equals_one_process(
    grid: dict[str, Any], alone: tuple[list[float], dict[str, Any]], stress: str, tmp_path: Path
) -> None:
    losses, tested = run(tmp_path, stress, "run.launcher=ray", *(f"{key}={value}" for key, value in grid.items()))
    assert len(losses) == STEPS
    handed = [value for _, value in runs.tracked(tmp_path, "system/collectives_mb")[1]]
    assert handed
    assert min(handed) > 0.01
    np.testing.assert_allclose(losses, alone[0], atol=1e-5)
    pairs = list(zip(tested["evaluation"]["scenarios"], alone[1]["evaluation"]["scenarios"], strict=True))
    assert len(pairs) == 2
    for one, other in pairs:
        # the others count or rank predictions, which a rounding may move past one another
        assert one["metrics"].pop("loss") == pytest.approx(other["metrics"]["loss"], abs=1e-5)
        assert one["metrics"] == pytest.approx({key: other["metrics"][key] for key in one["metrics"]}, abs=0.01)
