"""Whole runs that learn from other models' answers."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import runs


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, synthetic: str) -> Path:
    """A finished run."""
    storage = tmp_path_factory.mktemp("teacher")
    assert runs.train(storage, synthetic, "optim.epochs=2") == 0
    return storage / "tiny"


@pytest.mark.slow
def test_a_run_that_died_goes_on_without_its_teachers(
    teacher: Path, synthetic: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "kept"
    shutil.copytree(teacher, kept)
    extra = [f"task.teachers=[{kept}, {kept}/model]", "task.teacher_share=0.8", "checkpoint.every_steps=2"]
    extra += ["checkpoint.keep_last=9", "optim.max_steps=8", "evaluation.test_rates=[0]", "run.seed=5"]
    assert runs.train(tmp_path, synthetic, *extra) == 0
    assert "learns from 2 teachers: predictions for 101 training samples" in capsys.readouterr().out
    whole = runs.weights(tmp_path)

    shutil.rmtree(kept)
    runs.rewind(tmp_path / "tiny", 6, 7, 8)
    assert runs.train(tmp_path, synthetic, *extra) == 0
    said = capsys.readouterr().out
    assert "resumes at step 4 of 8" in said
    assert "learns from" not in said
    runs.assert_same_weights(runs.weights(tmp_path), whole)

    alone = tmp_path / "alone"
    assert runs.train(alone, synthetic, *extra[2:]) == 0
    other = runs.weights(alone)
    assert any((other[name] != value).any() for name, value in whole.items())


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.modalities=[acc, temp]", "was trained on acc, bvp, temp, this run is on acc, temp"),
        ("task.teachers=[/nowhere]", "nowhere is neither an exported model (it has no model.json) nor a run with one"),
        ("task.teachers=[s3://me:secret@bucket/run]", "task.teachers: holds credentials"),
        ("augment.mixup=0.2", "augment.mixup: mixes samples, but task.teachers predict single samples"),
        ("task.kind=pretrain", "task.teachers: predict labels"),
    ],
)
def test_teachers_that_do_not_fit_are_refused_before_a_worker_starts(
    override: str, said: str, teacher: Path, synthetic: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for extra in ([], ["--dry-run"]):
        assert runs.train(tmp_path, synthetic, f"task.teachers=[{teacher}]", override, *extra) != 0
        error = capsys.readouterr().err
        assert said in error
        assert "Traceback" not in error
    assert not (tmp_path / "tiny").exists() or not (tmp_path / "tiny" / "run.json").exists()


def test_what_stays_with_a_run_is_checked(tmp_path: Path) -> None:
    from maestro_dist.data.storage import Storage
    from maestro_dist.errors import CheckpointError
    from maestro_dist.training.teachers import TEACHERS_FILE, _read_predictions, _write_predictions

    run = Storage(str(tmp_path))
    assert _read_predictions(run, (2, 3)) is None
    _write_predictions(run, np.full((2, 3), 0.5, dtype=np.float32))
    assert (_read_predictions(run, (2, 3)) == 0.5).all()
    with pytest.raises(CheckpointError, match=r"shape \[2, 3\] is not \[4, 3\]"):
        _read_predictions(run, (4, 3))
    run.write(TEACHERS_FILE, b"broken")
    with pytest.raises(CheckpointError, match=r"teachers.safetensors: damaged"):
        _read_predictions(run, (2, 3))


def test_a_teacher_that_cannot_answer_on_this_grid_is_refused(
    synthetic: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dense = tmp_path / "dense"
    assert runs.train(dense, synthetic, "model.attention=dense", "optim.max_steps=1") == 0
    grid = ["run.launcher=ray", "run.workers=2", "mesh.sequence=2"]
    assert runs.train(tmp_path, synthetic, f"task.teachers=[{dense}/tiny]", *grid) != 0
    assert "cannot be used here: mesh.sequence: 2 ranks share the time axis, but model.attention=dense" in (
        capsys.readouterr().err
    )


def test_a_dry_run_names_them(
    teacher: Path, synthetic: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert runs.train(tmp_path, synthetic, f"task.teachers=[{teacher}]", "--dry-run") == 0
    assert f"teacher    {teacher}" in capsys.readouterr().out
