"""The cache of remote shards: full disk, read-only, shared, damaged, without a home folder."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import threading
import time
import uuid
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
from tiny import describe

from maestro_dist.data import memory_shards, shard_cache, verified_files
from maestro_dist.data.manifest import Shard
from maestro_dist.data.pack import RawSample, pack
from maestro_dist.data.shard_cache import ShardCache, local_shard
from maestro_dist.data.storage import Storage
from maestro_dist.data.storage.settings import StorageSettings, configure
from maestro_dist.data.user_folders import user_folder
from maestro_dist.errors import DataError, StorageError


@pytest.fixture
def remote(samples: list[RawSample]) -> tuple[Storage, Shard]:
    """A remote storage and one of its shards."""
    storage = Storage(f"memory://{uuid.uuid4()}/set")
    return storage, pack(storage.url, describe(), samples, shard_bytes=20_000).splits["train"].shards[0]


@pytest.fixture(autouse=True)
def no_shards_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_shards, "_files", OrderedDict())


def target_of(folder: Path, shard: Shard) -> Path:
    return folder / shard.sha256[:2] / f"{shard.sha256}.tar"


def fetch(remote: tuple[Storage, Shard], folder: Path | None) -> Path:
    return local_shard(*remote, ShardCache(str(folder) if folder else None))


def test_a_copy_that_is_there_needs_no_right_to_write(
    remote: tuple[Storage, Shard], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    copy = fetch(remote, tmp_path)
    assert copy.read_bytes() == remote[0].read(remote[1].path)
    really = Path.open

    def read_only(self: Path, mode: str = "r", **options: Any) -> Any:
        if mode != "rb" and tmp_path in self.parents:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))
        return really(self, mode, **options)

    monkeypatch.setattr(Path, "open", read_only)
    monkeypatch.setattr(verified_files, "_checked", set())
    assert fetch(remote, tmp_path) == copy
    copy.unlink()
    monkeypatch.setattr(shard_cache, "_told", set())
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert fetch(remote, tmp_path).read_bytes() == remote[0].read(remote[1].path)
    (said,) = [record.message for record in caplog.records]
    assert re.search(r"cannot use the shard cache \S+\.tar: Read-only file system; shards are kept in memory", said)
    monkeypatch.setattr(shard_cache, "can_hold_shards", lambda: False)
    monkeypatch.setattr(memory_shards, "_files", OrderedDict())
    with pytest.raises(StorageError, match=r"\.tar: Read-only file system; set data\.cache"):
        fetch(remote, tmp_path)


@pytest.mark.parametrize("memory", [True, False])
def test_a_full_disk_gets_its_room_back(
    remote: tuple[Storage, Shard], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: bool
) -> None:
    really = Storage.download

    def full(self: Storage, path: str, target: Path, tell: Any, **known: Any) -> None:
        if memory and tmp_path not in target.parents:
            really(self, path, target, tell, **known)
            return
        target.write_bytes(b"x" * 100)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Storage, "download", full)
    if memory:
        assert fetch(remote, tmp_path).read_bytes() == remote[0].read(remote[1].path)
    else:
        with pytest.raises(StorageError, match=r"\.tar: No space left on device, and memory has no room .*set data"):
            fetch(remote, tmp_path)
    assert [path.suffix for path in tmp_path.rglob("*") if path.is_file()] == [".lock"]


def test_a_full_disk_loses_the_shards_that_were_not_used_for_longest(
    samples: list[RawSample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(f"memory://{uuid.uuid4()}/set")
    shards = pack(storage.url, describe(), samples, shard_bytes=20_000).splits["train"].shards
    cache = ShardCache(str(tmp_path), limit=sum(shard.bytes for shard in shards[:3]))
    for number in (0, 1, 2, 0):
        local_shard(storage, shards[number], cache)
    local_shard(storage, shards[3], cache)
    there = [number for number, shard in enumerate(shards) if target_of(tmp_path, shard).exists()]
    assert there == [0, 2, 3]
    room = [True]

    def full(self: Storage, path: str, target: Path, tell: Any, **known: Any) -> None:
        if room.pop() if room else False:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        really(self, path, target, tell, **known)

    really = Storage.download
    monkeypatch.setattr(Storage, "download", full)
    assert local_shard(storage, shards[1], ShardCache(str(tmp_path))).read_bytes() == storage.read(shards[1].path)
    assert not target_of(tmp_path, shards[2]).exists()


@pytest.mark.parametrize(("cut", "patience_s"), [(3, 60.0), (1000, 0.2)])
def test_a_download_that_is_not_the_shard_is_asked_for_again(
    remote: tuple[Storage, Shard], tmp_path: Path, cut: int, patience_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(StorageSettings(patience_s))
    really, calls = Storage.download, []

    def download(self: Storage, path: str, target: Path, tell: Any, **known: Any) -> None:
        really(self, path, target, tell, **known)
        calls.append(path)
        if len(calls) <= cut:
            os.truncate(target, 1000)

    monkeypatch.setattr(Storage, "download", download)
    if cut == 3:
        assert fetch(remote, tmp_path).read_bytes() == remote[0].read(remote[1].path)
    else:
        with pytest.raises(DataError, match=r"^memory://\S+\.tar: 1000 bytes instead of \d+ \(after .*; upload or"):
            fetch(remote, tmp_path)
    assert not list(tmp_path.rglob("*.part"))


class Other:
    """Another process that holds the lock of a shard; `at_look` is called at each poll of the waiting process."""

    def __init__(self, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        target.parent.mkdir(parents=True)
        self.part, self.looks, self._file = target.with_suffix(".part"), 0, target.with_suffix(".lock").open("w")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        monkeypatch.setattr(shard_cache.time, "sleep", self._look)

    def _look(self, seconds: float) -> None:
        self.looks += 1
        self.at_look()

    def at_look(self) -> None:
        """A download that hangs."""

    def end(self) -> None:
        self._file.close()


def test_one_that_fetches_the_shard_is_waited_for_as_long_as_it_gets_on(
    remote: tuple[Storage, Shard], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_cache, "STALLED_S", 10 * shard_cache.POLL_S)
    other, told = Other(target_of(tmp_path, remote[1]), monkeypatch), []

    def at_look() -> None:
        if other.looks % 9 == 0:
            other.part.write_bytes(b"x" * (other.looks << 20))
        if other.looks == 40:  # killed, with a part left behind
            other.end()

    monkeypatch.setattr(other, "at_look", at_look)
    copy = local_shard(*remote, ShardCache(str(tmp_path)), told.append)
    assert copy.read_bytes() == remote[0].read(remote[1].path)
    assert not other.part.exists()
    assert [line.rpartition(", ")[2] for line in told[:3]] == ["0 MiB so far", "9 MiB so far", "18 MiB so far"]


def test_one_that_hangs_while_it_fetches_the_shard_is_an_error(
    remote: tuple[Storage, Shard], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Other(target_of(tmp_path, remote[1]), monkeypatch)
    with pytest.raises(StorageError, match=r"another process downloads .* no progress for 240 s; end it, or set data"):
        fetch(remote, tmp_path)
    other.end()


def test_a_home_that_cannot_be_written_to(
    remote: tuple[Storage, Shard], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("HOME", "/proc/none")
    user_folder.cache_clear()
    with caplog.at_level(logging.WARNING):
        copies = {fetch(remote, None) for _ in range(2)}
    assert copies == {target_of(tmp_path / f"maestro_dist-{os.getuid()}" / "shards", remote[1])}
    assert [
        record.message.endswith(f"; using {tmp_path}/maestro_dist-{os.getuid()}/shards instead")
        for record in caplog.records
    ] == [True]
    assert (tmp_path / f"maestro_dist-{os.getuid()}").stat().st_mode & 0o777 == 0o700
    user_folder.cache_clear()


def test_a_name_that_somebody_else_has_taken_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("HOME", "/proc/none")
    (tmp_path / "theirs").mkdir()
    (tmp_path / f"maestro_dist-{os.getuid()}").symlink_to(tmp_path / "theirs")
    user_folder.cache_clear()
    assert user_folder("shards").parent.name.startswith("maestro_dist-")
    assert not list((tmp_path / "theirs").iterdir())
    user_folder.cache_clear()


def test_no_folder_at_all_is_one_line(remote: tuple[Storage, Shard], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/proc/none")
    monkeypatch.setenv("HOME", "/proc/none")
    user_folder.cache_clear()
    with pytest.raises(StorageError, match=r"cannot use the shard cache .*; set data\.cache"):
        fetch(remote, None)


def test_a_file_is_checked_against_each_hash_and_says_how_far_it_is(
    remote: tuple[Storage, Shard], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = remote[1]
    path = fetch(remote, tmp_path / "cache")
    folder = tmp_path / "plain"
    (folder / shard.path).parent.mkdir(parents=True)
    (folder / shard.path).write_bytes(path.read_bytes())
    monkeypatch.setattr(verified_files, "_PIECE", 4096)
    told: list[str] = []
    local_shard(Storage(str(folder)), shard, ShardCache(str(tmp_path / "notes")), told.append)
    assert len(told) >= shard.bytes // 4096
    other = shard.model_copy(update={"sha256": "0" * 64})
    with pytest.raises(DataError, match="its sha256 is not that of the manifest"):
        local_shard(Storage(str(folder)), other, ShardCache(str(tmp_path / "notes")))


@pytest.mark.parametrize(("patience_s", "attempts"), [(0.5, 1), (30.0, 2)])
def test_who_waits_for_a_download_that_fails_does_not_wait_again(
    remote: tuple[Storage, Shard], tmp_path: Path, patience_s: float, attempts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless it is more patient. Both ask for the shard at the same time."""
    begun, go_on, calls, said = threading.Event(), threading.Event(), list[str](), list[str]()

    def download(self: Storage, path: str, target: Path, *_: Any, **__: Any) -> None:
        calls.append(path)
        begun.set()
        assert go_on.wait(20)
        raise StorageError(f"the network is gone for attempt {len(calls)}")

    def ask(storage: Storage) -> None:
        try:
            local_shard(storage, remote[1], ShardCache(str(tmp_path)))
        except StorageError as error:
            said.append(str(error))

    monkeypatch.setattr(Storage, "download", download)
    first = threading.Thread(target=ask, args=[Storage(remote[0].url, patience_s=0.5)])
    second = threading.Thread(target=ask, args=[Storage(remote[0].url, patience_s=patience_s)])
    first.start()
    assert begun.wait(20)
    second.start()
    time.sleep(0.6)
    go_on.set()
    first.join()
    second.join()
    assert said == [f"the network is gone for attempt {number}" for number in range(1, attempts + 1)] + [
        "the network is gone for attempt 1"
    ] * (2 - attempts)
    ask(Storage(remote[0].url, patience_s=0.5))  # a failure of the past is no reason to give up
    assert len(calls) == attempts + 1
