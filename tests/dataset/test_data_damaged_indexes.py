"""Indexes that are damaged, of other shards, or lie: refused by name."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from test_data_damage import BAD, fails, read_all
from tiny import SIZES, forget_index_hashes, rewrite, source_of

from maestro_dist.data.manifest import load_manifest
from maestro_dist.data.reader import presence
from maestro_dist.data.shard_index import ShardIndex, load_index
from maestro_dist.data.storage import Storage
from maestro_dist.data.subjects import keys_and_subjects
from maestro_dist.errors import DataError


def test_missing_index(fresh: str) -> None:
    (Path(fresh) / "train-000001.index").unlink()
    fails(DataError, fresh, "train-000001.index", "the index of shard train-000001.tar is missing")


def test_index_of_another_shard(fresh: str) -> None:
    counts = [s.samples for s in load_manifest(fresh).splits["train"].shards]
    one, two = next((i, j) for i in range(len(counts)) for j in range(i) if counts[i] == counts[j])
    other = Path(fresh) / f"train-{one:06d}.index"
    (Path(fresh) / f"train-{two:06d}.index").write_bytes(other.read_bytes())
    fails(DataError, fresh, f"train-{two:06d}.index: its sha256 is not that of the manifest; pack")
    forget_index_hashes(fresh)
    with pytest.raises(DataError, match=r"the index does not point at|points outside shard"):
        read_all(fresh)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "damaged index (JSONDecodeError"),
        (b"[1]", "damaged index (TypeError"),
        (b'{"format": "other/2"}', "format 'other/2' is not"),
        (
            b'{"format": "maestro_dist/1", "keys": ["a"], "members": ["json"], "offsets": [[1]]}',
            "damaged index (KeyError",
        ),
        (b'{"format": "maestro_dist/1", "keys": [], "members": [], "offsets": [], "sizes": []}', "0 samples, but"),
        (b"[" * 100_000, "damaged index (ValueError: it is nested too deeply"),
        (b'{"format": NaN}', "format nan is not"),
    ],
)
def test_damaged_index(fresh: str, content: bytes, message: str) -> None:
    forget_index_hashes(fresh)
    (Path(fresh) / "train-000001.index").write_bytes(content)
    fails(DataError, fresh, "train-000001.index", message)


def test_index_that_points_outside(fresh: str) -> None:
    forget_index_hashes(fresh)
    path = Path(fresh) / "train-000001.index"
    index = load_index(Storage(fresh), load_manifest(fresh).splits["train"].shards[1])
    index.offsets[0, 0], index.sizes[0, 0] = 10**9, 100
    path.write_bytes(index.to_bytes())
    fails(DataError, fresh, "points outside shard train-000001.tar")


def change_index(url: str, change: Callable[[ShardIndex], ShardIndex | None]) -> None:
    """Write the index of the second training shard again, with a right checksum."""
    forget_index_hashes(url)
    index = load_index(Storage(url), load_manifest(url).splits["train"].shards[1])
    index = change(index) or index
    (Path(url) / "train-000001.index").write_bytes(index.to_bytes())


def renamed(*keys: str) -> Callable[[ShardIndex], ShardIndex]:
    return lambda index: dataclasses.replace(index, keys=[*keys, *index.keys[len(keys) :]])


def same_place(index: ShardIndex) -> None:
    """The second sample is where the first is."""
    index.offsets[1], index.sizes[1] = index.offsets[0], index.sizes[0]


def shifted(index: ShardIndex) -> None:
    """A window begins in the member before it."""
    column = index.members.index("acc.npy")
    row = int(np.flatnonzero(index.sizes[:, column])[-1])
    index.offsets[row, column] -= 512


def overflowing(index: ShardIndex) -> None:
    index.offsets[0, 0], index.sizes[0, 0] = 2**63 - 600, 1000


def longer(index: ShardIndex) -> None:
    index.sizes[0, index.members.index("json")] += 512


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (renamed("nan"), "the index does not point at nan."),
        (renamed("../../etc/passwd"), "the index does not point at ../../etc/passwd."),
        (renamed("a\nb"), r"'a\nb' is no key of a sample"),
        (renamed("\x1b[2J"), r"'\x1b[2J' is no key of a sample"),
        (renamed("train-009", "train-009"), "names sample train-009 twice"),
        (same_place, "the index does not point at"),
        (shifted, "the index does not point at"),
        (overflowing, "points outside shard train-000001.tar"),
        (longer, "its json has no label"),
    ],
)
def test_an_index_that_lies(fresh: str, change: Callable[[ShardIndex], ShardIndex | None], message: str) -> None:
    change_index(fresh, change)
    fails(DataError, fresh, "train-000001", message)


def test_names_in_a_tar_are_no_paths(fresh: str, tmp_path: Path) -> None:
    """Members are read at their offsets; nothing is written where their names point."""
    before = sorted(tmp_path.rglob("*"))

    def change(key: str, members: dict[str, bytes]) -> None:
        if key == BAD:
            members["/../../../evil"] = b"x"
            members["json"] = members["json"]

    rewrite(fresh, change)
    assert sum(map(len, read_all(fresh))) == SIZES["train"]
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("place", [0, 0.2, 0.7, 1])
def test_an_index_with_a_changed_or_missing_byte(fresh: str, place: float) -> None:
    forget_index_hashes(fresh)
    path = Path(fresh) / "train-000001.index"
    content = bytearray(path.read_bytes())
    at = int(place * (len(content) - 1))
    path.write_bytes(content[:at] + content[at + 1 :])
    fails(DataError, fresh, "train-000001.index", "damaged index")
    content[at] ^= 1
    path.write_bytes(content)
    fails(DataError, fresh, "train-000001.index", "damaged index")


def test_an_index_of_an_older_version_is_read(fresh: str, packed: str) -> None:
    source = source_of(packed)
    forget_index_hashes(fresh)
    expected = [batch.sample.tolist() for batch in read_all(fresh)], keys_and_subjects(source)
    for name, split in load_manifest(fresh).splits.items():
        assert name
        for shard in split.shards:
            index = load_index(Storage(fresh), shard)
            old = {"format": "maestro_dist/1", "members": index.members, "keys": index.keys}
            old |= {"offsets": index.offsets.tolist(), "sizes": index.sizes.tolist()}
            (Path(fresh) / shard.index).write_text(json.dumps(old))
    assert [batch.sample.tolist() for batch in read_all(fresh)] == expected[0]
    found = keys_and_subjects(source_of(fresh))
    assert [a.tolist() for a in found] == [a.tolist() for a in expected[1]]
    assert (presence(source_of(fresh)) == presence(source)).all()
