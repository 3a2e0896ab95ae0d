"""Whole runs under Ray Train: two real workers, one killed, errors that travel, two workers against one."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import numpy as np
import psutil
import pytest
import runs

from maestro_dist.config.schema import DataConfig, RunConfig
from maestro_dist.data.label_share import KeptSamples
from maestro_dist.data.manifest import load_manifest
from maestro_dist.data.order import EpochOrder, OrderSettings, rank_share
from maestro_dist.data.shard_index import load_index
from maestro_dist.data.storage import Storage


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


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_nothing_changes(whole: Path, synthetic: str, tmp_path: Path) -> None:
    process = start(tmp_path, synthetic)
    middle = tmp_path / "tiny" / "checkpoints" / "step-000000010" / "checkpoint.json"
    runs.wait_for(middle.exists, process)
    workers = workers_of(process)
    assert len(workers) == 2
    os.kill(workers[1].pid, signal.SIGKILL)
    printed = runs.finish(process)
    if "resumes at step" not in printed:
        pytest.fail(f"the run ended before the kill took effect: {printed}")
    runs.assert_same_weights(runs.weights(whole), runs.weights(tmp_path))
    assert runs.tracked(tmp_path) == runs.tracked(whole)
    assert len(list((tmp_path / "tiny" / "leases").iterdir())) == 1  # one driver all along


@pytest.mark.slow
def test_a_killed_driver_leaves_no_workers_and_goes_on(whole: Path, synthetic: str, tmp_path: Path) -> None:
    process = start(tmp_path, synthetic)
    middle = tmp_path / "tiny" / "checkpoints" / "step-000000006" / "checkpoint.json"
    runs.wait_for(middle.exists, process)
    workers = workers_of(process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    printed = runs.finish(start(tmp_path, synthetic))
    assert "resumes at step" in printed
    assert not any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers)
    runs.assert_same_weights(runs.weights(whole), runs.weights(tmp_path))
    assert runs.tracked(tmp_path) == runs.tracked(whole)


STOPS_S = 90
"""Within this time of a failure all workers are gone, with the driver, however long run.timeout_s is."""


def spoil_a_sample_of_rank_1(data: Path, step: int) -> str:
    """Damage a sample that rank 1 alone reads, at this step of a tiny run's first epoch; returns its shard's name."""
    manifest = load_manifest(str(data))
    shards = manifest.split("train").shards
    seed = RunConfig.model_fields["seed"].default
    window = DataConfig.model_fields["shuffle_shards"].default
    sizes = [shard.samples for shard in shards]
    order = EpochOrder(OrderSettings(seed, 16, window), 0, sizes, KeptSamples(seed, sizes))
    number = int(order.batch(step, rank_share(16, 1, 2))[0])
    ends = np.cumsum([shard.samples for shard in shards])
    at = int(np.searchsorted(ends, number, side="right"))
    row = number - int(ends[at]) + shards[at].samples
    offsets, _ = load_index(Storage(str(data)), shards[at]).columns(["json"])
    path = data / shards[at].path
    content = bytearray(path.read_bytes())
    content[offsets[row, 0]] ^= 1
    path.write_bytes(content)
    return path.name


@pytest.mark.slow
def test_bad_data_of_one_worker_ends_the_run_in_one_line(synthetic: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(synthetic, data)
    shard = spoil_a_sample_of_rank_1(data, step=5)
    process = start(tmp_path / "runs", str(data), "data.verify=size")
    runs.wait_for((tmp_path / "runs" / "tiny" / "checkpoints" / "step-000000002" / "checkpoint.json").exists, process)
    printed, _ = process.communicate(timeout=STOPS_S)
    assert process.returncode == 1
    assert "Traceback" not in printed
    last = printed.rstrip().splitlines()[-1]
    assert last.startswith("error: worker 1: ")
    assert f"{shard}, sample train_" in last
    assert runs.tracked(tmp_path / "runs", "train/loss")[0] == "FAILED"


@pytest.mark.slow
def test_bad_samples_that_are_allowed_are_counted_over_workers_and_restarts(synthetic: str, tmp_path: Path) -> None:
    data, storage = tmp_path / "data", tmp_path / "runs"
    shutil.copytree(synthetic, data)
    shards = {spoil_a_sample_of_rank_1(data, step) for step in (1, 5)}
    limit = ["data.verify=size", "data.max_bad_samples=2", "optim.epochs=2"]
    process = start(storage, str(data), *limit)
    middle = storage / "tiny" / "checkpoints" / "step-000000004" / "checkpoint.json"
    runs.wait_for(middle.exists, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    printed = runs.finish(start(storage, str(data), *limit))
    assert "resumes at step" in printed
    assert all(f"bad sample skipped: {data / shard}, sample train_" in printed for shard in shards)
    assert "2 training samples were skipped in this run because of bad data (2 allowed" in printed
    assert json.loads((storage / "tiny" / "result.json").read_text())["bad_samples"] == 2
    totals = [total for _, total in runs.tracked(storage, "data/bad_samples_total")[1]]
    assert totals[0] == 1
    assert totals[-1] == 2
    assert totals == sorted(totals)


@pytest.mark.slow
def test_a_worker_that_hangs_ends_the_run_after_the_timeout(synthetic: str, tmp_path: Path) -> None:
    # long enough for two workers of a busy machine to start within it of each other
    process = start(tmp_path, synthetic, "run.timeout_s=20", "run.max_failures=0")
    runs.wait_for((tmp_path / "tiny" / "checkpoints" / "step-000000002" / "checkpoint.json").exists, process)
    workers = workers_of(process)
    workers[1].send_signal(signal.SIGSTOP)
    printed, _ = process.communicate(timeout=20 + 2 * STOPS_S)  # a stopped process takes Ray longer to be rid of
    assert process.returncode == 1
    last = printed.rstrip().splitlines()[-1]
    found = re.match(
        r"error: worker ([01]) waited for worker ([01]) until the time limit of 20 s, in \w+ \(\S+:\d+, \w+\)", last
    )
    assert found is not None, last
    assert set(found.groups()) == {"0", "1"}
    assert not any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers)


@pytest.mark.slow
def test_a_hang_up_and_a_sigterm_end_the_driver_cleanly(
    synthetic: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With no home, and with the folder for temporary files that a batch system sets: too long for Ray's sockets."""
    temporary = tmp_path / ("t" * 100)
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setenv("HOME", "/proc/none")
    process = start(tmp_path, synthetic)
    runs.wait_for((tmp_path / "tiny" / "checkpoints" / "step-000000004" / "checkpoint.json").exists, process)
    workers = workers_of(process)
    # the end of a terminal goes to all processes that were started from it
    for one in [*psutil.Process(process.pid).children(recursive=True), process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=STOPS_S)
    assert (process.returncode, printed.rstrip().splitlines()[-1]) == (130, "error: interrupted")
    assert "Traceback" not in printed
    assert runs.tracked(tmp_path)[0] == "KILLED"
    lease = json.loads((tmp_path / "tiny" / "leases" / "attempt-000001.json").read_text())
    assert lease["released"] is True
    assert not any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers)
    assert not list(temporary.glob("maestro*"))
