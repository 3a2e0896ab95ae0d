"""Answers of other models are what they say themselves, on any split into ranks, and stay with the run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import runs
import torch
from ranks import run_ranks

from maestro_dist.config.load import load_config
from maestro_dist.data.manifest import load_manifest
from maestro_dist.data.storage import Storage
from maestro_dist.evaluation.predictions import Predictions
from maestro_dist.parallel.mesh import build_mesh
from maestro_dist.training.teachers import teacher_predictions

ON_TRAINING = ["data.test=train", "evaluation.test_rates=[0]", "optim.epochs=1"]


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory, synthetic: str) -> list[str]:
    """Two runs whose tests were on the training split; the second one's model is another."""
    storage = tmp_path_factory.mktemp("teachers")
    other = ["model.width=12", "model.word=4", "model.embedding=table", "run.seed=3"]
    for name, extra in (("one", []), ("two", other)):
        assert runs.train(storage, synthetic, *ON_TRAINING, f"run.name={name}", *extra) == 0
    return [str(storage / "one"), str(storage / "two" / "model")]


@pytest.fixture(scope="module")
def told(teachers: list[str]) -> np.ndarray:
    """Their mean answer for each training sample, by their own tests."""
    kept = [Predictions.read(Storage(teachers[0])), Predictions.read(Storage(teachers[1].removesuffix("/model")))]
    logits = torch.from_numpy(np.stack([one.logits[0] for one in kept]))
    found: np.ndarray = logits.softmax(2).mean(0).numpy()
    assert np.ptp(found[:, 0]) > 0.05
    return found


def on_rank(rank: int, ranks: int, data: str, run: str, teachers: list[str], *extra: str) -> tuple[np.ndarray, bool]:
    config = load_config(None, runs.arguments(run, data, f"task.teachers={json.dumps(teachers)}", *extra))
    mesh = build_mesh(config.mesh, world=ranks, rank=rank)
    found, asked = teacher_predictions(config, load_manifest(data), mesh, run, torch.device("cpu"))
    return found.numpy(), asked


@pytest.mark.parametrize(
    "extra",
    [
        (),
        pytest.param(("mesh.sequence=2",), marks=pytest.mark.slow),
        pytest.param(("mesh.expert=2",), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_ranks_hear_what_the_teachers_say_and_keep_it(
    extra: tuple[str, ...], teachers: list[str], told: np.ndarray, synthetic: str, tmp_path: Path
) -> None:
    run, more = str(tmp_path / "run"), ("run.workers=2", "run.launcher=ray", *extra)
    for found, asked in run_ranks(on_rank, 2, synthetic, run, teachers, *more):
        assert asked
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, told, atol=1e-5)
    for found, asked in run_ranks(on_rank, 2, synthetic, run, ["/nowhere"], *more):
        assert not asked
        np.testing.assert_allclose(found, told, atol=1e-5)
