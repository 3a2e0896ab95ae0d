"""Parts of remote shards in the cache: full or read-only disks, removed and foreign files, processes that hang."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import threading
import uuid
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from maestro_dist.config.schema import DataConfig
from maestro_dist.data import memory_shards, shard_cache, shard_parts
from maestro_dist.data.block_digests import BlockDigests, digest_blocks
from maestro_dist.data.cache_room import room_for
from maestro_dist.data.manifest import Shard, SymbolSpec
from maestro_dist.data.pack import Description, RawSample, pack
from maestro_dist.data.reader import Request, SplitSource
from maestro_dist.data.shard_cache import ShardCache, local_shard
from maestro_dist.data.shard_index import load_index
from maestro_dist.data.shard_parts import ShardParts
from maestro_dist.data.sparse_file import SparseFile
from maestro_dist.data.storage import Storage
from maestro_dist.data.storage.settings import StorageSettings, configure
from maestro_dist.data.symbols import add_symbols
from maestro_dist.errors import DataError, StorageError
from maestro_dist.types import Modality

LONG = (Modality("ecg", 1, 100.0, 90_000, "mV"), Modality("temp", 1, 50.0, 45_000, "degC"))
PARTS = [(5000, 20_000), (400_000, 400_001)]


@pytest.fixture(autouse=True)
def no_shards_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_shards, "_files", OrderedDict())
    monkeypatch.setattr(shard_cache, "_told", set())


@pytest.fixture
def remote() -> tuple[Storage, Shard, BlockDigests]:
    """A remote storage, one of its shards, and the digests of its blocks."""
    draw = np.random.default_rng(0)
    about = Description("l", "CC0", "", "test", "classification", ("a", "b"), "t", 900.0, LONG)
    storage = Storage(f"memory://{uuid.uuid4()}/set")
    names = {"subject": "", "recording": "", "start_s": 0.0, "duration_s": 900.0}
    samples = [
        RawSample("train", f"w{n}", n % 2, **names, values={m.name: draw.normal(size=(m.steps, 1)) for m in LONG})
        for n in range(3)
    ]
    shard = pack(storage.url, about, samples, splits=["train"]).split("train").shards[0]
    blocks = load_index(storage, shard).blocks
    assert blocks is not None
    assert blocks.size == 4096
    return storage, shard, blocks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with 128 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(folder)], capture_output=True)
    if made.returncode:
        pytest.skip("needs the right to mount")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def parts_of(remote: tuple[Storage, Shard, BlockDigests], folder: Path, **cache: object) -> ShardParts:
    storage, shard, blocks = remote
    return ShardParts(storage, shard, blocks, ShardCache(str(folder), **cache), lambda what: None)  # type: ignore[arg-type]


def assert_there(remote: tuple[Storage, Shard, BlockDigests], file: int, parts: list[tuple[int, int]]) -> None:
    content = remote[0].read(remote[1].path)
    for start, end in parts:
        assert os.pread(file, end - start, start) == content[start:end]


def sparse_of(folder: Path) -> Path:
    (path,) = folder.rglob("*.sparse")
    return path


def test_blocks_suit_the_windows() -> None:
    def size(*windows: int) -> int | None:
        found = digest_blocks(io.BytesIO(bytes(100_000)), windows)
        return None if found is None else found.size

    assert size() is None
    assert size(100_000, 150_000) is None
    assert size(2_000_000, 1_000) == 4096
    assert size(8_388_608) == 8192
    assert size(10**10) == 65536
    for windows in ([2_000_000], [8_388_608]):
        found = digest_blocks(io.BytesIO(bytes(100_000)), windows)
        assert found is not None
        assert found.fits(100_000)
        assert not found.fits(100_000 + found.size)
        assert not replace(found, size=1000).fits(100_000)


def test_runs_are_sorted_and_do_not_touch() -> None:
    blocks = BlockDigests(4096, b"")
    assert blocks.runs([(9000, 9000), (4095, 4097), (20_000, 20_001), (0, 10)]) == [range(2), range(4, 5)]
    assert blocks.runs([(0, 4096), (4096, 8192), (16384, 16385)]) == [range(2), range(4, 5)]


def test_only_what_is_asked_for_takes_space(remote: tuple[Storage, Shard, BlockDigests], tmp_path: Path) -> None:
    parts = parts_of(remote, tmp_path)
    file = parts.open()
    assert parts.fetch(file, PARTS) == file
    assert_there(remote, file, PARTS)
    assert sparse_of(tmp_path).stat().st_blocks * 512 < 50_000
    assert sparse_of(tmp_path).stat().st_size == remote[1].bytes + len(remote[2])
    os.close(file)


def test_on_a_full_disk_parts_are_kept_in_memory(
    remote: tuple[Storage, Shard, BlockDigests], small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    parts, everything = parts_of(remote, small_disk), [(0, remote[1].bytes)]
    file = parts.open()
    assert parts.fetch(file, PARTS) == file
    with caplog.at_level(logging.WARNING):
        other = parts.fetch(file, everything)
    assert other != file
    assert parts.in_memory
    assert "No space left on device; shards are kept in memory" in caplog.text
    assert_there(remote, file, PARTS)
    assert_there(remote, other, everything)
    again = parts_of(remote, small_disk)
    third = again.open()
    assert again.in_memory
    assert again.fetch(third, everything) == third
    for number in (file, other, third):
        os.close(number)


def test_a_full_disk_loses_other_shards_first(remote: tuple[Storage, Shard, BlockDigests], small_disk: Path) -> None:
    (small_disk / "00").mkdir()
    old = small_disk / "00" / f"{'0' * 64}.tar"
    old.write_bytes(bytes(100_000))
    parts, wanted = parts_of(remote, small_disk), [(0, 60_000)]
    file = parts.open()
    assert parts.fetch(file, wanted) == file
    assert_there(remote, file, wanted)
    assert not old.exists()
    os.close(file)


def test_parts_can_be_used_from_a_read_only_cache(
    remote: tuple[Storage, Shard, BlockDigests], small_disk: Path
) -> None:
    parts = parts_of(remote, small_disk)
    file = parts.open()
    os.close(parts.fetch(file, PARTS))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    file = parts.open()
    assert parts.fetch(file, PARTS) == file
    assert not parts.in_memory
    assert not parts.recheck(file)
    other = parts.fetch(file, [*PARTS, (800_000, 800_001)])
    assert parts.in_memory
    assert_there(remote, other, [*PARTS, (800_000, 800_001)])
    os.close(file)
    os.close(other)


def test_a_file_that_was_removed_to_make_room_is_read_on_and_made_again(
    remote: tuple[Storage, Shard, BlockDigests], tmp_path: Path
) -> None:
    parts = parts_of(remote, tmp_path)
    file = parts.open()
    parts.fetch(file, PARTS)
    sparse_of(tmp_path).unlink()
    assert parts.fetch(file, PARTS) == file  # all of it is there
    more = [*PARTS, (600_000, 700_000)]
    other = parts.fetch(file, more)
    assert other != file
    assert_there(remote, other, more)
    assert sparse_of(tmp_path).stat().st_ino == os.fstat(other).st_ino
    os.close(file)
    os.close(other)


def test_room_is_made_for_a_file_that_grows_but_not_at_its_own_cost(
    remote: tuple[Storage, Shard, BlockDigests], tmp_path: Path
) -> None:
    parts = parts_of(remote, tmp_path, limit=150_000)
    file = parts.open()
    for start in range(0, remote[1].bytes - 100_000, 100_000):
        assert parts.fetch(file, [(start, start + 1)]) == file
    (tmp_path / "00").mkdir()
    (tmp_path / "00" / f"{'0' * 64}.tar").write_bytes(bytes(100_000))
    with room_for(tmp_path, 100_000, 150_000, keep=sparse_of(tmp_path)):
        assert sparse_of(tmp_path).exists()
        assert not list(tmp_path.rglob("*.tar"))
    with room_for(tmp_path, 150_000, 150_000):
        assert not list(tmp_path.rglob("*.sparse"))
    os.close(file)


def test_a_file_that_became_a_complete_shard_is_read_on(
    remote: tuple[Storage, Shard, BlockDigests], tmp_path: Path
) -> None:
    parts, everything = parts_of(remote, tmp_path), [(0, remote[1].bytes)]
    file = parts.open()
    parts.fetch(file, everything)
    whole = local_shard(*remote[:2], ShardCache(str(tmp_path)))
    assert whole.stat().st_ino == os.fstat(file).st_ino
    assert parts.fetch(file, everything) == file
    assert not parts.recheck(file)
    assert whole.read_bytes() == remote[0].read(remote[1].path)
    os.close(file)


def test_parts_that_are_not_the_shard_do_not_become_one(
    remote: tuple[Storage, Shard, BlockDigests], tmp_path: Path
) -> None:
    """For instance those of a data set that lies: its index has digests of other bytes."""
    storage, shard, _ = remote
    content = bytes(shard.bytes)
    liar = Storage(f"memory://{uuid.uuid4()}/set")
    liar.write(shard.path, content)
    blocks = digest_blocks(io.BytesIO(content), [2_000_000])
    assert blocks is not None
    lies = parts_of((liar, shard, blocks), tmp_path)
    file = lies.open()
    os.close(lies.fetch(file, [(0, shard.bytes)]))
    truth = parts_of(remote, tmp_path)  # the same sha256, the same cache
    file = truth.open()
    truth.fetch(file, PARTS)
    assert_there(remote, file, PARTS)
    os.close(file)
    assert local_shard(storage, shard, ShardCache(str(tmp_path))).read_bytes() == storage.read(shard.path)


@pytest.mark.parametrize("content", [b"x", b"x" * 3_000_000])
def test_a_file_of_another_version_is_replaced(
    remote: tuple[Storage, Shard, BlockDigests], tmp_path: Path, content: bytes
) -> None:
    parts = parts_of(remote, tmp_path)
    os.close(parts.open())
    sparse_of(tmp_path).write_bytes(content)
    file = parts.open()
    parts.fetch(file, PARTS)
    assert_there(remote, file, PARTS)
    os.close(file)


def test_one_that_hangs_is_an_error_and_one_that_ends_is_followed(
    remote: tuple[Storage, Shard, BlockDigests], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_parts, "STALLED_S", 0.2)
    parts = parts_of(remote, tmp_path)
    held, file = parts.open(), parts.open()
    assert SparseFile(held, remote[1].bytes, remote[2]).claim(range(2, 3))
    with pytest.raises(StorageError, match=r"\.sparse: another process downloads parts .* end it, or set data"):
        parts.fetch(file, PARTS)
    assert_there(remote, file, PARTS[1:])  # what nobody holds was downloaded
    timer = threading.Timer(0.1, os.close, [held])
    timer.start()
    parts.fetch(file, PARTS)
    assert_there(remote, file, PARTS)
    timer.join()
    os.close(file)


def test_a_shard_that_is_too_short_is_an_error(remote: tuple[Storage, Shard, BlockDigests], tmp_path: Path) -> None:
    configure(StorageSettings(0.2))
    storage, shard, _ = remote
    storage.write(shard.path, storage.read(shard.path)[:30_000])
    parts = parts_of(remote, tmp_path)
    file = parts.open()
    with pytest.raises((StorageError, DataError), match=r"train-000000\.tar"):
        parts.fetch(file, [(0, 100_000)])
    os.close(file)


def test_descriptors_are_closed(remote: tuple[Storage, Shard, BlockDigests], tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    storage, shard, blocks = remote
    parts = parts_of(remote, tmp_path)
    file = parts.open()
    sparse_of(tmp_path).unlink()
    storage.remove(shard.path)
    configure(StorageSettings(0.1))
    with pytest.raises(DataError, match="the shard is missing"):
        parts.fetch(file, PARTS)
    os.close(file)
    assert len(os.listdir("/proc/self/fd")) == before
    assert blocks


@pytest.mark.parametrize("symbols", [True, False])
def test_symbols_beside_raw_windows_are_read_in_parts_too(
    remote: tuple[Storage, Shard, BlockDigests], tmp_path: Path, symbols: bool
) -> None:
    url, local = f"memory://{uuid.uuid4()}/set", str(tmp_path / "local")
    spec = SymbolSpec(alphabet=8, word={"ecg": 4, "temp": 10}, normalize="window", raw=True)

    def make(name: str, values: np.ndarray, recording: np.ndarray | None) -> np.ndarray:
        return (np.abs(values[:: spec.word[name]]) * 2).clip(0, 7).astype(np.uint8)

    manifest = add_symbols(remote[0].url, url, spec, make)
    for name in Storage(url).list():
        Storage(local).write(name, Storage(url).read(name))
    slices = {"ecg": (40_000, 90_000), "temp": (10_000, 45_000)}
    found = []
    for place in (url, local):
        config = DataConfig(url=place, cache=str(tmp_path / "cache"))
        modalities = tuple(manifest.select(None))
        source = SplitSource(place, manifest, config, modalities, "train", symbols=symbols, slices=slices)
        batch = source.open().arrays(Request(np.arange(3)))
        found.append(batch.symbols if symbols else batch.values)
    assert found[0]["temp"].shape == (3, 3500 if symbols else 35_000, 1)
    for name, array in found[0].items():
        assert np.array_equal(array, found[1][name])
    share = sparse_of(tmp_path).stat().st_blocks * 512 / manifest.split("train").shards[0].bytes
    assert share < (0.1 if symbols else 0.7)
