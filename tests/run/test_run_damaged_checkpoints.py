"""Runs whose newest checkpoint is damaged continue from an older one, to the same weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import runs

EXTRA = ["checkpoint.every_steps=2", "optim.epochs=2"]


@pytest.fixture(scope="module")
def whole(synthetic: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    storage = tmp_path_factory.mktemp("whole")
    assert runs.train(storage, synthetic, *EXTRA) == 0
    return storage


def flip_a_byte(folder: Path) -> None:
    part = min(folder.glob("*.safetensors"))
    data = bytearray(part.read_bytes())
    data[-5] ^= 1
    part.write_bytes(data)


def remove_a_part(folder: Path) -> None:
    max(folder.glob("*.safetensors")).unlink()


def cut_the_record(folder: Path) -> None:
    (folder / "checkpoint.json").write_bytes((folder / "checkpoint.json").read_bytes()[:200])


def steps_of(run: Path) -> list[int]:
    return sorted(int(folder.name.removeprefix("step-")) for folder in (run / "checkpoints").iterdir())


def unfinish(run: Path) -> None:
    """Make a finished run one that died after its last checkpoint."""
    (run / "result.json").unlink()
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "status": "running"}))


@pytest.mark.parametrize("damage", [flip_a_byte, remove_a_part, cut_the_record])
def test_a_run_goes_on_from_the_newest_whole_checkpoint(
    whole: Path, synthetic: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None]
) -> None:
    storage = tmp_path / "runs"
    shutil.copytree(whole, storage)
    older, newest = steps_of(storage / "tiny")[-2:]
    unfinish(storage / "tiny")
    damage(storage / "tiny" / "checkpoints" / f"step-{newest:09d}")
    capsys.readouterr()
    assert runs.train(storage, synthetic, *EXTRA) == 0
    said = capsys.readouterr().err
    assert f"the checkpoint of step {newest} is passed over" in said
    assert f"from the checkpoint of step {older}: {newest - older} steps are trained again" in said
    runs.assert_same_weights(runs.weights(storage), runs.weights(whole))
    one, other = (json.loads((place / "tiny" / "result.json").read_text()) for place in (storage, whole))
    assert one["evaluation"] == other["evaluation"]


def test_a_run_without_a_whole_checkpoint_stops_with_advice(
    whole: Path, synthetic: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = tmp_path / "runs"
    shutil.copytree(whole, storage)
    unfinish(storage / "tiny")
    for step in steps_of(storage / "tiny"):
        flip_a_byte(storage / "tiny" / "checkpoints" / f"step-{step:09d}")
    assert runs.train(storage, synthetic, *EXTRA) == 1
    said = capsys.readouterr().err
    assert "no older checkpoint is whole; remove" in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_one_damaged_part_takes_all_ranks_back(synthetic: str, tmp_path: Path) -> None:
    extra = [*EXTRA, *runs.RAY, "run.workers=2"]
    assert runs.train(tmp_path / "whole", synthetic, *extra) == 0
    storage = tmp_path / "runs"
    shutil.copytree(tmp_path / "whole", storage)
    newest = steps_of(storage / "tiny")[-1]
    unfinish(storage / "tiny")
    part = max((storage / "tiny" / "checkpoints" / f"step-{newest:09d}").glob("rank-00001*.safetensors"))
    data = bytearray(part.read_bytes())
    data[-5] ^= 1
    part.write_bytes(data)
    printed = runs.finish(runs.start(storage, synthetic, *extra))
    assert f"the checkpoint of step {newest} is passed over: " in printed
    assert "started again" not in printed
    runs.assert_same_weights(runs.weights(storage), runs.weights(tmp_path / "whole"))
