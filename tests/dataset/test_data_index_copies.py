"""Copies of the indexes of remote shards: read once, and never others than those of the manifest."""

from __future__ import annotations

import fcntl
import os
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from maestro_dist.data import index_copies
from maestro_dist.data.index_copies import index_of, oldest_copy
from maestro_dist.data.manifest import Shard, load_manifest
from maestro_dist.data.storage import Storage
from maestro_dist.data.storage.settings import StorageSettings, configure
from maestro_dist.errors import DataError


@pytest.fixture
def remote(packed: str) -> tuple[Storage, Shard]:
    storage = Storage(f"memory://{uuid.uuid4()}/set")
    for file in Path(packed).glob("*.*"):
        storage.write(file.name, file.read_bytes())
    return storage, load_manifest(storage.url).split("train").shards[0]


def test_an_index_is_read_once(remote: tuple[Storage, Shard], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage, shard = remote
    first = index_of(storage, shard, str(tmp_path))
    storage.remove(shard.index)
    again = index_of(storage, shard, str(tmp_path))
    assert again.to_bytes() == first.to_bytes()

    (copy,) = tmp_path.rglob("*.index")
    storage.write(shard.index, first.to_bytes())
    copy.write_bytes(b"{")  # damaged: read again
    assert index_of(storage, shard, str(tmp_path)).keys == first.keys
    assert copy.read_bytes() == first.to_bytes()

    os.utime(copy, (oldest_copy() - 10, oldest_copy() - 10))  # of an earlier run, with the hash of the manifest
    storage.write(shard.index, b"{}")
    assert index_of(storage, shard, str(tmp_path)).keys == first.keys
    copy.unlink()
    configure(StorageSettings(0.2))
    with pytest.raises(DataError, match=r"0\.index: its sha256 is not that of the manifest \(after .* s\); pack the"):
        index_of(storage, shard, str(tmp_path))


def test_without_a_hash_in_the_manifest_a_copy_is_never_older_than_the_worker(
    remote: tuple[Storage, Shard], tmp_path: Path
) -> None:
    storage, shard = remote[0], remote[1].model_copy(update={"index_sha256": None})
    first = index_of(storage, shard, str(tmp_path))
    storage.write(shard.index, b"{}")
    assert index_of(storage, shard, str(tmp_path)).to_bytes() == first.to_bytes()
    (copy,) = tmp_path.rglob("*.index")
    os.utime(copy, (oldest_copy() - 10, oldest_copy() - 10))  # of an earlier run
    configure(StorageSettings(0.2))
    with pytest.raises(DataError, match=r"damaged index \(KeyError: 'format'\) \(after \d+ attempts in .*; pack"):
        index_of(storage, shard, str(tmp_path))


def test_threads_read_an_index_once(
    remote: tuple[Storage, Shard], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, shard = remote
    really, reads = Storage.parsed, list[str]()

    def parsed(self: Storage, path: str, parse: Callable[[bytes], Any], **known: bool) -> Any:
        reads.append(path)
        time.sleep(0.05)
        return really(self, path, parse, **known)

    monkeypatch.setattr(Storage, "parsed", parsed)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: index_of(storage, shard, str(tmp_path)).keys, range(8)))
    assert found == [found[0]] * 8
    assert reads == [shard.index]


def test_one_that_takes_long_to_read_an_index_is_not_waited_for(
    remote: tuple[Storage, Shard], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_copies, "_PATIENCE_S", 0.1)
    storage, shard = remote
    folder = tmp_path / shard.sha256[:2]
    folder.mkdir()
    with (folder / ".indexes.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert index_of(storage, shard, str(tmp_path)).keys


def test_a_cache_that_cannot_be_written_is_no_error(remote: tuple[Storage, Shard], tmp_path: Path) -> None:
    storage, shard = remote
    (tmp_path / "file").write_bytes(b"")
    assert len(index_of(storage, shard, str(tmp_path / "file")).keys) == shard.samples


def test_a_reader_process_uses_the_copies_of_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_copies, "_oldest", 5.0)
    index_copies.use_copies_since(3.0)
    assert oldest_copy() == 3.0


def test_the_index_of_a_local_data_set_is_not_copied(packed: str, tmp_path: Path) -> None:
    shard = load_manifest(packed).split("train").shards[0]
    assert index_of(Storage(packed), shard, str(tmp_path)).keys
    assert not list(tmp_path.rglob("*.index"))
