"""One driver a run: leases on real files, with real processes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from maestro_dist.errors import RunError
from maestro_dist.run import lease as lease_module
from maestro_dist.run.lease import Lease

HOLD = """
import sys, time
from maestro_dist.run.lease import Lease
lease = Lease(sys.argv[1])
print("held", flush=True)
time.sleep(60)
"""


def record(run: Path, attempt: int) -> dict[str, object]:
    return json.loads((run / "leases" / f"attempt-{attempt:06d}.json").read_text())


def test_attempts_grow_and_a_release_frees_the_run(tmp_path: Path) -> None:
    for attempt in (1, 2, 3):
        held = Lease(str(tmp_path))
        assert held.attempt == attempt
        with pytest.raises(RunError, match=r"held by another driver \(host .*, process \d+"):
            Lease(str(tmp_path))
        held.release()


def test_a_killed_driver_frees_the_run_at_once(tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    with pytest.raises(RunError, match=f"process {other.pid}"):
        Lease(str(tmp_path))
    other.kill()
    other.wait()
    other.stdout.close()
    held = Lease(str(tmp_path))
    assert held.attempt == 2
    held.release()


def test_a_silent_driver_on_another_machine_goes_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "HEARTBEAT_S", 0.01)  # so long it is looked for once more
    held = Lease(str(tmp_path))
    held.release()
    content = {**record(tmp_path, 1), "released": False, "host": "elsewhere"}
    path = tmp_path / "leases" / "attempt-000001.json"
    path.write_text(json.dumps({**content, "heartbeat": time.time() - 5}))
    with pytest.raises(RunError, match="host elsewhere"):
        Lease(str(tmp_path))
    path.write_text(json.dumps({**content, "heartbeat": time.time() - lease_module.STALE_S - 1}))
    again = Lease(str(tmp_path))
    assert again.attempt == 2
    again.release()


@pytest.mark.parametrize("behind_s", [3600, -3600])
@pytest.mark.parametrize("alive", [True, False])
def test_a_wrong_clock_elsewhere_neither_frees_nor_blocks_a_run(
    behind_s: float, alive: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Lease(str(tmp_path)).release()
    path = tmp_path / "leases" / "attempt-000001.json"

    def beat(seconds: float) -> None:
        if alive or not seconds:
            there = {"released": False, "host": "elsewhere", "heartbeat": time.time() - behind_s}
            path.write_text(json.dumps({**record(tmp_path, 1), **there}))

    beat(0)
    monkeypatch.setattr(lease_module, "HEARTBEAT_S", 0.01)
    monkeypatch.setattr(lease_module.time, "sleep", beat)
    if alive:
        with pytest.raises(RunError, match="host elsewhere"):
            Lease(str(tmp_path))
    else:
        Lease(str(tmp_path)).release()


def test_the_heartbeat_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "HEARTBEAT_S", 0.05)
    held = Lease(str(tmp_path))
    first = record(tmp_path, 1)["heartbeat"]
    deadline = time.time() + 10
    while record(tmp_path, 1)["heartbeat"] == first and time.time() < deadline:
        time.sleep(0.05)
    assert record(tmp_path, 1)["heartbeat"] != first
    held.release()
    assert record(tmp_path, 1)["released"] is True


def test_a_driver_that_lost_its_lease_is_fenced(tmp_path: Path) -> None:
    held = Lease(str(tmp_path))
    fence = held.fence
    fence.check()
    held.release()
    successor = Lease(str(tmp_path))
    with pytest.raises(RunError, match="attempt 2 has taken over the run from attempt 1"):
        fence.check()
    successor.fence.check()
    successor.release()
