"""Files of a run that an earlier version wrote are still read (`old_run`, without weights)."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from maestro_dist.callbacks.checkpointing import callback_states
from maestro_dist.checkpoint import best, newest
from maestro_dist.checkpoint.fence import newest_attempt
from maestro_dist.config.load import load_config
from maestro_dist.data.manifest import load_manifest
from maestro_dist.data.storage import Storage
from maestro_dist.inference.exported_model import modalities_of, model_config, read_description, task_description
from maestro_dist.run.record import check_same, read
from maestro_dist.run.target import find_target, read_config
from maestro_dist.tracking import read_history


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return shutil.copytree(Path(__file__).parent / "old_run", tmp_path / "old")


def test_the_record_belongs_to_the_same_configuration_and_data(run: Path) -> None:
    config = load_config(str(run / "config.yaml"), [])
    record = read(Storage(str(run)))
    assert record is not None
    check_same(config, load_manifest(str(run / "data")), record)
    assert (record.status, len(str(record.mlflow_run))) == ("finished", 32)
    assert newest_attempt(Storage(str(run))) == 1


def test_the_checkpoint_is_found(run: Path) -> None:
    found = newest(str(run))
    assert found is not None
    assert (found.step, found.position, found.attempt, found.averaged) == (60, 3840, 1, False)
    assert best(str(run)).step == 60
    assert [part.slices["embeddings.acc_x.symbols.linear.bias"] for part in found.record.parts] == [(0, 64)]
    states = callback_states(found.metadata)
    assert states["Validation"]["best_step"] == 60


def test_the_exported_model_is_described(run: Path) -> None:
    description = read_description(Storage(str(run / "model")))
    task = task_description(description)
    assert (task.kind, len(task.classes)) == ("classification", 12)
    assert modalities_of(description)[0].name == "acc_x"
    assert model_config(description).width == 64


def test_evaluate_finds_the_run(run: Path) -> None:
    target = find_target(str(run))
    assert (target.step, target.exported) == (None, False)
    assert read_config(target)["data"]["test"] == "test"


def test_metrics_are_read(run: Path) -> None:
    history = read_history(run)
    assert history["train/loss"][0].tolist() == [1, 2, 3]
    assert history["train/loss"][1].tolist() == [3.5, 3.0, 2.5]
    assert history["budgets/acc_x"][1].tolist() == [1.5]
