"""One driver a run: leases on real files, with real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import runs

from maestro_dist.data.storage import Storage
from maestro_dist.errors import RunError, StorageError
from maestro_dist.run import lease as lease_module
from maestro_dist.run.lease import Lease

HOLD = """
import sys, time
from maestro_dist.run import lease as module
run, where, ahead_s = sys.argv[1], sys.argv[2], float(sys.argv[3])
if where != "here":  # as on another machine, whose clock is ahead
    here, clock = module._machine_id(), time.time
    module._machine_id = lambda: where
    time.time = lambda: clock() + ahead_s
module.HEARTBEAT_S = 0.1
lease = module.Lease(run)
print("held", flush=True)
sys.stdin.readline()
lease.release()
"""


@contextmanager
def holder(run: Path, where: str = "here", ahead_s: float = 0) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the run, until it reads a line."""
    command = [sys.executable, "-c", HOLD, str(run), where, str(ahead_s)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def lease_file(run: Path, attempt: int = 1) -> Path:
    return run / "leases" / f"attempt-{attempt:06d}.json"


def record(run: Path, attempt: int = 1) -> dict[str, object]:
    return json.loads(lease_file(run, attempt).read_text())


def change(run: Path, **values: object) -> None:
    lease_file(run).write_text(json.dumps({**record(run), **values}))


@pytest.fixture
def look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A change is seen at once; for a silent lease the time is far longer than a slow machine may need to beat."""
    monkeypatch.setattr(lease_module, "STALE_S", 120.0)
    monkeypatch.setattr(lease_module, "_LOOKS", 2400)


@pytest.fixture
def look_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a lease that no one writes."""
    monkeypatch.setattr(lease_module, "STALE_S", 0.5)


def test_attempts_grow_and_a_release_frees_the_run(tmp_path: Path) -> None:
    for attempt in (1, 2, 3):
        held = Lease(str(tmp_path))
        assert held.attempt == attempt
        with pytest.raises(RunError, match=r"held by another driver \(host .*, process \d+"):
            Lease(str(tmp_path))
        held.release()


def test_a_killed_driver_frees_the_run_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "_watch", None)  # it is not watched
    with holder(tmp_path) as process:
        with pytest.raises(RunError, match=f"process {process.pid}"):
            Lease(str(tmp_path))
        process.kill()
        process.wait()
        held = Lease(str(tmp_path))
        assert held.attempt == 2
        held.release()


@pytest.mark.parametrize("ahead_s", [-3600, -21, 3600])
def test_a_wrong_clock_elsewhere_neither_frees_nor_blocks_a_run(
    ahead_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, look_often: None
) -> None:
    with holder(tmp_path, "elsewhere", ahead_s) as process:
        with pytest.raises(RunError, match=f"held by another driver .*process {process.pid}"):
            Lease(str(tmp_path))
        process.kill()
        process.wait()
        monkeypatch.setattr(lease_module, "STALE_S", 0.5)
        again = Lease(str(tmp_path))
        assert again.attempt == 2
        again.release()


def test_a_clock_that_stands_still_is_no_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, look_often: None
) -> None:
    monkeypatch.setattr(lease_module, "HEARTBEAT_S", 0.1)
    monkeypatch.setattr(lease_module.time, "time", lambda: 5.0)
    monkeypatch.setattr(lease_module, "_machine_id", lambda: "")
    held = Lease(str(tmp_path))
    with pytest.raises(RunError, match="held by another driver"):
        Lease(str(tmp_path))
    held.release()


@pytest.mark.parametrize("hidden", ["_machine_id", "_process_start"])
def test_where_processes_cannot_be_seen_the_lease_is_watched(
    hidden: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, look_often: None
) -> None:
    """Without `/proc`, or where it hides the processes of others."""
    monkeypatch.setattr(lease_module, hidden, lambda *_: "" if hidden == "_machine_id" else None)
    monkeypatch.setattr(lease_module, "HEARTBEAT_S", 0.1)
    held = Lease(str(tmp_path))
    with pytest.raises(RunError, match="held by another driver"):
        Lease(str(tmp_path))
    held.release()
    change(tmp_path, released=False)
    monkeypatch.setattr(lease_module, "STALE_S", 0.5)
    Lease(str(tmp_path)).release()
    assert record(tmp_path, 2)["released"] is True


def test_a_process_that_could_not_release_may_start_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a notebook, after an outage of the storage."""
    held = Lease(str(tmp_path))

    def fails(*_: object, **__: object) -> None:
        raise StorageError("no answer")

    with monkeypatch.context() as outage:
        outage.setattr(Storage, "write", fails)
        held.release()
    assert record(tmp_path)["released"] is False
    Lease(str(tmp_path)).release()


@pytest.mark.parametrize("content", ["", '{"attempt": 1, "ho', '{"attempt": 1}', "[]"])
def test_a_damaged_lease_that_no_one_writes_is_free(
    content: str, tmp_path: Path, look_briefly: None, caplog: pytest.LogCaptureFixture
) -> None:
    Lease(str(tmp_path)).release()
    lease_file(tmp_path).write_text(content)
    held = Lease(str(tmp_path))
    assert held.attempt == 2
    assert "attempt-000001.json is damaged" in caplog.text
    held.release()


def test_a_damaged_lease_that_its_driver_writes_is_held(tmp_path: Path, look_often: None) -> None:
    with holder(tmp_path, "elsewhere") as process:
        process.send_signal(signal.SIGSTOP)
        lease_file(tmp_path).write_text('{"attempt": 1, "ho')
        errors: list[str] = []

        def try_it() -> None:
            try:
                Lease(str(tmp_path))
            except RunError as error:
                errors.append(str(error))

        thread = threading.Thread(target=try_it)
        thread.start()
        process.send_signal(signal.SIGCONT)
        thread.join(120)
        assert [f"process {process.pid}" in error for error in errors] == [True]


def test_a_lease_that_is_released_while_it_is_watched_is_free(
    tmp_path: Path, look_often: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with holder(tmp_path, "elsewhere") as process:
        process.send_signal(signal.SIGSTOP)
        read, reads = lease_module._read, [0]

        def counted(storage: Storage, attempt: int) -> object:
            reads[0] += 1
            if reads[0] == 3:
                change(tmp_path, released=True)
            return read(storage, attempt)

        monkeypatch.setattr(lease_module, "_read", counted)
        held = Lease(str(tmp_path))
        assert (held.attempt, reads[0]) == (2, 3)
        held.release()


def test_of_two_drivers_that_wait_for_a_dead_one_one_wins(tmp_path: Path, look_briefly: None) -> None:
    Lease(str(tmp_path)).release()
    change(tmp_path, released=False, host="elsewhere")
    held, errors = list[Lease](), list[str]()

    def start() -> None:
        try:
            held.append(Lease(str(tmp_path)))
        except RunError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert [lease.attempt for lease in held] == [2]
    assert len(errors) == 3
    assert all("another driver" in error for error in errors)
    held[0].release()


def test_the_heartbeat_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "HEARTBEAT_S", 0.05)
    held = Lease(str(tmp_path))
    runs.wait_for(lambda: record(tmp_path)["beats"] != 0)
    held.release()
    assert record(tmp_path)["released"] is True


def lost(run: Path, told: Callable[[], None]) -> Lease:
    """A lease, after another driver has taken over the run."""
    lease = Lease(str(run), on_loss=told)
    Storage(str(run)).write(
        "leases/attempt-000002.json", lease_file(run).read_bytes().replace(b'"attempt": 1', b'"attempt": 2')
    )
    return lease


def test_the_heartbeat_finds_that_the_lease_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "HEARTBEAT_S", 0.05)
    told = threading.Event()
    lease = lost(tmp_path, told.set)
    assert told.wait(120)
    assert "attempt 2 has taken over the run from attempt 1" in str(lease.lost)
    assert not lease.is_held()
    before = lease_file(tmp_path).read_bytes()
    lease.release()
    assert lease_file(tmp_path).read_bytes() == before  # nothing more is written


def test_a_loss_is_found_when_it_is_asked_for(tmp_path: Path) -> None:
    calls: list[int] = []
    lease = lost(tmp_path, lambda: calls.append(1))
    assert not lease.is_held()
    assert lease.lost is not None
    lease.release()
    assert calls == []  # whoever has asked knows
    assert record(tmp_path)["released"] is False


def test_a_driver_that_lost_its_lease_is_fenced(tmp_path: Path) -> None:
    held = Lease(str(tmp_path))
    fence = held.fence
    fence.check()
    assert held.is_held()
    held.release()
    successor = Lease(str(tmp_path))
    with pytest.raises(RunError, match="attempt 2 has taken over the run from attempt 1"):
        fence.check()
    successor.fence.check()
    successor.release()


LONG = ["optim.epochs=100000", "evaluation.every_epochs=100000", "optim.lr=1e-4"]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["inline", "ray"])
def test_a_suspended_driver_that_lost_its_run_ends_when_it_wakes_up(
    launcher: str, synthetic: str, tmp_path: Path, look_briefly: None
) -> None:
    """It would save its next checkpoint hours later. As on another machine: here, it would be seen that it lives."""
    extra = ["run.launcher=ray", "run.workers=2"] if launcher == "ray" else []
    process = runs.start(tmp_path, synthetic, *LONG, *extra)
    run = tmp_path / "tiny"
    metrics = run / "metrics.jsonl"
    runs.wait_for(lambda: metrics.exists() and metrics.stat().st_size > 0, process)
    process.send_signal(signal.SIGSTOP)
    change(run, host="elsewhere")
    held = Lease(str(run))
    try:
        before = {name: (run / name).read_bytes() for name in ("run.json", "config.yaml", "data/manifest.json")}
        lease = lease_file(run).read_bytes()
        process.send_signal(signal.SIGCONT)
        printed, _ = process.communicate(timeout=300)
        assert process.returncode == 1
        last = printed.rstrip().splitlines()[-1]
        assert last.startswith("error: ")
        assert "attempt 2 has taken over the run from attempt 1" in last
        assert "Traceback" not in printed
        assert {name: (run / name).read_bytes() for name in before} == before
        assert lease_file(run).read_bytes() == lease
        assert runs.tracked(tmp_path)[0] == "RUNNING"  # the MLflow run belongs to the new driver
        assert not (run / "checkpoints").exists()
    finally:
        held.release()


@pytest.mark.slow
def test_a_suspended_driver_that_kept_its_run_goes_on(synthetic: str, tmp_path: Path) -> None:
    process = runs.start(tmp_path, synthetic, "checkpoint.every_steps=2", "optim.epochs=15")
    runs.wait_for((tmp_path / "tiny" / "checkpoints" / "step-000000002" / "checkpoint.json").exists, process)
    process.send_signal(signal.SIGSTOP)
    with pytest.raises(RunError, match="held by another driver"):
        Lease(str(tmp_path / "tiny"))
    process.send_signal(signal.SIGCONT)
    runs.finish(process)
    assert runs.tracked(tmp_path)[0] == "FINISHED"


@pytest.mark.slow
def test_a_driver_that_waits_for_a_lease_can_be_stopped(synthetic: str, tmp_path: Path) -> None:
    run = tmp_path / "tiny"
    Lease(str(run)).release()
    change(run, released=False, host="elsewhere")
    process = runs.start(tmp_path, synthetic)
    assert process.stdout is not None
    for line in process.stdout:
        if "checking for" in line:
            break
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=300)
    assert (process.returncode, printed.rstrip().splitlines()[-1]) == (130, "error: interrupted")
    assert os.listdir(run / "leases") == ["attempt-000001.json"]
