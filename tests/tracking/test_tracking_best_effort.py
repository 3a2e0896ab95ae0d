"""What a run can do without: whatever goes wrong with it is counted and said, and nothing is raised."""

from __future__ import annotations

import errno
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_tracking_figures import FIGURE_DATA

from maestro_dist.tracking import MetricLog, close_run, log_files, read_history
from maestro_dist.tracking import metric_log as log_module
from maestro_dist.tracking import run as run_module
from maestro_dist.tracking.best_effort import BestEffort
from maestro_dist.tracking.figures import draw, log_figures, save
from maestro_dist.tracking.plots import MissingCurve
from maestro_dist.tracking.run import is_reachable, tag_run

DEAD = "http://127.0.0.1:9"


class Speechless(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even that")


def raiser(error: BaseException) -> object:
    def fail(*_: object, **__: object) -> object:
        raise error

    return fail


@pytest.fixture(autouse=True)
def refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that says so at once."""
    monkeypatch.setattr(log_module, "client", raiser(ConnectionError("refused")))


def test_failures_are_counted_and_said_once() -> None:
    effort, full = BestEffort(), OSError(errno.ENOSPC, "No space left on device")
    assert effort.attempt("one", lambda: 1) == 1
    for what, error in {"a": full, "b": full, "c": TypeError("f() got\nmore lines"), "d": Speechless()}.items():
        assert effort.attempt(what, raiser(error)) is None  # type: ignore[arg-type]
    assert effort.attempt("e", lambda: False) is False
    assert effort.text() == "a, b ([Errno 28] No space left on device); c (f() got); d (Speechless); e"
    with pytest.raises(KeyboardInterrupt):
        effort.attempt("stop", raiser(KeyboardInterrupt()))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "error", [TypeError("in MLflow"), MemoryError(), Speechless()], ids=lambda error: type(error).__name__
)
def test_any_error_of_the_tracking_library_is_a_warning(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run_module, "client", raiser(error))
    assert not tag_run(DEAD, "run", {"a": "b"})
    assert not log_files(DEAD, "run", [tmp_path / "a.png"], "figures")
    assert not close_run(DEAD, "run", "FINISHED")
    assert not is_reachable(DEAD, "run")
    assert capsys.readouterr().err.count("warning: ") == 4


def test_a_picture_that_fails_leaves_the_others(tmp_path: Path) -> None:
    effort = BestEffort()
    broken = replace(FIGURE_DATA, missing=MissingCurve("accuracy", [0.0, 0.4], ["x", None], [0.0, 0.0]))  # type: ignore[list-item]
    figures = draw(broken, effort)
    assert set(figures) == {"loss", "validation", "budgets", "experts", "confusion", "overview"}
    assert set(effort.left_out) == {"figure missing"}


def test_a_full_disk_leaves_no_half_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(path: Path, data: bytes) -> int:
        with path.open("wb") as file:
            file.write(data[:5])
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    bare = replace(FIGURE_DATA, history={}, missing=None)
    figures, effort = draw(bare), BestEffort()
    (tmp_path / "figures").mkdir()
    monkeypatch.setattr(Path, "write_bytes", half)
    assert save(figures, tmp_path, effort) == []
    assert list((tmp_path / "figures").iterdir()) == []
    assert set(effort.left_out) == {"figure confusion", "figure overview"}


def test_a_story_on_a_read_only_disk_without_a_server_raises_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "figures").write_text("a file is where the folder should be")
    monkeypatch.setattr(run_module, "client", raiser(ConnectionError("refused")))
    effort = BestEffort()
    log_figures(replace(FIGURE_DATA, history={}, missing=None), tmp_path, DEAD, "run", effort)
    assert set(effort.left_out) == {"figure confusion", "figure overview", "table confusion", "upload of figures"}


class Disk(io.FileIO):
    """A file on a disk that takes `room` more bytes."""

    room = 10**9

    def write(self, data: bytes) -> int:  # type: ignore[override]
        if Disk.room <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = super().write(data[: Disk.room])
        Disk.room -= written
        return written

    def close(self) -> None:
        super().close()
        if Disk.room <= 0:
            raise OSError(errno.EIO, "Input/output error")


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> type[Disk]:
    monkeypatch.setattr(Disk, "room", 10**9)
    opened = Path.open

    def open_on(path: Path, mode: str = "r", *arguments: object, **options: object) -> object:
        return Disk(path, mode) if mode == "ab" else opened(path, mode, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "open", open_on)
    return Disk


@pytest.mark.parametrize("room", [0, 1, 20])
def test_metrics_on_a_full_disk_are_counted_and_go_on_when_there_is_room(
    room: int, disk: type[Disk], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = MetricLog(tmp_path, DEAD, "run", 0, 0, interval_s=60.0)
    log.log(1, {"loss": 1.0})
    disk.room = room
    for step in (2, 3, 4):
        log.log(step, {"loss": float(step)})
    disk.room = 10**9
    log.log(5, {"loss": 5.0})
    disk.room = 0
    log.log(6, {"loss": 6.0})
    assert not log.close(0)
    steps, values = read_history(tmp_path)["loss"]
    assert steps.tolist() == values.tolist() == [1, 5]
    lines = [line for line in capsys.readouterr().err.splitlines() if "metrics" in line and "tracking" not in line]
    assert len(lines) == 3, "the disk is full, it is full again, and what was lost"
    assert lines[0].endswith("([Errno 28] No space left on device); training continues without them until they can")
    assert lines[2] == f"warning: 4 lines of metrics could not be written to {tmp_path / 'metrics.jsonl'} and are lost"


@pytest.mark.parametrize("room", [0, 5])
def test_a_resume_on_a_full_disk_still_drops_lost_work(room: int, disk: type[Disk], tmp_path: Path) -> None:
    first = MetricLog(tmp_path, DEAD, "run", 0, 0, interval_s=60.0)
    for step in range(1, 6):
        first.log(step, {"loss": 1.0})
    first.close(0)
    disk.room = room
    second = MetricLog(tmp_path, DEAD, "run", 0, 3, interval_s=60.0)
    second.log(4, {"loss": 2.0})
    disk.room = 10**9
    second.log(5, {"loss": 2.0})
    second.close(0)
    steps, values = second.history()["loss"]
    assert list(zip(steps.tolist(), values.tolist(), strict=True)) == [(1, 1.0), (2, 1.0), (3, 1.0), (5, 2.0)]


def test_a_folder_that_cannot_be_made_costs_the_metrics_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    log = MetricLog(tmp_path / "file" / "run", DEAD, "run", 0, 0, interval_s=60.0)
    log.log(1, {"loss": 1.0, "bad": float("nan")})
    log.log(2, {"loss": float("inf")})
    log.close(0)
    assert log.history() == {}
    err = capsys.readouterr().err
    assert "1 lines of metrics could not be written" in err
    assert "Traceback" not in err


def test_numbers_for_pictures_stay_in_the_file(tmp_path: Path) -> None:
    log = MetricLog(tmp_path, DEAD, "run", 0, 0, interval_s=60.0)
    log.log(1, {"loss": 1.0}, {"budgets/acc": 2.0, "budgets/eda": float("nan")})
    assert log._file.read(0, 10)[0] == [(1, {"loss": 1.0})]
    log.close(0)
    history = read_history(tmp_path)
    assert {name: values.tolist() for name, (_, values) in history.items()} == {"loss": [1.0], "budgets/acc": [2.0]}
    assert np.array_equal(history["budgets/acc"][0], [1])
