from __future__ import annotations

import dataclasses
import io
import json
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import MODALITIES, SIZES, rewrite, source_of

from maestro_dist.config.learning import MissingConfig
from maestro_dist.config.schema import DataConfig
from maestro_dist.data.manifest import load_manifest
from maestro_dist.data.sample import BadSample, SampleFormat, decode_sample
from maestro_dist.data.stream import DataRank, TrainSchedule, TrainStream, evaluation_batches
from maestro_dist.errors import ConfigError, DataError

BAD = "train-007"


def read_all(url: str, **config: Any) -> list:
    return list(evaluation_batches(source_of(url, config=DataConfig(url=url, **config)), 8, DataRank()))


def train_epoch(url: str, epochs: int = 1, **config: Any) -> list:
    schedule = TrainSchedule(seed=1, global_batch=8, total_steps=10, curriculum=MissingConfig(max_rate=0.0))
    stream = TrainStream(source_of(url, config=DataConfig(url=url, **config)), schedule, DataRank())
    return list(stream.batches(0, epochs * stream.samples))


def fails(error: type[Exception], url: str, *parts: str, **config: Any) -> None:
    with pytest.raises(error) as caught:
        read_all(url, **config)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def shard(url: str, number: int = 0) -> Path:
    return Path(url) / load_manifest(url).splits["train"].shards[number].path


def edit_manifest(url: str, change: Callable[[dict], None]) -> None:
    path = Path(url) / "manifest.json"
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))


def npy(array: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


# shards


@pytest.mark.parametrize("verify", ["size", "sha256"])
def test_cut_inside_a_sample(fresh: str, verify: str) -> None:
    path = shard(fresh)
    path.write_bytes(path.read_bytes()[:3000])
    fails(DataError, fresh, "train-000000.tar: 3000 bytes instead of", verify=verify)


def test_cut_at_a_sample_boundary(fresh: str) -> None:
    path = shard(fresh)
    with tarfile.open(path) as tar:
        cut = next(info.offset for info in tar if info.name.startswith("train-002."))
    path.write_bytes(path.read_bytes()[:cut])
    fails(DataError, fresh, f"train-000000.tar: {cut} bytes instead of")


def test_one_flipped_bit(fresh: str) -> None:
    data = bytearray(shard(fresh).read_bytes())
    data[1000] ^= 1
    shard(fresh).write_bytes(data)
    fails(DataError, fresh, "train-000000.tar: its sha256 is not that of the manifest")
    assert sum(len(batch) for batch in read_all(fresh, verify="size")) == SIZES["train"]


def test_missing_shard(fresh: str) -> None:
    shard(fresh).unlink()
    fails(DataError, fresh, "train-000000.tar: the shard is missing")


# members


def evil() -> bytes:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.write_text, (Path("executed"), "yes"))

    return npy(np.array([Evil()], dtype=object), allow_pickle=True)


def header(text: bytes) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def shaped(*shape: int) -> bytes:
    return f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode()


MEMBERS = {
    "float64": (npy(np.zeros((64, 3))), "acc is float64, not float32"),
    "int": (npy(np.zeros((64, 3), dtype=np.int32)), "acc is int32, not float32"),
    "big endian": (npy(np.zeros((64, 3), dtype=">f4")), "acc is >f4, not float32"),
    "fortran": (npy(np.zeros((64, 3), dtype=np.float32, order="F")), "acc is float32 in Fortran order"),
    "shape": (npy(np.zeros((64, 2), dtype=np.float32)), "acc has shape (64, 2), not (64, 3)"),
    "short": (npy(np.zeros((64, 3), dtype=np.float32))[:-4], "acc has 764 bytes of data, not 768"),
    "inf": (npy(np.full((64, 3), np.inf, dtype=np.float32)), "acc has an infinite value"),
    "garbage": (b"hello", "acc is not an npy array"),
    "npy 2": (b"\x93NUMPY\x02\x00" + b"\x00" * 8, "acc is not an npy array"),
    "code": (
        b"\x93NUMPY\x01\x00" + len(b"__import__('os').abort()").to_bytes(2, "little") + b"__import__('os').abort()",
        "acc is not an npy array",
    ),
    "nested": (header(b"-" * 9000 + b"1"), "acc is not an npy array (MemoryError)"),
    "nested deeply": (header(b"{'descr': '<f4'}" + b"+1" * 4000), "acc is not an npy array (maximum recursion depth"),
    "no dictionary": (header(b"{[]: 1}"), "acc is not an npy array (unhashable type: 'list')"),
    "bomb": (header(shaped(10**9, 10**9)), "acc has shape (1000000000, 1000000000), not (64, 3)"),
    "bomb of the right shape": (
        header(b"{'descr': '<f4', 'fortran_order': False, 'shape': (64, 3), }") + bytes(10**6),
        "acc has 1000000 bytes",
    ),
    "negative": (header(shaped(-64, -3)), "acc has shape (-64, -3), not (64, 3)"),
    "record": (
        header(b"{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (64, 3), }"),
        "acc is [('a', '<f4')], not",
    ),
    "pickle": (evil(), "acc is object, not float32"),
    "raw pickle": (pickle.dumps([1]), "acc is not an npy array"),
}

LABELS = {
    "out of range": ({"label": 3}, "label 3 is not one of 0..2"),
    "negative": ({"label": -1}, "label -1 is not one of 0..2"),
    "nan": ({"label": float("nan")}, "label nan is not one of 0..2"),
    "float": ({"label": 1.0}, "label 1.0 is not one of 0..2"),
    "bool": ({"label": True}, "label True is not one of 0..2"),
    "text": ({"label": "run"}, "label 'run' is not one of 0..2"),
    "none": ({}, "its json has no label"),
    "list": ([1], "its json has no label"),
    "huge": ({"label": "x" * 10**7}, "label 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx is not one of 0..2"),
    "huge number": ({"label": 10**4000}, f"label 1{'0' * 39} is not one of 0..2"),
    "of many values": ({"label": [[0] * 1000] * 1000}, "label list is not one of 0..2"),
    "with lines": ({"label": "a\nb\x1b[2J"}, r"label 'a\nb\x1b[2J' is not one of 0..2"),
}
TEXTS = {
    "deep": (b"[" * 100_000, "its json has no label (RecursionError"),
    "deep label": (b'{"label": ' + b"[" * 500 + b"]" * 500 + b"}", "label list is not one of 0..2"),
    "number of many digits": (b'{"label": ' + b"1" * 10_000 + b"}", "its json has no label (ValueError"),
    "not text": (b"\xff\xfe\x00", "its json has no label (UnicodeDecodeError"),
    "cut": (b'{"label": 1', "its json has no label (JSONDecodeError"),
    "two": (b'{"label": 1}{"label": 2}', "its json has no label (JSONDecodeError"),
}


@pytest.mark.parametrize("case", MEMBERS)
def test_a_wrong_member_names_shard_and_sample(
    fresh: str, case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    content, message = MEMBERS[case]

    def change(key: str, members: dict[str, bytes]) -> None:
        if key == BAD:
            members["acc.npy"] = content

    rewrite(fresh, change)
    fails(DataError, fresh, "train-00000", f"sample {BAD}: {message}")
    assert not Path("executed").exists()


@pytest.mark.parametrize("case", LABELS)
def test_a_wrong_label_names_shard_and_sample(fresh: str, case: str) -> None:
    body, message = LABELS[case]

    def change(key: str, members: dict[str, bytes]) -> None:
        if key == BAD:
            members["json"] = json.dumps(body).encode()

    rewrite(fresh, change)
    fails(DataError, fresh, "train-00000", f"sample {BAD}: {message}")


@pytest.mark.parametrize("case", TEXTS)
def test_a_wrong_json_names_shard_and_sample(fresh: str, case: str) -> None:
    text, message = TEXTS[case]

    def change(key: str, members: dict[str, bytes]) -> None:
        if key == BAD:
            members["json"] = text

    rewrite(fresh, change)
    fails(DataError, fresh, "train-00000", f"sample {BAD}: {message}")
    assert sum(len(batch.bad) for batch in train_epoch(fresh, max_bad_samples=1)) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, "3", True])
def test_a_wrong_target_of_a_regression(value: object) -> None:
    layout = SampleFormat(MODALITIES, 0, False)
    meta = json.dumps({"label": value}).encode()
    with pytest.raises(BadSample, match=r"s.tar, sample k: target .* is not a finite number"):
        decode_sample(0, "k", meta, {}, layout, "s.tar, sample k")
    assert decode_sample(0, "k", b'{"label": 3}', {}, layout, "").target == 3.0


@pytest.mark.parametrize("mean", [None, [1.0], [1.0, 2.0, float("nan")], [1, 2, 3, 4], [10**400, 1, 2]])
def test_wrong_recording_statistics(fresh: str, mean: object) -> None:
    def change(key: str, members: dict[str, bytes]) -> None:
        if key == BAD:
            body = {"label": 0, "recording_mean": {"acc": mean}, "recording_std": {"acc": [1.0, 1.0, 1.0]}}
            members.clear()
            members.update({"json": json.dumps(body).encode(), "acc.npy": npy(np.zeros((64, 3), dtype=np.float32))})

    rewrite(fresh, change)
    fails(DataError, fresh, f"sample {BAD}: acc ", "recording mean")


def test_some_bad_samples_may_be_borne(fresh: str) -> None:
    bad = ("train-003", "train-030", "train-050")

    def change(key: str, members: dict[str, bytes]) -> None:
        if key in bad:
            members["json"] = b"{}"

    rewrite(fresh, change)
    batches = train_epoch(fresh, max_bad_samples=3)
    assert sum(len(batch) for batch in batches) == SIZES["train"] - 3
    named = [line for batch in batches for line in batch.bad]
    assert len(named) == 3
    assert all(any(key in line for line in named) for key in bad)
    assert not set(bad) & {key for batch in batches for key in batch.keys}
    with pytest.raises(DataError, match=r"3 bad samples, data.max_bad_samples is 2"):
        train_epoch(fresh, max_bad_samples=2)
    # one that is met again counts once
    assert sum(len(batch.bad) for batch in train_epoch(fresh, epochs=3, max_bad_samples=3)) == 9
    # an evaluation bears none: a score over what is left would look like the split's
    fails(DataError, fresh, "sample train-003: its json", max_bad_samples=3)


# manifests


def test_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"manifest.json: no manifest there; pack the data set first"):
        load_manifest(str(tmp_path))


def set_path(value: str) -> Callable[[dict], None]:
    def change(raw: dict) -> None:
        raw["splits"]["train"]["shards"][0]["path"] = value

    return change


def twice(raw: dict) -> None:
    """The first shard instead of the second, with counts that fit."""
    split = raw["splits"]["train"]
    split["samples"] += split["shards"][0]["samples"] - split["shards"][1]["samples"]
    split["class_counts"][0] += split["samples"] - sum(split["class_counts"])
    split["shards"][1] = split["shards"][0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw.update(format="maestro_dist/9"), "format 'maestro_dist/9' is not 'maestro_dist/1'"),
        (lambda raw: raw.pop("format"), "format None is not"),
        (lambda raw: raw.pop("classes"), "classes: Field required"),
        (lambda raw: raw.update(color="red"), "color: Extra inputs"),
        (lambda raw: raw["splits"]["train"].update(samples=3), "its shards hold 53 samples, not 3"),
        (lambda raw: raw["splits"]["train"]["class_counts"].append(0), "class_counts of split 'train' need 3"),
        (lambda raw: raw["modalities"][0]["mean"].pop(), "mean and std of 'acc' need 3 numbers"),
        (lambda raw: raw["modalities"][1].update(name="acc", mean=[0.0], std=[1.0]), "the same name"),
        (lambda raw: raw["splits"]["train"]["shards"][0].update(samples=0), "greater than or equal to 1"),
        (lambda raw: raw["splits"]["train"]["shards"][0].update(samples=-5), "greater than or equal to 1"),
        (lambda raw: raw["splits"]["train"]["shards"][0].update(bytes=1e300), "as an integer"),
        (lambda raw: raw["splits"]["train"]["class_counts"].__setitem__(0, 999), "class_counts add up to"),
        (twice, "it names shard train-000000.tar twice"),
        (set_path("../../etc/passwd"), "is not a plain relative path"),
        (set_path("/etc/passwd"), "is not a plain relative path"),
        (set_path("pipe:id"), "is not a plain relative path"),
        (set_path("s3://bucket/x"), "is not a plain relative path"),
    ],
)
def test_wrong_manifest(fresh: str, change: Callable[[dict], None], message: str) -> None:
    edit_manifest(fresh, change)
    fails(DataError, fresh, "manifest.json: ", message)


def test_manifest_that_is_not_json(fresh: str) -> None:
    for text in ("{", "[" * 100_000, "\0"):
        (Path(fresh) / "manifest.json").write_text(text)
        fails(DataError, fresh, "manifest.json: not valid JSON")


def test_unknown_names_come_with_a_suggestion(packed: str) -> None:
    manifest = load_manifest(packed)
    with pytest.raises(ConfigError, match="no modality 'tmp' in 'tiny'; did you mean 'temp'"):
        manifest.select(["acc", "tmp"])
    with pytest.raises(ConfigError, match="no split 'trian' in 'tiny'; did you mean 'train'"):
        manifest.split("trian")
    for names in ([], ["acc", "acc"]):
        with pytest.raises(ConfigError, match="name each modality once"):
            manifest.select(names)
    assert [m.name for m in manifest.select(["temp", "acc"])] == ["acc", "temp"]


def test_fingerprint_changes_with_the_data(packed: str) -> None:
    manifest = load_manifest(packed)
    other = manifest.model_copy(update={"window_s": 3.0})
    assert manifest.fingerprint() == load_manifest(packed).fingerprint() != other.fingerprint()
    assert dataclasses.is_dataclass(manifest.select(None)[0])
