"""Packing with workers of Ray: the same bytes for any number of them, lost workers, killed drivers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import packing
import pytest
import runs
from packing import COUNTS, digests, made, packed, parts

from maestro_dist.data.manifest import load_manifest
from maestro_dist.data.pack_records import RECORDS
from maestro_dist.errors import DataError, RunError
from maestro_dist.run.ray_cluster import prepare_environment
from maestro_dist.run.ray_packing import ray_workers

ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{runs.ROOT}{os.pathsep}{runs.ROOT / 'tests'}"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Hashes of the files that are packed in one process."""
    folder = tmp_path_factory.mktemp("whole")
    packed(folder / "data", parts(folder / "log"))
    return digests(folder / "data")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A cluster with four CPUs, to which this process connects by RAY_ADDRESS."""
    prepare_environment()
    patch = pytest.MonkeyPatch()
    patch.setenv("RAY_AUTH_MODE", "disabled")
    patch.setenv("PYTHONPATH", ENVIRONMENT["PYTHONPATH"])
    from ray.cluster_utils import Cluster

    made_up = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "object_store_memory": 100 << 20})
    patch.setenv("RAY_ADDRESS", made_up.address)
    yield
    made_up.shutdown()
    patch.undo()


@pytest.mark.parametrize("workers", [pytest.param(n, marks=pytest.mark.slow) for n in (1, 2, 3)])
def test_the_same_bytes_for_any_number_of_workers(
    workers: int, tmp_path: Path, whole: dict[str, str], cluster: None
) -> None:
    with ray_workers(workers, packing.SHARD, 3) as those:
        _, remarks = packed(tmp_path / "data", parts(tmp_path / "log"), those)
    assert digests(tmp_path / "data") == whole
    assert remarks.counts == {"samples made": sum(COUNTS)}
    assert remarks.lines() == ["parts without samples (3): part-2, part-8, part-13"]
    assert made(tmp_path / "log") == dict.fromkeys(range(len(COUNTS)), 1)


@pytest.mark.slow
def test_lost_workers_bad_samples_and_other_errors(tmp_path: Path, whole: dict[str, str], cluster: None) -> None:
    data, log = tmp_path / "data", tmp_path / "log"
    with ray_workers(2, packing.SHARD, 3) as those:
        packed(data, parts(log, fault="die", at=12), those)
        assert digests(data) == whole
        assert made(log)[7] == 2
        with pytest.raises(DataError, match=r"^numbered, train, sample s7-4: ecg has an infinite value; give NaN"):
            packed(tmp_path / "bad", parts(log, fault="bad", at=4), those)
        assert digests(tmp_path / "bad") == {}
        (tmp_path / "file").write_text("")
        with pytest.raises(
            Exception, match=r"cannot write .*train-000000.tar|a file has the name of its folder|Not a di"
        ):
            packed(tmp_path / "file" / "data", parts(log), those)


@pytest.mark.slow
def test_a_worker_that_always_dies_is_named_and_what_is_packed_is_kept(
    tmp_path: Path, whole: dict[str, str], cluster: None
) -> None:
    data, log = tmp_path / "data", tmp_path / "log"
    with ray_workers(2, packing.SHARD, 3) as those:
        with pytest.raises(
            RunError, match=r"converting part-7: its worker died again and again .*killed, or out of mem"
        ):
            packed(data, parts(log, fault="die always", at=12), those)
        kept = {path.name for path in (data / RECORDS / "shards").iterdir()}
        assert kept
        before = sum(made(log).values())
        packed(data, parts(log), those)
    assert digests(data) == whole
    assert sum(made(log).values()) - before < len(COUNTS)


@pytest.mark.slow
def test_more_workers_than_cpus_are_waited_for_but_not_forever(
    tmp_path: Path, cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import maestro_dist.run.ray_packing as module

    monkeypatch.setattr(module, "_STALL_S", 1.0)
    with pytest.raises(RunError, match=r"waited 1 s for 9 CPUs of the Ray cluster in vain"), ray_workers(9, 1, 3):
        pass


@pytest.mark.slow
def test_kill_9_of_the_driver_and_restart(tmp_path: Path, whole: dict[str, str]) -> None:
    data, log = tmp_path / "data", tmp_path / "log"
    command = [sys.executable, "-m", "packing", str(data), "2", str(log), "", "0.01"]
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    runs.wait_for(lambda: len(list((data / RECORDS / "shards").glob("*"))) >= 9, process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (data / "manifest.json").exists()
    times = {path.name: path.stat().st_mtime_ns for path in data.glob("*.tar")}
    # a record that was not yet complete when the driver was killed has a hidden name
    records = [path.name for path in (data / RECORDS / "shards").iterdir() if not path.name.startswith(".")]
    recorded = {f"{name.partition('.')[0]}.tar" for name in records}
    runs.finish(subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    assert digests(data) == whole
    assert all((data / name).stat().st_mtime_ns == times[name] for name in recorded)
    assert load_manifest(str(data)).splits["train"].samples
