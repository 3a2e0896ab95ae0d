"""Data sets of recordings: windows are cut when they are read, as if they had been packed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import recordings as made
import runs

from maestro_dist.config.schema import DataConfig
from maestro_dist.config.windows import SplitConfig, WindowConfig
from maestro_dist.data.fragments import PackFormat
from maestro_dist.data.load import load_data
from maestro_dist.data.manifest import Manifest, load_manifest
from maestro_dist.data.moments import causal_statistics
from maestro_dist.data.pack import pack, pack_recordings
from maestro_dist.data.pack_parts import PartsPacking, ThisProcess, pack_parts
from maestro_dist.data.parts import GivenSamples
from maestro_dist.data.reader import Request, SplitSource
from maestro_dist.data.recordings import cut_data
from maestro_dist.data.recordings.cut_data import usual_windows
from maestro_dist.data.recordings.gaps import GapCounter, gaps_of
from maestro_dist.data.recordings.label_times import LabelTimes
from maestro_dist.data.recordings.raw import RawRecording
from maestro_dist.data.recordings.table import RecordingTable
from maestro_dist.errors import ConfigError, DataError
from maestro_dist.types import Batch

SMALL_SHARD = 30_000


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Recordings in several shards."""
    url = str(tmp_path_factory.mktemp("recordings"))
    pack_recordings(url, made.ABOUT, made.recordings(), shard_bytes=SMALL_SHARD)
    return url


@pytest.fixture
def config(packed: str, tmp_path: Path) -> DataConfig:
    """With a cache of its own."""
    return DataConfig(url=packed, cache=str(tmp_path / "cache"))


def changed(config: DataConfig, **changes: Any) -> DataConfig:
    return config.model_copy(update=changes)


def everything(config: DataConfig, manifest: Manifest, split: str, **source: Any) -> Batch:
    whole = SplitSource(config.url, manifest, config, tuple(manifest.select(None)), split, **source)
    return whole.open().batch(Request(np.arange(manifest.split(split).samples)))


def test_cut_windows_are_those_that_are_packed(config: DataConfig, tmp_path: Path) -> None:
    cut = load_data(config)
    whole = pack(tmp_path / "windows", made.WINDOWS, made.windows(made.recordings()))
    assert len(load_manifest(config.url).split("recordings").shards) > 3
    assert cut.modalities == whole.modalities  # with the same means and deviations, to the last bit
    other = changed(config, url=str(tmp_path / "windows"))
    for split, entry in whole.splits.items():
        assert cut.split(split).class_counts == entry.class_counts
        found, expected = everything(config, cut, split), everything(other, whole, split)
        assert found.keys == expected.keys
        for part in ("present", "target", "sample"):
            np.testing.assert_array_equal(getattr(found, part), getattr(expected, part))
        for part in ("values", "rows", "recording"):
            for name, array in getattr(expected, part).items():
                np.testing.assert_array_equal(getattr(found, part)[name], array)
    assert not found.present.all()


@pytest.mark.parametrize("normalize", ["recording", pytest.param("dataset", marks=pytest.mark.slow)])
def test_training_is_the_same_bit_for_bit(config: DataConfig, tmp_path: Path, normalize: str) -> None:
    pack(tmp_path / "windows", made.WINDOWS, made.windows(made.recordings()))
    extra = [f"model.normalize={normalize}", "optim.epochs=1", f"data.cache={config.cache}", "data.loader_workers=1"]
    assert runs.train(tmp_path / "cut", config.url, *extra) == 0
    assert runs.train(tmp_path / "packed", str(tmp_path / "windows"), *extra) == 0
    runs.assert_same_weights(runs.weights(tmp_path / "cut"), runs.weights(tmp_path / "packed"))
    assert runs.tracked(tmp_path / "cut") == runs.tracked(tmp_path / "packed")


def test_windows_change_without_packing_again(config: DataConfig) -> None:
    window = WindowConfig(length_s=20.0, stride_s=5.0, min_observed=0.5)
    manifest = load_data(changed(config, window=window))
    assert {m.name: m.steps for m in manifest.modalities} == {"acc": 320, "eda": 80, "age": 1}
    batch = everything(config, manifest, "train")
    for name, steps in (("acc", 320), ("eda", 80)):
        observed = (~batch.values[name].isnan().all(2)).sum(1)
        assert batch.values[name].shape[1] == steps
        assert (observed >= steps / 2).all()
    everywhere = load_data(changed(config, window=window.model_copy(update={"min_observed": 0.0})))
    assert everything(config, everywhere, "train").present.sum() > batch.present.sum()


def test_a_short_recording_is_one_window_and_no_window_reads_beyond(config: DataConfig) -> None:
    manifest = load_data(changed(config, window=WindowConfig(length_s=130.0, min_labelled=0.1)))
    batch = everything(config, manifest, "train")
    assert [key.rpartition("-")[2] for key in batch.keys] == ["000000"] * len(batch)
    first = batch.values["acc"][0]
    assert first[100 * 16 :].isnan().all()
    np.testing.assert_array_equal(first[: 100 * 16], np.float32(made.recordings()[0].values["acc"]))


def test_sequence_ranks_have_their_steps(config: DataConfig) -> None:
    manifest = load_data(config)
    whole = everything(config, manifest, "test")
    slices = {"acc": (48, 128), "eda": (12, 32), "age": (0, 1)}
    part = everything(config, manifest, "test", slices=slices)
    for name, (first, end) in slices.items():
        np.testing.assert_array_equal(part.values[name], whole.values[name][:, first:end])
        np.testing.assert_array_equal(part.recording[name], whole.recording[name])


def test_statistics_are_counted_once(config: DataConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first = load_data(config)
    monkeypatch.setattr(cut_data, "counted", None)
    assert load_data(config) == first
    with pytest.raises(TypeError):
        load_data(changed(config, window=WindowConfig(length_s=3.0)))
    with pytest.raises(TypeError):
        load_data(changed(config, cache=str(tmp_path / "another")))
    (tmp_path / "run" / "data").mkdir(parents=True)
    (tmp_path / "run" / "data" / "manifest.json").write_text(json.dumps(first.to_json()))
    assert load_data(changed(config, cache=str(tmp_path / "another")), run_url=str(tmp_path / "run")) == first


def test_parts_are_packed_to_the_same_bytes(packed: str, tmp_path: Path) -> None:
    given = made.recordings()
    parts = [GivenSamples(given[first : first + 3], str(first)) for first in range(0, 10, 3)]
    about = PackFormat.checked(made.ABOUT, ["recordings"], SMALL_SHARD)
    manifest, _ = pack_parts(str(tmp_path / "parts"), PartsPacking(parts, about), ThisProcess())
    assert manifest.recordings == load_manifest(packed).recordings
    for path in Path(packed).iterdir():
        if path.name != "manifest.json":  # whose means are summed in another order
            assert path.read_bytes() == (tmp_path / "parts" / path.name).read_bytes()


def test_a_packed_set_has_hardly_more_bytes_than_its_arrays(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    given = [RawRecording(f"r{n}", {"acc": draw.normal(size=(200_000, 3))}, 0, subject="p") for n in range(2)]
    manifest = pack_recordings(tmp_path, made.ABOUT, given)
    stored = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert manifest.recordings is not None
    assert stored <= 1.05 * 2 * 200_000 * 3 * 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"values": {"acc": np.zeros((9, 2))}}, "any number of steps x 3 variates"),
        ({"values": {"ecg": np.zeros((9, 2))}}, "'ecg' is not in the description"),
        ({"values": {"age": np.zeros((9, 1))}}, "one row x 1 variates"),
        ({"values": {"acc": np.full((9, 3), np.nan)}}, "nothing was observed"),
        ({"values": {"acc": np.full((9, 3), np.inf)}}, "an infinite value"),
        ({"labels": [(0, 10, 0), (9, 12, 1)]}, "two labels overlap from 9 s to 10 s"),
        ({"labels": [(5, 5, 0)]}, "its end must be after its start"),
        ({"labels": [(0, 5)]}, "not (start_s, end_s, label)"),
        ({"labels": [(0, 5, "run")]}, "'run' is no class; they are rest, walk"),
        ({"labels": 2}, "label 2 is not one of 0..1"),
        ({"start_s": -1000.0}, "before its time 0"),
        ({"start_s": {"ecg": 0.0}}, "'ecg' is not in the description"),
        ({"start_s": np.nan}, "start_s of acc nan is not a finite number"),
        ({"key": "a.b"}, "a key has up to 40"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    recording = replace(made.recordings(1)[0], **changes)
    with pytest.raises(DataError) as caught:
        pack_recordings(tmp_path / "set", made.ABOUT, [recording])
    assert message in str(caught.value)
    assert not (tmp_path / "set" / "manifest.json").exists()


def test_a_key_is_used_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="two recordings have the key r0"):
        pack_recordings(tmp_path, made.ABOUT, made.recordings(3) + made.recordings(1), shard_bytes=1000)


def test_damage_is_named(packed: str, config: DataConfig, tmp_path: Path) -> None:
    for name in ("recordings.table", "recordings-000001.tar"):
        copy = tmp_path / name
        copy.mkdir()
        for path in Path(packed).iterdir():
            content = bytearray(path.read_bytes())
            if path.name == name:
                content[len(content) // 3] ^= 1
            (copy / path.name).write_bytes(content)
        with pytest.raises(DataError, match=name):
            load_data(changed(config, url=str(copy)))


def test_damage_that_only_the_size_could_tell_is_found_by_the_reader(packed: str, tmp_path: Path) -> None:
    """With `data.verify=size`: a stream of another recording, and statistics that are no numbers."""
    manifest = load_manifest(packed)
    for damage, message in ((b"r1.acc.npy", "does not point at r1.acc.npy"), (b"r1.acc.moments.npy", "are damaged")):
        copy = tmp_path / damage.decode()
        copy.mkdir()
        for path in Path(packed).iterdir():
            content = path.read_bytes()
            at = content.find(damage)
            if path.suffix == ".tar" and at >= 0:
                place, new = (at, b"r9") if b"moments" not in damage else (at + 512 + 128 + 8, b"\xff" * 8)
                content = content[:place] + new + content[place + len(new) :]
            (copy / path.name).write_bytes(content)
        config = DataConfig(url=str(copy), cache=str(copy / "cache"), verify="size", max_bad_samples=10**6)
        assert manifest.recordings is not None
        cut = usual_windows(str(copy), manifest)
        bad = [line for name in cut.splits for line in everything(config, cut, name).bad]
        assert len(bad) > 3
        assert all("sample r1-" in line and message in line for line in bad)


# splits


def people(config: DataConfig, **split: Any) -> dict[str, set[str]]:
    manifest = load_data(changed(config, split=SplitConfig(**split)))
    return {
        name: {key.partition("-")[0] for key in everything(config, manifest, name).keys} for name in manifest.splits
    }


def test_folds_test_each_person_once(config: DataConfig) -> None:
    found = [people(config, by="subject", folds=5, fold=fold) for fold in range(5)]
    everyone = {f"r{n}" for n in range(10)}
    assert set().union(*(fold["test"] for fold in found)) == everyone
    for number, fold in enumerate(found):
        assert fold["validation"] == found[(number + 1) % 5]["test"]
        assert fold["train"] | fold["validation"] | fold["test"] == everyone
        assert sum(map(len, fold.values())) == 10
        assert all({f"r{int(key[1:]) ^ 1}" for key in part} == part for part in fold.values())  # both of a person


def test_splits_by_name_recording_and_time(config: DataConfig) -> None:
    named = people(config, by="subject", test=["p1"], validation=["p4"])
    assert named == {"train": {"r0", "r1", "r4", "r5", "r6", "r7"}, "validation": {"r8", "r9"}, "test": {"r2", "r3"}}
    by_recording = people(config, by="recording", allow_shared_people=True, test=0.3, validation=0.2)
    assert [len(by_recording[name]) for name in ("train", "validation", "test")] == [5, 2, 3]
    manifest = load_data(changed(config, split=SplitConfig(by="time", allow_shared_people=True, test=0.25)))
    starts = {
        name: [int(key[3:]) * made.STRIDE_S for key in everything(config, manifest, name).keys if key.startswith("r0-")]
        for name in manifest.splits
    }
    assert max(starts["train"]) + made.LENGTH_S <= 60.0 <= min(starts["validation"])
    assert max(starts["validation"]) + made.LENGTH_S <= 75.0 <= min(starts["test"])


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({"by": "recording"}, "people are in two splits"),
        ({"by": "time"}, "puts each person into all splits"),
        ({"by": "group"}, "recording r0 has no group"),
        ({"by": "subject", "test": ["p9"]}, "there is no 'p9'; there are p0, p1, p2, p3, p4"),
        ({"by": "subject", "test": ["p1"], "validation": ["p1"]}, "'p1' is named twice"),
        ({"by": "subject", "folds": 6}, "there are only 5"),
        ({"by": "subject", "folds": 5, "fold": 5}, "it counts from 0"),
        ({"by": "time", "folds": 5, "allow_shared_people": True}, "needs shares"),
    ],
)
def test_splits_that_cannot_be_are_refused(config: DataConfig, split: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_data(changed(config, split=SplitConfig(**split)))
    assert message in str(caught.value)


def test_windows_that_are_packed_cannot_be_cut(synthetic: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.window: the data set holds windows"):
        load_data(DataConfig(url=synthetic, window=WindowConfig(length_s=1.0)))


def test_a_stride_of_nearly_nothing_is_refused(config: DataConfig) -> None:
    with pytest.raises(ConfigError, match=r"data\.window\.stride_s: 1e-09 s makes .* windows of recording r0"):
        load_data(changed(config, window=WindowConfig(length_s=1.0, stride_s=1e-9)))


# labels, gaps and statistics

TIMES = LabelTimes(np.array([[0.0, 10.0, 1.0], [10.0, 20.0, 0.0], [25.0, 30.0, 2.0]]))


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("majority", [1, 0, 0, 2, 2]),  # of equal ones the lowest class
        ("last", [1, 0, np.nan, 2, np.nan]),
        ("center", [1, 0, 0, np.nan, 2]),
        ("any", [1, 1, 0, 2, 2]),
        ("mean", [1, 0.5, 0, 1.2, 2]),
    ],
)
def test_labels_of_windows(rule: Any, expected: list[float]) -> None:
    starts = np.array([0.0, 5.0, 12.0, 18.0, 24.0])
    np.testing.assert_array_equal(TIMES.of_windows(starts, 10.0, rule, 0.5), expected)


def test_windows_inside_labels() -> None:
    np.testing.assert_array_equal(TIMES.starts_inside(4.0, 3.0), [0, 3, 6, 10, 13, 16, 25])
    assert LabelTimes(np.empty((0, 3)), 1.0).of_windows(np.zeros(2), 4.0, "majority", 0.5).tolist() == [1, 1]
    assert np.isnan(LabelTimes(np.empty((0, 3))).of_windows(np.zeros(2), 4.0, "last", 0.5)).all()


def streams() -> Iterator[np.ndarray]:
    draw = np.random.default_rng(0)
    for _ in range(50):
        stream = draw.normal(size=(int(draw.integers(1, 2000)), int(draw.integers(1, 4)))).astype(np.float32)
        for _ in range(int(draw.integers(0, 5))):
            first = int(draw.integers(0, len(stream)))
            stream[first : first + int(draw.integers(1, 300))] = np.nan
        yield stream


def test_gaps_are_counted_at_any_place() -> None:
    draw = np.random.default_rng(1)
    for stream in streams():
        counter, observed = GapCounter(len(stream), gaps_of(stream)), ~np.isnan(stream).all(1)
        first = draw.integers(-50, len(stream) + 50, size=40)
        end = first + draw.integers(0, 400, size=40)
        expected = [observed[max(a, 0) : max(b, 0)].sum() for a, b in zip(first, end, strict=True)]
        np.testing.assert_array_equal(counter.observed(first, end), expected)


def test_statistics_up_to_any_place() -> None:
    draw = np.random.default_rng(1)
    for stream in streams():
        ends = np.sort(draw.integers(0, len(stream) + 1, size=20))
        found = causal_statistics(stream + 1000, ends)
        one_by_one = np.concatenate([causal_statistics(stream + 1000, ends[n : n + 1]) for n in range(len(ends))])
        np.testing.assert_array_equal(found, one_by_one)  # so a reader may ask for any number at a time
        for end, pair in zip(ends, found, strict=True):
            values = (stream[:end] + 1000).astype(np.float64)
            seen = ~np.isnan(values)
            mean = np.where(seen, values, 0).sum(0) / np.maximum(seen.sum(0), 1)
            std = np.sqrt((np.where(seen, values - mean, 0) ** 2).sum(0) / np.maximum(seen.sum(0), 1))
            np.testing.assert_allclose(pair, np.stack([mean, std], 1), rtol=1e-9, atol=1e-9)


def test_a_table_survives_its_bytes(packed: str) -> None:
    data = (Path(packed) / "recordings.table").read_bytes()
    table = RecordingTable.from_bytes(data, 1 << 20)
    assert RecordingTable.joined([table.part(0, 4), table.part(4, 10)]).to_bytes() == data
    for cut in (10, len(data) // 2, len(data) - 1):
        with pytest.raises(ValueError, match="checksum"):
            RecordingTable.from_bytes(data[:cut], 1 << 20)
    with pytest.raises(ValueError, match="are allowed"):
        RecordingTable.from_bytes(data, 100)
