"""Damaged checkpoints are passed over and named."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_checkpoint_files import engine, process_group, record_path, save, saver_of  # noqa: F401

from maestro_dist.checkpoint import find, newest
from maestro_dist.engine.engine import Engine
from maestro_dist.errors import CheckpointError, RunError


def test_half_a_record_is_passed_over_and_named(
    tmp_path: Path,
    engine: Engine,  # noqa: F811
    caplog: pytest.LogCaptureFixture,
) -> None:
    for step in (2, 4):
        save(saver_of(tmp_path), engine, step)
    halve(record_path(tmp_path, 4))
    with caplog.at_level("WARNING", "maestro_dist.checkpoint"):
        found = newest(str(tmp_path))
    assert found is not None
    assert found.step == 2
    assert f"{record_path(tmp_path, 4)} is damaged" in caplog.text
    assert "the checkpoint of step 2 is used instead" in caplog.text
    with pytest.raises(CheckpointError, match=r"checkpoint.json is damaged.*use another checkpoint"):
        find(str(tmp_path), 4)

    halve(record_path(tmp_path, 2))
    with pytest.raises(RunError, match=r"no older checkpoint is whole; remove .*/checkpoints to train from the begin"):
        newest(str(tmp_path))


def halve(record: Path) -> None:
    record.write_bytes(record.read_bytes()[:100])


def test_a_checkpoint_without_all_its_parts_is_passed_over(
    tmp_path: Path,
    engine: Engine,  # noqa: F811
) -> None:
    for step in (2, 4, 6):
        save(saver_of(tmp_path, keep_last=3), engine, step)
    next(record_path(tmp_path, 6).parent.glob("*.safetensors")).unlink()
    part = next(record_path(tmp_path, 4).parent.glob("*.safetensors"))
    part.write_bytes(part.read_bytes()[:-1])
    found = newest(str(tmp_path))
    assert found is not None
    assert found.step == 2
