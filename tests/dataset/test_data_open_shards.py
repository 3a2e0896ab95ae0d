"""Open shards: loaded and verified once, few files, whole members, and files that change or fail under a reader."""

from __future__ import annotations

import errno
import os
import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import SIZES, describe, source_of

from maestro_dist.config.learning import MissingConfig
from maestro_dist.config.schema import DataConfig
from maestro_dist.data import open_shards, verified_files
from maestro_dist.data.manifest import load_manifest
from maestro_dist.data.pack import RawSample, pack
from maestro_dist.data.reader import SplitSource
from maestro_dist.data.stream import DataRank, TrainSchedule, TrainStream
from maestro_dist.errors import DataError, StorageError
from maestro_dist.parallel.failure import report_of
from maestro_dist.types import Modality

N = SIZES["train"]
SHARDS = 150


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A data set of many shards, one sample each."""
    url = str(tmp_path_factory.mktemp("many"))
    modality = Modality("acc", 1, 2600.0, 2600, "g")  # more than a block of the tar
    window = {"acc": np.zeros((2600, 1), np.float32)}
    samples = [RawSample("train", f"k{n}", n % 2, "p", "r", n * 1.0, 1.0, window) for n in range(SHARDS)]
    about = describe(modalities=(modality,), classes=("a", "b"), window_s=1.0, recording=False)
    assert len(pack(url, about, samples, shard_bytes=1).splits["train"].shards) == SHARDS
    return url


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts from now on how often indexes are loaded and files are hashed."""
    count: Counter[str] = Counter()

    def counting(module: Any, name: str) -> None:
        call = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, **k: (count.update([name]), call(*a, **k))[1])

    counting(open_shards, "index_of")
    counting(verified_files, "sha256_of")
    return count


def stream(url: str, batch: int = 12, **config: Any) -> TrainStream:
    schedule = TrainSchedule(seed=3, global_batch=batch, total_steps=20, curriculum=MissingConfig(max_rate=0.0))
    return TrainStream(source_of(url, config=DataConfig(url=url, **config)), schedule, DataRank())


def values(batches: Any) -> list[tuple[list[int], float]]:
    return [
        (batch.sample.tolist(), sum(float(v.nan_to_num(7).sum()) for v in batch.values.values())) for batch in batches
    ]


@pytest.mark.parametrize("window", [3, 70, 200])
def test_an_index_is_loaded_and_a_shard_verified_once(
    many: str, window: int, counted: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verified_files, "_checked", set())
    monkeypatch.setattr(open_shards, "_INDEX_BYTES", 0)
    monkeypatch.setattr(open_shards, "_files_allowed", lambda: 8)
    assert len(list(stream(many, shuffle_shards=window).batches(0, SHARDS))) == 13
    assert counted == {"index_of": SHARDS, "sha256_of": SHARDS}


def test_indexes_stay_for_the_next_epoch_where_there_is_room(many: str, counted: Counter[str]) -> None:
    assert len(list(stream(many, 50).batches(0, 3 * SHARDS))) == 9
    assert counted["index_of"] == SHARDS


def test_indexes_and_files_are_bounded(many: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_shards.resource, "getrlimit", lambda which: (40, 40))
    monkeypatch.setattr(open_shards, "_INDEX_BYTES", 10_000)
    manifest = load_manifest(many)
    config = DataConfig(url=many, shuffle_shards=2)
    with closing(SplitSource(many, manifest, config, tuple(manifest.select(None)), "train").open()) as reader:
        before = len(os.listdir("/proc/self/fd"))
        for number in range(SHARDS):
            reader.stored(number)
            assert len(os.listdir("/proc/self/fd")) <= before + 10
        opened = reader._shards._opened.values()
        assert 4 < len(opened) < SHARDS
        assert sum(shard.bytes for shard in opened) <= 10_000


def test_files_are_closed_for_others_where_there_are_too_many(many: str, monkeypatch: pytest.MonkeyPatch) -> None:
    taken, really = [0], os.open

    def few(path: Any, flags: int, *rest: Any, **options: Any) -> int:
        if str(path).endswith(".tar") and len(os.listdir("/proc/self/fd")) > before + 6:
            taken[0] += 1
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return really(path, flags, *rest, **options)

    monkeypatch.setattr(os, "open", few)
    manifest = load_manifest(many)
    source = SplitSource(many, manifest, DataConfig(url=many), tuple(manifest.select(None)), "train")
    with closing(source.open()) as reader:
        before = len(os.listdir("/proc/self/fd"))
        assert [reader.stored(number).key for number in range(60)] == [f"k{number}" for number in range(60)]
    assert taken[0] > 0


def test_members_are_whole_where_the_system_gives_them_in_parts(packed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system call reads at most 2 GiB at a time."""
    expected, really = values(stream(packed).batches(0, N)), os.pread
    monkeypatch.setattr(os, "pread", lambda file, length, offset: really(file, min(length, 1000), offset))
    monkeypatch.setattr(os, "preadv", lambda file, buffers, offset: sum(map(len, buffers)) - 1)
    assert values(stream(packed).batches(0, N)) == expected


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_disk_that_fails_is_not_bad_data(packed: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = values(stream(packed).batches(0, N))
    fails = [1]

    def failing(really: Callable[..., Any]) -> Callable[..., Any]:
        def read(file: int, what: Any, offset: int) -> Any:
            if fails[0]:
                fails[0] -= 1
                raise OSError(number, os.strerror(number))
            return really(file, what, offset)

        return read

    for name in ("pread", "preadv"):
        monkeypatch.setattr(os, name, failing(getattr(os, name)))
    assert values(stream(packed).batches(0, N)) == expected, "a file that is opened anew may do"
    fails[0] = 1000
    with pytest.raises(StorageError, match=r"^cannot read /\S+train-00000\d\.tar: " + os.strerror(number)) as caught:
        list(stream(packed, max_bad_samples=100).batches(0, N))
    assert not report_of(0, caught.value).final


@pytest.mark.parametrize("damage", ["cut", "other", "gone"])
@pytest.mark.parametrize("open_files", [1, 100])
def test_a_cached_copy_that_changes_under_a_reader_is_fetched_again(
    packed: str, samples: list[RawSample], damage: str, open_files: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_shards, "_files_allowed", lambda: open_files)
    url = f"memory://{uuid.uuid4()}/set"
    pack(url, describe(), samples, shard_bytes=20_000)
    batches = stream(url, cache=str(tmp_path), prefetch=1, shuffle_shards=20).batches(0, 2 * N)
    found = [next(batches), next(batches)]
    for path in tmp_path.rglob("*.tar"):
        if damage == "gone":
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:2000] if damage == "cut" else b"\1" * path.stat().st_size)
    assert values([*found, *batches]) == values(stream(packed, shuffle_shards=20).batches(0, 2 * N))


def test_a_local_shard_that_is_cut_under_a_reader_is_named(fresh: str) -> None:
    batches = stream(fresh, prefetch=1, shuffle_shards=20, max_bad_samples=50).batches(0, 2 * N)
    next(batches)
    for shard in load_manifest(fresh).splits["train"].shards:
        os.truncate(Path(fresh, shard.path), 2000)
    with pytest.raises(DataError, match=r"train-00000\d\.tar: 2000 bytes instead of \d+"):
        list(batches)


def test_an_index_with_numbers_beyond_32_bits(packed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offsets and sizes keep 4 bytes each only where that is enough."""
    manifest = load_manifest(packed)
    shard, size = manifest.splits["train"].shards[0], 5 << 30
    index = open_shards.index_of(open_shards.Storage(packed), shard, None)
    index.offsets[0, 0], index.sizes[0, 0] = size - 3_000_000_000, 2_999_999_999
    monkeypatch.setattr(open_shards, "index_of", lambda *_: index)
    monkeypatch.setattr(open_shards, "local_shard", lambda *_: Path(packed, shard.path))
    entry = shard.model_copy(update={"bytes": size})
    opened = open_shards.OpenShards(
        open_shards.Storage(packed), [entry], index.members, DataConfig(), lambda what: None
    )
    found = opened.get(0)
    assert (int(found.offsets[0, 0]), int(found.sizes[0, 0])) == (size - 3_000_000_000, 2_999_999_999)
