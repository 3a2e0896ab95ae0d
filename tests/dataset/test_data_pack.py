from __future__ import annotations

import dataclasses
import gc
import hashlib
import json
import os
import pickle
import subprocess
import sys
import uuid
from pathlib import Path

import numpy as np
import pytest
from tiny import SIZES, describe

from maestro_dist.data.manifest import Manifest, load_manifest
from maestro_dist.data.moments import RunningMoments, causal_statistics
from maestro_dist.data.pack import RawSample, pack
from maestro_dist.data.shard_index import load_index
from maestro_dist.data.storage import Storage
from maestro_dist.errors import DataError

READ = """
import sys, json, io, glob, numpy as np, webdataset
seen = {}
for path in sorted(glob.glob(sys.argv[1] + "/train-*.tar")):
    for sample in webdataset.WebDataset(path, shardshuffle=False):
        arrays = {k[:-4]: np.load(io.BytesIO(v), allow_pickle=False) for k, v in sample.items() if k.endswith(".npy")}
        seen[sample["__key__"]] = [json.loads(sample["json"])["label"], {k: [list(v.shape), float(np.nansum(v))] for k, v in arrays.items()}]
print(json.dumps(seen))
"""  # noqa: E501


def test_manifest_says_what_is_there(packed: str, samples: list[RawSample]) -> None:
    manifest = load_manifest(packed)
    assert {name: split.samples for name, split in manifest.splits.items()} == SIZES
    assert len(manifest.splits["train"].shards) > 3
    train = [s for s in samples if s.split == "train"]
    assert manifest.splits["train"].class_counts == [sum(s.label == c for s in train) for c in range(3)]
    for modality in manifest.modalities:
        steps = np.concatenate([s.values[modality.name] for s in train if modality.name in s.values]).astype(np.float64)
        assert modality.mean == pytest.approx(np.nanmean(steps, axis=0).tolist(), rel=1e-12)
        assert modality.std == pytest.approx(np.nanstd(steps, axis=0).tolist(), rel=1e-12)
    assert [m.name for m in manifest.select(None)] == ["acc", "ecg", "temp"]


def test_plain_webdataset_reads_the_shards(packed: str, samples: list[RawSample]) -> None:
    environment = {**os.environ, "WDS_SECURE": "1"}
    run = subprocess.run(
        [sys.executable, "-c", READ, packed], env=environment, capture_output=True, text=True, check=True
    )
    seen = json.loads(run.stdout)
    train = [s for s in samples if s.split == "train"]
    assert list(seen) == [s.key for s in train]
    for sample in train:
        label, arrays = seen[sample.key]
        assert label == sample.label
        assert {k: v[0] for k, v in arrays.items()} == {k: list(v.shape) for k, v in sample.values.items()}
        for name, values in sample.values.items():
            assert arrays[name][1] == pytest.approx(float(np.nansum(values)), rel=1e-6)


def test_packing_twice_gives_the_same_bytes(packed: str, samples: list[RawSample], tmp_path: Path) -> None:
    again, remote = tmp_path / "again", f"memory://{uuid.uuid4()}"
    for url in (str(again), remote):
        pack(url, describe(), iter(samples), shard_bytes=20_000)
    for path in sorted(Path(packed).iterdir()):
        assert path.read_bytes() == (again / path.name).read_bytes() == Storage(remote).read(path.name), path.name
    assert sorted(os.listdir(again)) == sorted(os.listdir(packed)) == Storage(remote).list()
    assert load_manifest(packed).fingerprint() == load_manifest(remote).fingerprint()


def test_packing_over_a_data_set(fresh: str, samples: list[RawSample]) -> None:
    with pytest.raises(DataError, match="is there already"):
        pack(fresh, describe(), samples)
    pack(fresh, describe(), samples, overwrite=True)
    assert len(os.listdir(fresh)) == 7  # three splits of one shard and one index, and the manifest


def test_a_stream_without_an_observed_step_is_absent(tmp_path: Path, samples: list[RawSample]) -> None:
    empty = dataclasses.replace(
        samples[0], values={"temp": np.full((8, 1), np.nan)}, statistics={"temp": np.ones((1, 2))}
    )
    manifest = pack(str(tmp_path), describe(), [empty])
    index = load_index(Storage(str(tmp_path)), manifest.splits["train"].shards[0])
    assert index.members == ["json"]


def test_regression_manifest(tmp_path: Path, samples: list[RawSample]) -> None:
    targets = [1.5, 2.5, 5.0]
    some = [dataclasses.replace(s, label=t) for s, t in zip(samples, targets, strict=False)]
    split = pack(str(tmp_path), describe(task="regression", classes=()), some).splits["train"]
    assert (split.target_mean, split.target_std) == (pytest.approx(3.0), pytest.approx(np.std(targets)))
    assert split.class_counts == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"key": "a.b"}, "sample a.b: a key has up to 50"),
        ({"label": 3}, "label 3 is not one of 0..2"),
        ({"label": float("nan")}, "label nan is not one of"),
        ({"split": "dev"}, "split 'dev' is not one of train"),
        ({"values": {"ppg": np.zeros((8, 1))}}, "modality 'ppg' is not in the description"),
        ({"values": {"temp": np.zeros((7, 1))}}, r"temp has shape \(7, 1\), not 8 steps x 1"),
        ({"values": {"temp": np.full((8, 1), np.inf)}}, "temp has an infinite value"),
    ],
)
def test_wrong_samples_are_refused_and_leave_no_manifest(
    tmp_path: Path, samples: list[RawSample], changes: dict, message: str
) -> None:
    wrong = dataclasses.replace(samples[1], **changes)
    with pytest.raises(DataError, match=message):
        pack(str(tmp_path), describe(), [samples[0], wrong])
    assert os.listdir(tmp_path) == []


def test_moments_far_from_zero() -> None:
    stream = 1e8 + np.random.default_rng(0).normal(size=(5000, 2))
    stream[::7, 0] = np.nan
    moments = RunningMoments(2)
    for part in np.array_split(stream, [1, 1, 40, 900, 4000]):
        moments.add(part)
    exact = [np.std(stream[~np.isnan(stream[:, d]), d] - 1e8) for d in (0, 1)]
    assert moments.std == pytest.approx(exact, rel=1e-7)
    assert RunningMoments(3).std.tolist() == [0.0, 0.0, 0.0]


def test_causal_statistics_see_the_past_only() -> None:
    stream = np.random.default_rng(1).normal(size=(100, 3))
    ends = np.array([10, 10, 37, 100])
    found = causal_statistics(stream, ends)
    for row, end in enumerate(ends):
        assert found[row, :, 0] == pytest.approx(stream[:end].mean(axis=0))
        assert found[row, :, 1] == pytest.approx(stream[:end].std(axis=0))
    changed = stream.copy()
    changed[37:] = 99.0
    assert (causal_statistics(changed, ends)[:3] == found[:3]).all()


def test_hashes_of_indexes_are_in_the_manifest_but_not_in_its_fingerprint(packed: str) -> None:
    manifest = load_manifest(packed)
    for split in manifest.splits.values():
        for shard in split.shards:
            index = (Path(packed) / shard.index).read_bytes()
            assert shard.index_sha256 == hashlib.sha256(index).hexdigest()
    body = manifest.to_json()
    for split in body["splits"].values():
        for entry in split["shards"]:
            del entry["index_sha256"]
    older = Manifest.model_validate(body)
    assert older.to_json() == body
    assert older.fingerprint() == manifest.fingerprint()


def test_a_manifest_is_sent_to_another_process_as_it_is(packed: str) -> None:
    manifest = load_manifest(packed)
    copy = pickle.loads(pickle.dumps(manifest))
    assert copy == manifest
    assert copy.to_json() == manifest.to_json()
    assert gc.isenabled()
    shard = copy.split("train").shards[0]
    assert shard.model_copy(update={"samples": 3}).samples == 3
    assert copy.split("train").shards[1].samples != 3
