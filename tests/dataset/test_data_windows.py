"""Windows that are read directly into the arrays of a batch: the same as decoded samples, whatever is read."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_data_mixup import EVERYTHING, numbered
from test_data_stream import NAMES, N, stream
from test_data_symbols import symbols_of
from tiny import describe, forget_index_hashes, raw_samples, rewrite, source_of

from maestro_dist.config.schema import DataConfig
from maestro_dist.data.pack import pack
from maestro_dist.data.reader import Request, SplitReader
from maestro_dist.data.tar_blocks import npy_blocks
from maestro_dist.data.window_reader import WindowReader
from maestro_dist.types import Batch

CUT = {"ecg": (32, 96), "acc": (16, 48), "temp": (0, 4)}
LATE = {"ecg": (127, 128), "acc": (63, 64), "temp": (7, 8)}


def slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every sample decoded on its own."""
    monkeypatch.setattr(WindowReader, "read", lambda *_: None)


def assert_same(one: Batch, other: Batch) -> None:
    assert (one.keys, one.views, one.bad_samples) == (other.keys, other.views, other.bad_samples)
    arrays: list[Any] = []
    one.map(arrays.append)
    expected: list[Any] = []
    other.map(expected.append)
    assert len(arrays) == len(expected)
    for array, wanted in zip(map(np.asarray, arrays), map(np.asarray, expected), strict=True):
        assert array.dtype == wanted.dtype
        assert np.array_equal(array, wanted, equal_nan=array.dtype.kind == "f")


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "what",
    [{}, {"consistency": 1.0}, {"augment": EVERYTHING, "consistency": 1.0}, {"slices": CUT}, {"slices": LATE}],
    ids=["dropped", "twice", "augmented", "cut", "late"],
)
def test_the_same_batches_as_from_decoded_samples(
    packed: str, what: dict[str, Any], workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = list(stream(packed, loader_workers=workers, **what).batches(0, 3 * N))
    slowly(monkeypatch)
    for batch, expected in zip(found, stream(packed, **what).batches(0, 3 * N), strict=True):
        assert_same(batch, expected)


def test_most_batches_are_read_directly(packed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SplitReader, "stored", None)
    assert len(numbered(stream(packed).batches(0, 2 * N))) > 0


def test_symbols(packed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = source_of(symbols_of(packed, tmp_path / "symbols", raw=False), symbols=True)
    found = [source.open().arrays(Request(np.arange(N)[::-1].copy())) for _ in range(2)]
    slowly(monkeypatch)
    for batch in found:
        assert_same(batch, source.open().arrays(Request(np.arange(N)[::-1].copy())))


@pytest.mark.parametrize("seed", range(5))
def test_any_numbers_and_any_modalities(packed: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    draw, source = np.random.default_rng(seed), source_of(packed)
    requests = [
        Request(draw.integers(N, size=int(draw.integers(0, 12))), seed=seed, both=bool(n % 2), drop=0.4 * (n % 3))
        for n in range(20)
    ]
    requests += [Request(r.numbers, keep=draw.random((len(r.numbers), 3)) < 0.4, both=r.both) for r in requests]
    reader = source.open()
    found = [reader.arrays(request) for request in requests]
    slowly(monkeypatch)
    reader = source.open()
    for batch, request in zip(found, requests, strict=True):
        assert_same(batch, reader.arrays(request))


def test_keys_of_any_length(tmp_path: Path) -> None:
    samples = [sample for sample in raw_samples() if sample.split == "train"][:12]
    for length, sample in zip(range(39, 51), samples, strict=True):
        object.__setattr__(sample, "key", "k" * length)
    url = str(tmp_path / "set")
    pack(url, describe(), samples)
    batch = source_of(url).open().arrays(Request(np.arange(12)))
    assert batch.keys == [sample.key for sample in samples]
    for name in NAMES:
        wanted = [sample.values[name] for sample in samples if name in sample.values]
        assert np.array_equal(batch.values[name], np.array(wanted), equal_nan=True)


def test_members_in_any_order_in_the_shard(fresh: str) -> None:
    expected = source_of(fresh).open().arrays(Request(np.arange(N)))

    def turned(key: str, members: dict[str, bytes]) -> None:
        again = dict(reversed(members.items()))
        members.clear()
        members.update(again)

    rewrite(fresh, turned)
    assert_same(source_of(fresh).open().arrays(Request(np.arange(N))), expected)


@pytest.mark.parametrize("pass_over", [0, 3], ids=["at once", "later"])
def test_a_shard_that_is_replaced_is_checked_again(fresh: str, pass_over: int) -> None:
    """What was found right about a file says nothing about another one."""
    forget_index_hashes(fresh)
    source = source_of(fresh, config=DataConfig(url=fresh, verify="size"))
    reader, requests = source.open(), [Request(np.arange(first, first + 5)) for first in range(0, N - 5, 5)]
    for request in requests[: pass_over + 1]:
        reader.arrays(request)

    def worse(key: str, members: dict[str, bytes]) -> None:
        for name, array in list(members.items()):
            if name == "acc.npy":
                values = np.load(io.BytesIO(array))
                values[0, 0] = np.inf
                members[name] = b"".join(npy_blocks(values))

    before = {path: path.stat() for path in Path(fresh).glob("*.tar")}
    rewrite(fresh, worse)
    for path, status in before.items():  # other files, as a copy program makes them
        assert path.stat().st_size == status.st_size
        new = path.with_suffix(".new")
        new.write_bytes(path.read_bytes())
        os.replace(new, path)
    reader.close()
    bad = [message for request in requests for message in reader.arrays(request).bad]
    assert len(bad) == sum(sample.split == "train" and "acc" in sample.values for sample in raw_samples()[: N - 3])
    assert all("has an infinite value" in message for message in bad)


def test_a_wrong_json_member_is_found_at_its_first_reading(fresh: str) -> None:
    def worse(key: str, members: dict[str, bytes]) -> None:
        if key == "train-007":
            members["json"] = json.dumps({"label": 17}).encode()

    rewrite(fresh, worse)
    batch = source_of(fresh).open().arrays(Request(np.arange(N)))
    assert batch.bad_samples == [7]
    assert "label 17" in batch.bad[0]


def test_windows_without_any_value(fresh: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def emptied(key: str, members: dict[str, bytes]) -> None:
        if "ecg.npy" in members:
            members["ecg.npy"] = b"".join(npy_blocks(np.full((128, 1), np.nan, np.float32)))

    rewrite(fresh, emptied)
    monkeypatch.setattr(SplitReader, "stored", None)
    batch = source_of(fresh).open().arrays(Request(np.arange(N)))
    assert len(batch.values["ecg"]) > 0
    assert np.isnan(batch.values["ecg"]).all()
