"""What a saver asks of remote storage, and in which order it writes."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from test_checkpoint_files import engine, process_group, record_path, save, saver_of  # noqa: F401

from maestro_dist.checkpoint import Saver, complete_steps, find
from maestro_dist.checkpoint.layout import PartName
from maestro_dist.data.storage import Storage
from maestro_dist.engine.engine import Engine
from maestro_dist.parallel.mesh import Mesh


def test_remote_checkpoints_are_listed_once_and_removed_alike(
    engine: Engine,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Leftovers of an earlier attempt are found by the listings; which steps there are is asked once."""
    url = f"memory://{tmp_path.name}"
    folder = Storage(url).join("checkpoints")
    for step in (1, 9):
        folder.write(f"step-{step:09d}/{PartName(0, 1, 77, 1).file()}", b"half")
    listed: list[str] = []
    sizes = Storage.sizes
    monkeypatch.setattr(Storage, "sizes", lambda self, path="", **more: (listed.append(path), sizes(self, path))[1])
    saver = Saver(url, Mesh(0, 1, 1), attempt=2, keep_last=2)
    for step, chosen in ((5, 5), (6, 5), (7, 5), (8, 5), (9, 5), (10, 10)):
        save(saver, engine, step, best_step=chosen)
    assert listed.count("") == 7  # all steps once; at each save its folder, before the record is written
    monkeypatch.undo()
    assert complete_steps(url) == [9, 10]
    assert [name for name in folder.list() if folder.list(name)] == ["step-000000009", "step-000000010"]
    assert folder.list("step-000000009") == ["checkpoint.json", find(url, 9).record.parts[0].file]


def test_a_part_is_written_while_the_record_before_it_waits(
    tmp_path: Path,
    engine: Engine,  # noqa: F811
) -> None:
    """Records keep their order; a third save waits until the first is complete."""
    saver, may_write = saver_of(tmp_path), threading.Event()

    def fence() -> None:
        assert may_write.wait(20)

    saver.save(engine, step=1, position=1, epoch=0, metadata={}, fence=fence)
    saver.save(engine, step=2, position=2, epoch=0, metadata={})
    second = record_path(tmp_path, 2).parent
    deadline = time.monotonic() + 20
    while not list(second.glob("*.safetensors")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert complete_steps(str(tmp_path)) == []
    threading.Timer(0.1, may_write.set).start()
    saver.save(engine, step=3, position=3, epoch=0, metadata={})
    assert 1 in complete_steps(str(tmp_path))
    saver.wait()
    assert saver.completed() == [1, 2, 3]
