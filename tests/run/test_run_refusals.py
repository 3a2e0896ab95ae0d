"""The public command refuses, in one line, what cannot work or is damaged."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import runs


def fails(storage: Path, data: str, capsys: pytest.CaptureFixture[str], *extra: str) -> str:
    """Runs the command, checks that it fails in one line without a traceback, and returns that line."""
    assert runs.train(storage, data, *extra) != 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line]
    assert lines, "no error was printed"
    assert not any("Traceback" in line for line in lines)
    assert lines[-1].startswith("error: ")
    return lines[-1]


def test_a_loss_that_is_not_finite_ends_the_run(
    synthetic: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = fails(tmp_path, synthetic, capsys, "optim.lr=1e30", "optim.warmup=0", "optim.clip=0")
    assert "NaN or infinite" in line
    assert "train_" in line  # names samples
    assert runs.tracked(tmp_path)[0] == "FAILED"


def test_a_missing_manifest_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "manifest" in fails(tmp_path, str(tmp_path / "none"), capsys)


def test_an_unknown_modality_is_named(synthetic: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = fails(tmp_path, synthetic, capsys, "data.modalities=[acc, tmep]")
    assert "did you mean 'temp'" in line


def test_a_cut_shard_is_named(synthetic: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    shutil.copytree(synthetic, data)
    shard = sorted(data.glob("train-*.tar"))[1]
    shard.write_bytes(shard.read_bytes()[:-10240])
    line = fails(tmp_path, str(data), capsys)
    assert shard.name in line
    assert "bytes" in line


def test_a_changed_shard_is_named(synthetic: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    shutil.copytree(synthetic, data)
    shard = sorted(data.glob("train-*.tar"))[0]
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    line = fails(tmp_path, str(data), capsys)
    assert shard.name in line


def test_world_sizes_that_do_not_fit_are_refused(
    synthetic: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = fails(tmp_path, synthetic, capsys, "mesh.data=3")
    assert "mesh.data = 1" in line


def test_a_second_driver_is_refused(synthetic: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from maestro_dist.run.lease import Lease

    lease = Lease(str(tmp_path / "tiny"))
    try:
        assert "held by another driver" in fails(tmp_path, synthetic, capsys)
    finally:
        lease.release()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("tracking.uri=http://bob:hidden@127.0.0.1:9", "tracking.uri: holds credentials"),
        ("tracking.uri=http://127.0.0.1:9", "tracking at http://127.0.0.1:9 does not answer"),
        ("evaluation.metric=rmse", "evaluation.metric=rmse: this classification task has"),
        ("run.device=cuda", "no CUDA device"),
        ("data.test=tset", "did you mean 'test'"),
        ("model.word={acc: 8, bvp: 8}", "no word length for modality 'temp'"),
        ("task.kind=pretrain task.pretrain.word=3", "word: 3 steps of modality 'acc' do not divide its model.word 8"),
        ("model.moe.balance=bias model.moe.experts=0 model.moe.top_k=1", "the model has no experts"),
    ],
)
def test_what_cannot_work_is_refused(
    override: str, said: str, synthetic: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    if "cuda" in override and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    overrides = [override] if "{" in override else override.split()
    line = fails(tmp_path, synthetic, capsys, *overrides)
    assert said in line
    assert "hidden" not in line


def test_dry_run_trains_nothing(synthetic: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert runs.train(tmp_path, synthetic, "--dry-run") == 0
    said = capsys.readouterr().out
    for word in ("first micro-batch: 16 samples, loss", "memory", "21 in all", "parameters"):
        assert word in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["{", "{}", "[1]"])
def test_a_damaged_record_is_named(
    content: str, synthetic: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "run.json").write_text(content)
    assert "run.json is damaged" in fails(tmp_path, synthetic, capsys)
