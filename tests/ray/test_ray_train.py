"""Whole runs under Ray Train: two real workers, one killed, errors that travel, two workers against one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import numpy as np
import psutil
import pytest
import runs


def start(storage: Path, data: str, *extra: str) -> subprocess.Popen[str]:
    return runs.start(storage, data, *runs.RAY, *extra)


def workers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Ray Train's worker processes under this driver's own local Ray."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(child.cmdline()):
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def test_two_workers_equal_one(whole: Path, synthetic: str, tmp_path: Path) -> None:
    assert runs.train(tmp_path, synthetic) == 0
    (status, two), (_, one) = runs.tracked(whole), runs.tracked(tmp_path)
    assert status == "FINISHED"
    assert [step for step, _ in two] == [step for step, _ in one] == list(range(1, 22))
    # Adam amplifies rounding, and a near-tie may send a token elsewhere: the first steps have not had the time.
    np.testing.assert_allclose([v for _, v in two[:5]], [v for _, v in one[:5]], atol=1e-4)
    np.testing.assert_allclose([v for _, v in two], [v for _, v in one], atol=0.05)


def test_a_killed_worker_is_replaced_and_nothing_changes(whole: Path, synthetic: str, tmp_path: Path) -> None:
    process = start(tmp_path, synthetic)
    middle = tmp_path / "tiny" / "checkpoints" / "step-000000010" / "checkpoint.json"
    runs.wait_for(middle.exists, process)
    workers = workers_of(process)
    assert len(workers) == 2
    os.kill(workers[1].pid, signal.SIGKILL)
    printed = runs.finish(process)
    if "goes on at step" not in printed:
        pytest.fail(f"the run ended before the kill took effect: {printed}")
    runs.assert_same_weights(runs.weights(whole), runs.weights(tmp_path))
    assert runs.tracked(tmp_path) == runs.tracked(whole)
    assert len(list((tmp_path / "tiny" / "leases").iterdir())) == 1  # one driver all along


def test_a_killed_driver_leaves_no_workers_and_goes_on(whole: Path, synthetic: str, tmp_path: Path) -> None:
    process = start(tmp_path, synthetic)
    middle = tmp_path / "tiny" / "checkpoints" / "step-000000006" / "checkpoint.json"
    runs.wait_for(middle.exists, process)
    workers = workers_of(process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    printed = runs.finish(start(tmp_path, synthetic))
    assert "goes on at step" in printed
    assert not any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers)
    runs.assert_same_weights(runs.weights(whole), runs.weights(tmp_path))
    assert runs.tracked(tmp_path) == runs.tracked(whole)


def test_bad_data_on_one_worker_ends_the_run_in_one_line(synthetic: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(synthetic, data)
    manifest = json.loads((data / "manifest.json").read_text())
    shard = data / manifest["splits"]["train"]["shards"][0]["path"]
    content = bytearray(shard.read_bytes())
    content[700] ^= 1  # same size: only the hash tells
    shard.write_bytes(content)
    process = start(tmp_path / "runs", str(data))
    printed, _ = process.communicate(timeout=240)
    assert process.returncode == 1
    assert "Traceback" not in printed
    assert printed.rstrip().splitlines()[-1].startswith("error: ")
    assert shard.name in printed.rstrip().splitlines()[-1]
    assert runs.tracked(tmp_path / "runs", "train/loss")[0] == "FAILED"


def test_sigterm_ends_the_driver_cleanly(synthetic: str, tmp_path: Path) -> None:
    process = start(tmp_path, synthetic)
    runs.wait_for((tmp_path / "tiny" / "checkpoints" / "step-000000004" / "checkpoint.json").exists, process)
    workers = workers_of(process)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=60)
    assert (process.returncode, printed.rstrip().splitlines()[-1]) == (130, "error: interrupted")
    assert runs.tracked(tmp_path)[0] == "KILLED"
    lease = json.loads((tmp_path / "tiny" / "leases" / "attempt-000001.json").read_text())
    assert lease["released"] is True
    assert not any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers)
