"""Writers that were held up: another driver, or another start of the workers, has taken over the run meanwhile."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from test_checkpoint_files import assert_equal, engine, process_group, record_path, save, saver_of, weights  # noqa: F401

from maestro_dist.checkpoint import complete_steps, find, full_weights, newest
from maestro_dist.checkpoint.fence import Fence, begin_session
from maestro_dist.checkpoint.save import Saver
from maestro_dist.data.storage import Storage
from maestro_dist.engine.engine import Engine
from maestro_dist.errors import CheckpointError, RunError


def take_over(run: Path, attempt: int) -> None:
    """What another driver does first."""
    (run / "leases").mkdir(exist_ok=True)
    (run / "leases" / f"attempt-{attempt:06d}.json").write_text("{}")


class HeldUp:
    """Holds up one write of a record after its last check, as a store does that answers late."""

    def __init__(self, patch: pytest.MonkeyPatch, saver: Saver) -> None:
        self.reached, self.released = threading.Event(), threading.Event()
        write, held = Storage.write, saver._name(0, 1).file().encode()

        def slow_write(storage: Storage, path: str, data: bytes, **options: object) -> None:
            if held in data:
                if not self.reached.is_set():
                    options["guard"]()  # type: ignore[operator]
                    self.reached.set()
                    assert self.released.wait(60)
                options["guard"] = lambda: None
            write(storage, path, data, **options)  # type: ignore[arg-type]

        patch.setattr(Storage, "write", slow_write)


def start_save(saver: Saver, engine: Engine, step: int, **metadata: object) -> None:  # noqa: F811
    saver.save(engine, step=step, position=10 * step, epoch=0, metadata=metadata)


@pytest.mark.parametrize("other", ["driver", "start of the workers"])
def test_a_record_that_lands_late_changes_nothing(
    tmp_path: Path,
    engine: Engine,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    other: str,
) -> None:
    late = saver_of(tmp_path, attempt=1)
    held = HeldUp(monkeypatch, late)
    start_save(late, engine, 5, writer="late")
    assert held.reached.wait(60)
    if other == "driver":
        take_over(tmp_path, 2)
    second = saver_of(tmp_path, attempt=2 if other == "driver" else 1)
    save(second, engine, 5, writer="second")
    held.released.set()
    with pytest.raises(RunError, match=r"has taken over|were started again"):
        late.wait()
    info = newest(str(tmp_path))
    assert info is not None
    assert info.metadata == {"writer": "second"}
    assert_equal(full_weights(info), weights(engine))
    save(second, engine, 6, writer="second")
    assert complete_steps(str(tmp_path)) == [5, 6]


def test_a_record_that_lands_after_its_parts_were_removed_is_passed_over(
    tmp_path: Path,
    engine: Engine,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    save(saver_of(tmp_path), engine, 3)
    late = saver_of(tmp_path, attempt=1)
    held = HeldUp(monkeypatch, late)
    start_save(late, engine, 9)
    assert held.reached.wait(60)
    next((tmp_path / "checkpoints" / "step-000000009").glob("*.safetensors")).unlink()
    take_over(tmp_path, 2)
    held.released.set()
    with pytest.raises(RunError, match="has taken over"):
        late.wait()
    assert complete_steps(str(tmp_path)) == [3, 9]
    info = newest(str(tmp_path))
    assert info is not None
    assert info.step == 3


@pytest.mark.parametrize("other", ["driver", "start of the workers"])
def test_a_writer_that_was_replaced_removes_nothing(
    tmp_path: Path,
    engine: Engine,  # noqa: F811
    other: str,
) -> None:
    """Its retention would keep its own newest and best, and remove those of the writer that has taken over."""
    first = saver_of(tmp_path, attempt=1, keep_last=1)
    save(first, engine, 1, best_step=1)
    if other == "driver":
        take_over(tmp_path, 2)
    second = saver_of(tmp_path, attempt=2 if other == "driver" else 1, keep_last=1)
    save(second, engine, 2, best_step=1)
    save(second, engine, 3, best_step=3)
    assert complete_steps(str(tmp_path)) == [3]
    start_save(first, engine, 4, best_step=4)
    with pytest.raises(RunError, match=r"has taken over|were started again"):
        first.wait()
    first._retention.completed([4], [4])  # as if it had been held up between its check and the removal
    assert complete_steps(str(tmp_path)) == [3]
    assert_equal(full_weights(find(str(tmp_path), 3)), weights(engine))


def test_sessions_go_up_whatever_the_clock_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = begin_session(str(tmp_path), 1)
    monkeypatch.setattr(time, "time_ns", lambda: 1_000)
    second = begin_session(str(tmp_path), 1)
    assert second > first
    Fence(str(tmp_path), 1, second).check()
    with pytest.raises(RunError, match="workers of attempt 1 were started again"):
        Fence(str(tmp_path), 1, first).check()
    Fence(str(tmp_path), 1).check()  # of the driver, which starts workers again itself
    third = begin_session(str(tmp_path), 2)
    Fence(str(tmp_path), 2, third).check()
    names = Storage(str(tmp_path)).list("sessions")
    assert names == [f"attempt-000002.{third:x}.json"]  # those of earlier starts are removed


def test_a_part_that_vanished_is_an_error_and_no_record(tmp_path: Path, engine: Engine) -> None:  # noqa: F811
    save(saver_of(tmp_path), engine, 1)
    saver, folder = saver_of(tmp_path), record_path(tmp_path, 2).parent
    other_parts = saver._other_parts

    def remove_part(*arguments: object) -> object:
        for path in folder.glob("*.safetensors"):
            path.unlink()
        return other_parts(*arguments)  # type: ignore[arg-type]

    saver._other_parts = remove_part  # type: ignore[method-assign, assignment]
    start_save(saver, engine, 2)
    with pytest.raises(CheckpointError, match=r"rank-00000.*was written and is not there any more"):
        saver.wait()
    assert complete_steps(str(tmp_path)) == [1]
