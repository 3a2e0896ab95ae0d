"""Whole runs: pre-training, evaluation of it, and runs that begin with its weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import runs
import synthetic as synthetic_data

PRE = ["task.kind=pretrain", "optim.epochs=2"]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory, synthetic: str) -> Path:
    """Storage of a finished run of pre-training."""
    storage = tmp_path_factory.mktemp("pretrained")
    assert runs.train(storage, synthetic, *PRE) == 0
    return storage


def fails(storage: Path, data: str, capsys: pytest.CaptureFixture[str], *extra: str) -> str:
    assert runs.train(storage, data, *extra) != 0
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


def test_pretraining_leaves_metrics_and_weights(
    pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from maestro_dist.errors import CheckpointError
    from maestro_dist.evaluate import main
    from maestro_dist.inference.predictor import load_model

    result = json.loads((pretrained / "tiny" / "result.json").read_text())
    assert result["metric"] == "loss"
    assert result["mlflow_model"] is None
    assert not (pretrained / "tiny" / "predictions.npz").exists()  # it answers nothing
    complete = result["evaluation"]["scenarios"][0]["metrics"]
    assert complete["loss"] < np.log(20)
    assert complete["accuracy"] > 1.2 / 20
    assert complete["perplexity"] == pytest.approx(np.exp(complete["loss"]))
    losses = runs.tracked(pretrained)[1]
    assert losses[-1][1] < losses[0][1]
    assert main([str(pretrained / "tiny"), "--json", str(tmp_path / "e.json"), "--threads", "1"]) == 0
    assert "perplexity" in capsys.readouterr().out
    found = json.loads((tmp_path / "e.json").read_text())
    for one, other in zip(found["scenarios"], result["evaluation"]["scenarios"], strict=True):
        assert one["metrics"] == pytest.approx(other["metrics"], abs=1e-5)
    with pytest.raises(CheckpointError, match="only pre-trained and has no output head"):
        load_model(str(pretrained / "tiny" / "model"))


def test_a_run_begins_with_the_weights_of_an_exported_model(
    pretrained: Path, synthetic: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    still = [f"run.init_from={pretrained / 'tiny' / 'model'}", "optim.max_steps=1", "optim.lr=1e-30"]
    assert runs.train(tmp_path, synthetic, *still, "optim.weight_decay=0", "evaluation.test_rates=[0]") == 0
    before, after = runs.weights(pretrained), runs.weights(tmp_path)
    heads = {name for name in after if name.startswith(("head.", "modality_heads."))}
    assert set(before) >= set(after) - heads
    for name in set(after) - heads:
        np.testing.assert_allclose(after[name], before[name], rtol=1e-6, atol=1e-7, err_msg=name)
    assert f"starts with {len(after) - len(heads)} of {len(after)} parameters from" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_that_died_goes_on_without_them(
    pretrained: Path, synthetic: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are taken once: when it goes on they may be gone, but another place is another run."""
    kept = tmp_path / "kept"
    shutil.copytree(pretrained / "tiny", kept)
    extra = [f"run.init_from={kept}", "checkpoint.every_steps=2", "checkpoint.keep_last=9", "optim.max_steps=8"]
    assert runs.train(tmp_path, synthetic, *extra, "evaluation.test_rates=[0]") == 0
    said = capsys.readouterr().out
    assert "parameters from" in said
    assert "kept/checkpoints/step-000000014" in said  # the best so far
    whole = runs.weights(tmp_path)

    shutil.rmtree(kept)
    runs.rewind(tmp_path / "tiny", 6, 7, 8)
    assert runs.train(tmp_path, synthetic, *extra, "evaluation.test_rates=[0]") == 0
    said = capsys.readouterr().out
    assert "resumes at step 4 of 8" in said
    assert "parameters from" not in said
    runs.assert_same_weights(runs.weights(tmp_path), whole)
    said = fails(tmp_path, synthetic, capsys, *extra[1:], "evaluation.test_rates=[0]")
    assert f"run.init_from '{kept}' -> None" in said


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.width=32", "embeddings.acc.symbols.table.weight [42, 16] there, [42, 32] here"),
        ("model.heads=4", "model.heads 2 there, 4 here"),
        ("model.word=4", "model.word of acc 8 there, 4 here"),
        ("model.alphabet=10", "model.alphabet 20 there, 10 here"),
        ("data.modalities=[acc, temp]", "was trained on acc, bvp, temp, but this run uses acc, temp"),
        ("run.init_from=/nowhere", "is neither a run (it has no config.yaml), nor a checkpoint of one"),
        ("run.init_from=s3://me:secret@bucket/run", "run.init_from: holds credentials"),
    ],
)
def test_weights_that_do_not_fit_are_refused_before_a_worker_starts(
    override: str, said: str, pretrained: Path, synthetic: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [f"run.init_from={pretrained / 'tiny'}", override]
    assert said in fails(tmp_path, synthetic, capsys, *overrides)
    assert not (tmp_path / "tiny" / "checkpoints").exists()
    if override == "model.width=32":
        assert said in fails(tmp_path, synthetic, capsys, *overrides, "--dry-run")


def test_recordings_without_labels(synthetic: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They give the same as with labels, and nothing but pre-training takes them."""
    data = str(tmp_path / "data")
    synthetic_data.write(data, "none")
    losses = []
    for url in (synthetic, data):
        assert runs.train(tmp_path, url, *PRE, "--dry-run") == 0
        said = capsys.readouterr().out
        assert "masked symbols" in said
        losses += [line for line in said.splitlines() if line.startswith("first micro-batch: 16 samples, loss")]
    assert len(losses) == 2
    assert losses[0] == losses[1]
    assert "the data has no labels; use task.kind=pretrain" in fails(tmp_path, data, capsys)
