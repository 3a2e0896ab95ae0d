"""Sequence ranks download only their parts of the shards, from a real S3 server behind a faulty proxy."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import signal
import threading
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import long_windows as long
import numpy as np
import pytest
from buckets import new_bucket
from fault_proxy import FaultProxy, Rule

from maestro_dist.data.manifest import Manifest, load_manifest
from maestro_dist.data.reader import Request
from maestro_dist.data.shard_index import load_index
from maestro_dist.data.sparse_file import VERIFIED
from maestro_dist.data.storage import Storage
from maestro_dist.data.storage.request_counts import request_counts
from maestro_dist.data.storage.settings import StorageSettings, configure
from maestro_dist.data.stream import DataRank, evaluation_batches
from maestro_dist.errors import DataError

N = long.SAMPLES
SHARD = r"train-\d+\.tar"


@pytest.fixture(scope="session")
def local(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The packed data set in a local folder."""
    folder = str(tmp_path_factory.mktemp("long"))
    long.pack_long(folder)
    return folder


@pytest.fixture(scope="session")
def uploaded(local: str, s3_server: str) -> str:
    """The same on the server."""
    with pytest.MonkeyPatch.context() as patch:
        url = new_bucket(s3_server, patch)
        long.copy(local, url)
    return url


@pytest.fixture
def remote(uploaded: str, proxied_s3: str, proxy: FaultProxy) -> str:
    """The same behind the proxy. Tests that change it make their own copy."""
    assert proxied_s3
    proxy.forget()
    return uploaded


def total(manifest: Manifest) -> int:
    return sum(shard.bytes for shard in manifest.split("train").shards)


def read(url: str, part: Any, first: int = 0, end: int = N, **config: Any) -> list[Any]:
    return long.arrays(long.stream_of(url, part, **config).batches(first, end))


@pytest.mark.parametrize(
    ("ranks", "workers"), [(2, 0), *(pytest.param(*case, marks=pytest.mark.slow) for case in [(3, 1), (2, 2)])]
)
def test_ranks_with_their_own_caches_read_each_byte_once(
    local: str, remote: str, proxy: FaultProxy, tmp_path: Path, ranks: int, workers: int
) -> None:
    for rank in range(ranks):
        part = long.slices(rank, ranks)
        assert len({end - start for start, end in part.values()}) == 3
        found = read(remote, part, end=2 * N, cache=str(tmp_path / str(rank)), loader_workers=workers)
        long.assert_same(found, read(local, part, end=2 * N))
    everything = proxy.count("GET", r"train-").bytes  # shards and indexes, two epochs
    data = total(load_manifest(local))
    assert proxy.count("GET", SHARD).bytes > 0.99 * data
    assert everything <= 1.02 * data
    assert proxy.count("GET", SHARD).requests <= ranks * N * 4  # one for each member


@pytest.mark.slow
def test_ranks_of_one_machine_read_each_byte_once(local: str, remote: str, proxy: FaultProxy, tmp_path: Path) -> None:
    """At the same time, in processes that share a cache; one is slow."""
    proxy.add(Rule("GET", SHARD, requests=8, latency_s=0.2))
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        found = pool.starmap(long.without_torch, [(remote, long.slices(rank, 3), str(tmp_path)) for rank in range(3)])
    for rank in range(3):
        long.assert_same(found[rank], long.without_torch(local, long.slices(rank, 3), ""))
    manifest = load_manifest(local)
    assert proxy.count("GET", SHARD).bytes <= total(manifest)
    assert proxy.count("GET", r"\.index").requests == len(manifest.split("train").shards)


def test_a_complete_set_of_parts_is_a_shard(local: str, remote: str, proxy: FaultProxy, tmp_path: Path) -> None:
    for rank in range(2):
        read(remote, long.slices(rank, 2), cache=str(tmp_path))
    proxy.forget()
    long.assert_same(read(remote, None, cache=str(tmp_path)), read(local, None))
    assert proxy.count("GET", SHARD).requests == 0
    assert not list(tmp_path.rglob("*.sparse"))
    proxy.forget()
    long.assert_same(read(remote, long.slices(1, 2), cache=str(tmp_path)), read(local, long.slices(1, 2)))
    assert proxy.count("GET", SHARD).requests == 0


def test_a_complete_shard_that_is_removed_is_read_in_parts(local: str, remote: str, tmp_path: Path) -> None:
    part = long.slices(1, 2)
    read(remote, None, cache=str(tmp_path))
    with (
        closing(long.source_of(remote, part, cache=str(tmp_path)).open()) as reader,
        closing(long.source_of(local, part).open()) as expected,
    ):
        for number in range(2 * N):
            if number == N // 2:
                for path in tmp_path.rglob("*.tar"):
                    path.unlink()
                reader._shards.close()  # as when other files are opened
            request = Request(np.array([number % N]))
            one, other = reader.arrays(request).values, expected.arrays(request).values
            assert {name: value.tobytes() for name, value in one.items()} == {
                name: value.tobytes() for name, value in other.items()
            }
    assert list(tmp_path.rglob("*.sparse"))
    assert not list(tmp_path.rglob("*.tar"))


FAULTS = {
    "reset": Rule("GET", SHARD, requests=4, fault="reset", at=200_000),
    "truncated": Rule("GET", SHARD, requests=4, fault="truncate", at=200_000),
    "wrong bytes": Rule("GET", SHARD, requests=4, fault="flip", at=200_000),
    "wrong byte at the start": Rule("GET", SHARD, requests=4, fault="flip", at=0),
    "503": Rule("GET", SHARD, requests=4, fault="status", status=503),
    "stall": Rule("GET", SHARD, requests=2, fault="stall", at=200_000, stall_s=60),
    "wrong index": Rule("GET", r"\.index", requests=3, fault="flip", at=300),
}


@pytest.mark.parametrize(
    "fault", ["wrong bytes", *(pytest.param(f, marks=pytest.mark.slow) for f in FAULTS if f != "wrong bytes")]
)
def test_parts_outlive_faults(local: str, remote: str, proxy: FaultProxy, tmp_path: Path, fault: str) -> None:
    configure(StorageSettings(patience_s=1 if fault == "stall" else 20))
    proxy.add(FAULTS[fault])
    part = long.slices(1, 2)
    before = request_counts()
    long.assert_same(read(remote, part, cache=str(tmp_path)), read(local, part))
    told = request_counts() - before
    counted = proxy.count("GET", "train-")
    assert told.requests["GET"] >= counted.requests
    assert counted.bytes <= 0.6 * total(load_manifest(local)) + 4_000_000  # what was right is not asked for again


def test_parts_that_stay_wrong_are_an_error_that_names_the_shard(
    remote: str, proxy: FaultProxy, tmp_path: Path
) -> None:
    configure(StorageSettings(patience_s=0.5))
    proxy.add(Rule("GET", SHARD, fault="flip", at=0))
    with pytest.raises(
        DataError, match=r"^s3://\S+/train-00000\d\.tar: block \d+ of 4096 bytes .* \(after \d+ .*upload"
    ):
        read(remote, long.slices(0, 2), cache=str(tmp_path))


def test_an_object_that_is_gone_is_named(local: str, proxied_s3: str, tmp_path: Path) -> None:
    remote = proxied_s3
    long.copy(local, remote)
    configure(StorageSettings(patience_s=0.5))
    for shard in load_manifest(remote).split("train").shards:
        Storage(remote).remove(shard.path)
    with pytest.raises(DataError, match=r"train-00000\d\.tar: the shard is missing \(after"):
        read(remote, long.slices(0, 2), cache=str(tmp_path))


def claimed_blocks_are_there(folder: Path, url: str) -> int:
    """Check all blocks that the files of a cache claim to have; returns how many these are."""
    claimed = 0
    for shard in load_manifest(url).split("train").shards:
        blocks = load_index(Storage(url), shard).blocks
        assert blocks is not None
        for path in folder.rglob(f"{shard.sha256}.*.sparse"):
            content = path.read_bytes()
            assert len(content) == shard.bytes + len(blocks)
            for number, state in enumerate(content[shard.bytes :]):
                if state:
                    block = content[: shard.bytes][number * blocks.size : (number + 1) * blocks.size]
                    assert blocks.holds(number, block)
                    claimed += 1
    return claimed


@pytest.mark.slow
@pytest.mark.parametrize("after_bytes", [0, 5_000_000])
def test_a_reader_that_is_killed_leaves_no_block_that_is_not_there(
    local: str, remote: str, proxy: FaultProxy, tmp_path: Path, after_bytes: int
) -> None:
    proxy.add(Rule("GET", SHARD, rate_mb_s=4))
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=long.without_torch, args=(remote, long.slices(0, 2), str(tmp_path)))
    process.start()
    assert process.pid is not None
    deadline = time.monotonic() + 60
    while proxy.count("GET", SHARD).bytes <= after_bytes:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    proxy.clear()
    claimed = claimed_blocks_are_there(tmp_path, local)
    proxy.forget()
    long.assert_same(read(remote, long.slices(0, 2), cache=str(tmp_path)), read(local, long.slices(0, 2)))
    assert proxy.count("GET", SHARD).bytes + claimed * 4096 <= 0.55 * total(load_manifest(local))


def test_the_cache_keeps_its_limit(local: str, remote: str, tmp_path: Path) -> None:
    limit = 0.012  # GB, of 30 MB
    largest, ended = [0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.005):
            # Files may go and others grow while they are looked at, unless nobody can make room meanwhile.
            with (tmp_path / ".room.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                blocks = sum(path.stat().st_blocks for path in tmp_path.rglob("*.sparse"))
            largest[0] = max(largest[0], blocks * 512)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        found = read(remote, long.slices(0, 2), end=2 * N, cache=str(tmp_path), cache_gb=limit)
    finally:
        ended.set()
        watcher.join()
    long.assert_same(found, read(local, long.slices(0, 2), end=2 * N))
    assert 3e6 < largest[0] <= limit * 1e9


def test_blocks_that_were_not_verified_are_verified_later(
    local: str, remote: str, proxy: FaultProxy, tmp_path: Path
) -> None:
    part = long.slices(0, 2)
    read(remote, part, cache=str(tmp_path), verify="size")
    for shard in load_manifest(local).split("train").shards:
        (path,) = tmp_path.rglob(f"{shard.sha256}.*.sparse")
        assert VERIFIED not in path.read_bytes()[shard.bytes :]
        with path.open("r+b") as file:
            file.seek(100_000)
            file.write(b"damaged")
    proxy.forget()
    long.assert_same(read(remote, part, cache=str(tmp_path)), read(local, part))
    shards = len(load_manifest(local).split("train").shards)
    assert proxy.count("GET", SHARD).bytes == shards * 4096


def test_a_damaged_header_in_the_cache_is_downloaded_again(
    local: str, remote: str, proxy: FaultProxy, tmp_path: Path
) -> None:
    part = long.slices(1, 2)
    read(remote, part, cache=str(tmp_path))
    shard = load_manifest(local).split("train").shards[0]
    (path,) = tmp_path.rglob(f"{shard.sha256}.*.sparse")
    offsets, _ = load_index(Storage(local), shard).columns(["json"])
    with path.open("r+b") as file:
        file.seek(int(offsets[1, 0]) - 512)
        file.write(b"another")  # over the name of a member
    proxy.forget()
    long.assert_same(read(remote, part, cache=str(tmp_path)), read(local, part))
    assert proxy.count("GET", SHARD).requests >= 1


def test_a_run_resumes_and_another_rank_reads_its_own_samples(
    local: str, remote: str, proxy: FaultProxy, tmp_path: Path
) -> None:
    part, first = long.slices(1, 3), 2 * long.BATCH
    found = read(remote, part, first, cache=str(tmp_path / "resumed"), loader_workers=1)
    long.assert_same(found, read(local, part, first))
    assert proxy.count("GET", SHARD).bytes < (N - first) / N * 0.5 * total(load_manifest(local))
    proxy.forget()
    for rank in range(2):  # of two data ranks, each with three sequence ranks
        data = DataRank(rank, 2)
        cache = str(tmp_path / str(rank))
        found = long.arrays(long.stream_of(remote, part, data, cache=cache).batches(0, N))
        long.assert_same(found, long.arrays(long.stream_of(local, part, data).batches(0, N)))
    assert proxy.count("GET", SHARD).bytes < 0.5 * total(load_manifest(local))


def test_an_evaluation_reads_parts_too(local: str, remote: str, proxy: FaultProxy, tmp_path: Path) -> None:
    part = long.slices(2, 3)
    source = long.source_of(remote, part, cache=str(tmp_path), max_bad_samples=3)
    found = long.arrays(evaluation_batches(source, 3, DataRank()))
    long.assert_same(found, long.arrays(evaluation_batches(long.source_of(local, part), 3, DataRank())))
    assert proxy.count("GET", SHARD).bytes < 0.5 * total(load_manifest(local))


def test_a_rank_without_a_word_of_a_modality(local: str, remote: str, tmp_path: Path) -> None:
    few = {"acc": 50_000, "ecg": 720_000, "temp": 1800}  # one unit each, two of acc
    for rank in range(3):
        part = long.slices(rank, 3, few)
        found = read(remote, part, cache=str(tmp_path / str(rank)))
        long.assert_same(found, read(local, part))


def test_whole_windows_are_read_if_bad_samples_are_skipped(
    local: str, remote: str, proxy: FaultProxy, tmp_path: Path
) -> None:
    part = long.slices(0, 2)
    found = read(remote, part, cache=str(tmp_path), max_bad_samples=1)
    long.assert_same(found, read(local, part))
    assert proxy.count("GET", SHARD).requests == len(load_manifest(local).split("train").shards)


def test_complete_shards_are_read_with_indexes_of_an_older_version(
    local: str, proxied_s3: str, proxy: FaultProxy, tmp_path: Path
) -> None:
    long.copy(local, proxied_s3)
    storage, manifest = Storage(proxied_s3), load_manifest(local)
    body = manifest.to_json()
    for shard, entry in zip(manifest.split("train").shards, body["splits"]["train"]["shards"], strict=True):
        storage.write(shard.index, replace(load_index(storage, shard), blocks=None).to_bytes())
        del entry["index_sha256"]
    storage.write("manifest.json", json.dumps(body).encode())
    proxy.forget()
    part = long.slices(0, 2)
    found = read(proxied_s3, part, end=2 * N, cache=str(tmp_path))
    long.assert_same(found, read(local, part, end=2 * N))
    assert proxy.count("GET", SHARD).requests == len(manifest.split("train").shards)
