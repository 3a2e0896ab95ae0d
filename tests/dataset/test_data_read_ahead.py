"""Remote shards are downloaded ahead: each once, in the order of need, within a limit, also during an outage."""

from __future__ import annotations

import errno
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from test_data_stream import STEPS, G, N, assert_equal, stream
from tiny import describe

from maestro_dist.config.schema import DataConfig
from maestro_dist.data import memory_shards, shard_cache, shard_read_ahead
from maestro_dist.data.manifest import load_manifest
from maestro_dist.data.pack import RawSample, pack
from maestro_dist.data.shard_read_ahead import NeededShard, ShardReadAhead
from maestro_dist.data.storage import Storage
from maestro_dist.data.stream import DataRank, evaluation_batches
from maestro_dist.errors import StorageError


@pytest.fixture(autouse=True)
def no_shards_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_shards, "_files", OrderedDict())


@pytest.fixture
def remote(samples: list[RawSample]) -> str:
    url = f"memory://{uuid.uuid4()}/set"
    pack(url, describe(), samples, shard_bytes=20_000)
    return url


@pytest.fixture
def downloaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The shards that were downloaded, in this order."""
    really, paths = Storage.download, list[str]()

    def download(self: Storage, path: str, *arguments: object, **known: object) -> None:
        paths.append(path)
        really(self, path, *arguments, **known)  # type: ignore[arg-type]

    monkeypatch.setattr(Storage, "download", download)
    return paths


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("workers", [0, 2])
def test_each_shard_is_downloaded_once(
    packed: str, remote: str, tmp_path: Path, downloaded: list[str], workers: int
) -> None:
    batches = list(stream(remote, cache=str(tmp_path), loader_workers=workers).batches(0, 2 * N))
    for one, other in zip(stream(packed).batches(0, 2 * N), batches, strict=True):
        assert_equal(one, other)
    assert sorted(downloaded) == [shard.path for shard in load_manifest(remote).split("train").shards]


def test_a_rank_downloads_its_own_shards(remote: str, tmp_path: Path, downloaded: list[str]) -> None:
    for rank in range(2):
        batches = stream(remote, rank, 2, cache=str(tmp_path / str(rank))).batches(0, N)
        read = {n for batch in batches for n in batch.sample.tolist()}
        ends = np.cumsum(load_manifest(remote).split("train").shard_samples)
        assert len(downloaded) == len(set(np.searchsorted(ends, sorted(read), side="right").tolist()))
        downloaded.clear()


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_an_evaluation_reads_ahead_too(remote: str, tmp_path: Path, downloaded: list[str], rank: int) -> None:
    from tiny import source_of

    source = source_of(remote, "test", config=DataConfig(url=remote, cache=str(tmp_path)))
    list(evaluation_batches(source, 2, DataRank(rank, 3)))
    assert 0 < len(downloaded) == len(set(downloaded)) <= len(load_manifest(remote).split("test").shards)


def started(url: str, cache: Path, megabytes: float, monkeypatch: pytest.MonkeyPatch) -> ShardReadAhead:
    """A read-ahead of shard n for step n."""
    source = stream(url, cache=str(cache))._source
    shards = source.manifest.split("train").shards
    ahead = ShardReadAhead(source, (NeededShard(n, n) for n in range(len(shards))))
    monkeypatch.setattr(ahead, "_limit", int(megabytes * 1e6))
    monkeypatch.setattr(shard_read_ahead, "_DOWNLOADS", 3)
    return ahead


def test_downloads_stay_within_the_limit_and_follow_the_training(
    remote: str, tmp_path: Path, downloaded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead = started(remote, tmp_path, 0.05, monkeypatch)  # two shards of 20 kB
    paths = [shard.path for shard in load_manifest(remote).split("train").shards]
    assert not downloaded  # nothing starts before it is asked for
    for step in range(len(paths)):
        ahead.reached(step)
        wait_for(lambda step=step: len(downloaded) >= min(step + 2, len(paths)))
        time.sleep(0.05)
        assert len(downloaded) <= step + 4
    assert sorted(downloaded) == paths
    ahead.close()
    wait_for(lambda: not any(thread.name.startswith("shard download") for thread in threading.enumerate()))


def test_a_failed_download_is_left_to_the_reader(remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_: object, **__: object) -> None:
        raise StorageError("the network is gone")

    monkeypatch.setattr(Storage, "download", lost)
    with pytest.raises(StorageError, match="the network is gone"):
        list(stream(remote, cache=str(tmp_path)).batches(0, N))


def test_training_goes_on_through_an_outage_with_what_was_read_ahead(
    remote: str, packed: str, tmp_path: Path, downloaded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = stream(remote, cache=str(tmp_path), prefetch=1).batches(0, N)
    first = next(batches)
    wait_for(lambda: len(downloaded) == len(load_manifest(remote).split("train").shards))
    wait_for(lambda: not list(tmp_path.rglob("*.part")))
    monkeypatch.setattr(Storage, "download", lambda *_, **__: pytest.fail("a request during the outage"))
    monkeypatch.setattr(Storage, "read", lambda *_, **__: pytest.fail("a request during the outage"))
    found = [first, *batches]
    assert len(found) == STEPS == -(-N // G)


@pytest.mark.parametrize("workers", [0, 1])
def test_without_space_on_disk_batches_come_from_memory(
    packed: str, remote: str, tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(shard_cache, "_NO_SPACE", {errno.ENOTDIR})
    source = stream(remote, cache=str(tmp_path / "file"), loader_workers=0)._source
    ahead = ShardReadAhead(source, iter([NeededShard(0, 0)]), processes=workers > 0)
    ahead.reached(0)
    wait_for(lambda: memory_shards.held(source.manifest.split("train").shards[0].sha256) is not None)
    wait_for(lambda: ahead._limit == memory_shards.MOST_BYTES // 4)
    assert ahead._ended is (workers > 0)
    ahead.close()
    for one, other in zip(
        stream(packed).batches(0, N), stream(remote, cache=str(tmp_path / "file")).batches(0, N), strict=True
    ):
        assert_equal(one, other)


def test_nothing_is_read_ahead_that_the_run_does_not_reach(remote: str, tmp_path: Path) -> None:
    ends = np.cumsum(load_manifest(remote).split("train").shard_samples)
    short = stream(remote, cache=str(tmp_path), lanes=1)
    (batch,) = short.batches(0, G)
    read = set(np.searchsorted(ends, batch.sample.numpy(), side="right").tolist())
    needed = {needed.shard for needed in short._needed_shards(0, G)}
    assert read <= needed
    assert len(needed) <= 4 < len(ends)  # two groups of two shards
    assert {needed.shard for needed in short._needed_shards(0, N)} == set(range(len(ends)))
