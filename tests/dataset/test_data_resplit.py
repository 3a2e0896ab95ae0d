"""Packed windows that a run divides into splits of its own, as if they had been packed with them."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import recordings as made
import synthetic as synthetic_data
import tiny
from resplit import BY_NAME, NEW, changed, divided_by_hand, everything, for_tests, keys_of, source_of, split_by, windows

from maestro_dist.config.schema import DataConfig
from maestro_dist.config.windows import SplitConfig
from maestro_dist.data.description import Description
from maestro_dist.data.load import load_data
from maestro_dist.data.manifest import Manifest, load_manifest
from maestro_dist.data.pack import RawSample, pack, pack_recordings
from maestro_dist.data.reader import Request
from maestro_dist.data.recordings import cut_data
from maestro_dist.data.split_checks import check_splits
from maestro_dist.data.stream import DataRank, TrainSchedule, TrainStream, evaluation_batches
from maestro_dist.data.symbols import add_symbols
from maestro_dist.errors import ConfigError, DataError
from maestro_dist.types import Batch, Modality

SMALL_SHARD = 30_000


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> str:
    url = str(tmp_path_factory.mktemp("windows"))
    pack(url, made.WINDOWS, windows(), shard_bytes=SMALL_SHARD)
    return url


@pytest.fixture
def config(packed: str, tmp_path: Path) -> DataConfig:
    """With a cache of its own."""
    return DataConfig(url=packed, cache=str(tmp_path / "cache"), split=BY_NAME)


def assert_same(found: Batch, expected: Batch) -> None:
    assert found.keys == expected.keys
    for part in ("present", "target", "sample"):
        np.testing.assert_array_equal(getattr(found, part), getattr(expected, part))
    for part in ("values", "rows", "recording"):
        for name, array in getattr(expected, part).items():
            np.testing.assert_array_equal(getattr(found, part)[name], array)


def test_divided_windows_are_those_that_are_packed(config: DataConfig, tmp_path: Path) -> None:
    whole = pack(tmp_path / "whole", made.WINDOWS, divided_by_hand(), shard_bytes=SMALL_SHARD)
    divided, before = load_data(config), load_manifest(config.url)
    assert divided.modalities == whole.modalities != before.modalities  # means and deviations, to the last bit
    assert (divided.outliers, divided.shared_people) == (whole.outliers, whole.shared_people)
    other = changed(config, url=str(tmp_path / "whole"), split=None)
    for split, entry in whole.splits.items():
        own = divided.split(split)
        assert (own.samples, own.class_counts) == (entry.samples, entry.class_counts)
        assert_same(everything(config, divided, split), everything(other, whole, split))
    assert divided.split("train").class_counts != before.split("train").class_counts
    assert load_manifest(config.url) == before  # nothing was written


def test_targets_are_counted_as_they_are_packed(tmp_path: Path) -> None:
    about = replace(made.WINDOWS, task="regression", classes=(), target="speed")
    draw = np.random.default_rng(3)
    labelled = [replace(sample, label=float(label)) for sample in windows() for label in [draw.normal(3, 2)]]
    pack(tmp_path / "packed", about, labelled)
    parts = [replace(sample, split=NEW.get(sample.subject, "train")) for sample in labelled]
    whole = pack(tmp_path / "whole", about, parts)
    divided = load_data(DataConfig(url=str(tmp_path / "packed"), cache=str(tmp_path / "cache"), split=BY_NAME))
    for name, entry in whole.splits.items():
        assert (divided.splits[name].target_mean, divided.splits[name].target_std) == (
            entry.target_mean,
            entry.target_std,
        )


# order and position


def stream(config: DataConfig, manifest: Manifest, rank: int = 0, ranks: int = 1) -> TrainStream:
    return TrainStream(source_of(config, manifest), TrainSchedule(5, 12, 100), DataRank(rank, ranks))


def test_any_ranks_read_the_same_global_batches_also_after_a_restart(config: DataConfig) -> None:
    config = changed(config, shuffle_shards=2, lanes=4)
    manifest = load_data(config)
    samples = manifest.split("train").samples
    alone = list(stream(config, manifest).batches(0, 2 * samples))
    assert stream(config, manifest).order(0).lanes > 1
    assert sorted(key for batch in alone if batch.epoch == 1 for key in batch.keys) == sorted(
        keys_of(config, manifest)["train"]
    )
    for ranks in (2, 3):
        parts = [list(stream(config, manifest, rank, ranks).batches(0, 2 * samples)) for rank in range(ranks)]
        for whole, *shares in zip(alone, *parts, strict=True):
            assert whole.keys == [key for share in shares for key in share.keys]
    position = alone[len(alone) // 2].position
    readers = changed(config, loader_workers=2)
    again = list(stream(readers, manifest).batches(position, 2 * samples))
    for found, expected in zip(again, alone[len(alone) // 2 + 1 :], strict=True):
        assert_same(found, expected)


def test_sequence_ranks_have_their_steps(config: DataConfig) -> None:
    manifest = load_data(config)
    whole = everything(config, manifest, "test")
    slices = {"acc": (48, 128), "eda": (12, 32), "age": (0, 1)}
    part = everything(config, manifest, "test", slices=slices)
    for name, (first, end) in slices.items():
        np.testing.assert_array_equal(part.values[name], whole.values[name][:, first:end])
        np.testing.assert_array_equal(part.recording[name], whole.recording[name])


def test_evaluation_reads_each_sample_once(config: DataConfig) -> None:
    manifest = load_data(config)
    source = source_of(config, manifest, "test")
    shares = [batch for rank in range(2) for batch in evaluation_batches(source, 7, DataRank(rank, 2))]
    assert [key for batch in shares for key in batch.keys] == keys_of(config, manifest)["test"]


def test_long_remote_windows_are_still_read_in_parts(tmp_path: Path) -> None:
    url, draw, steps = f"memory://{uuid.uuid4()}/set", np.random.default_rng(0), 90_000
    about = Description(
        "long", "CC0", "", "test", "classification", ("a", "b"), "t", 900.0, (Modality("ecg", 1, 100.0, steps, "mV"),)
    )
    arrays = [draw.normal(size=(steps, 1)).astype(np.float32) for _ in range(6)]
    pack(
        url,
        about,
        [
            RawSample("train", f"w{n}", n % 2, f"p{n}", "", 0.0, 900.0, values={"ecg": array})
            for n, array in enumerate(arrays)
        ],
    )
    split = SplitConfig(by="subject", test=["p1"], validation=["p2"])
    manifest = load_data(DataConfig(url=url, cache=str(tmp_path / "count"), split=split))
    config = DataConfig(url=url, cache=str(tmp_path / "cache"), split=split)
    source = source_of(config, manifest, slices={"ecg": (10_000, 30_000)})
    assert source.downloads_parts
    found = source.open().arrays(Request(np.arange(4)))
    assert found.keys == ["w0", "w3", "w4", "w5"]
    for window, number in zip(found.values["ecg"], (0, 3, 4, 5), strict=True):
        np.testing.assert_array_equal(window, arrays[number][10_000:30_000])
    (sparse,) = (tmp_path / "cache").rglob("*.sparse")
    assert sparse.stat().st_blocks * 512 < manifest.split("train").shards[0].bytes / 3


# which splits


def test_folds_test_each_person_once(config: DataConfig) -> None:
    found = [keys_of(config, split_by(config, by="subject", folds=5, fold=fold)) for fold in range(5)]
    everyone = {sample.key for sample in windows()}
    assert sorted(key for fold in found for key in fold["test"]) == sorted(everyone)
    for number, fold in enumerate(found):
        assert fold["validation"] == found[(number + 1) % 5]["test"]
        assert {*fold["train"], *fold["validation"], *fold["test"]} == everyone
        assert sum(map(len, fold.values())) == len(everyone)


def test_windows_and_recordings_are_divided_alike(config: DataConfig, tmp_path: Path) -> None:
    pack_recordings(tmp_path / "recordings", made.ABOUT, made.recordings())
    cut = changed(config, url=str(tmp_path / "recordings"))
    for split in ({"by": "subject"}, {"by": "recording", "allow_shared_people": True, "test": ["r3"]}):
        parts = [{n: set(keys) for n, keys in keys_of(c, split_by(c, **split)).items()} for c in (config, cut)]
        assert parts[0] == parts[1]


def test_a_recording_is_divided_by_time(config: DataConfig) -> None:
    manifest = split_by(config, by="time", allow_shared_people=True, test=0.25)
    starts = {
        name: [int(key[3:]) * made.STRIDE_S for key in keys if key.startswith("r0-")]
        for name, keys in keys_of(config, manifest).items()
    }
    end = max(max(found) for found in starts.values()) + made.LENGTH_S
    assert max(starts["train"]) + made.LENGTH_S <= 0.6 * end <= min(starts["validation"])
    assert max(starts["validation"]) + made.LENGTH_S <= 0.75 * end <= min(starts["test"])
    assert sum(split.samples for split in manifest.splits.values()) < len(windows())  # those over a border


def test_recordings_of_one_name_are_told_apart_by_their_people(tmp_path: Path) -> None:
    samples = [replace(sample, recording=f"night{sample.recording[1:] in '02468'}") for sample in windows()]
    pack(tmp_path / "data", made.WINDOWS, samples)
    config = DataConfig(url=str(tmp_path / "data"), cache=str(tmp_path / "cache"))
    allowed = {"by": "recording", "allow_shared_people": True}
    manifest = split_by(config, **allowed, test=["p1/nightTrue"], validation=["p4/nightFalse"])
    found = {name: {key.partition("-")[0] for key in keys} for name, keys in keys_of(config, manifest).items()}
    assert (found["test"], found["validation"]) == ({"r2"}, {"r9"})


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({"by": "recording"}, "people are in two splits"),
        ({"by": "time"}, "puts each person into all splits"),
        ({"by": "group"}, "windows are packed without groups; use subject, recording or time"),
        ({"by": "subject", "test": ["p9"]}, "there is no 'p9'; there are p0, p1, p2, p3, p4"),
        ({"by": "subject", "test": ["p1"], "validation": ["p1"]}, "'p1' is named twice"),
        ({"test": ["p1"]}, "data.split.test: it has no effect on the splits that were packed"),
        ({"folds": 5}, "data.split.folds: it has no effect on the splits that were packed"),
        ({"by": "subject", "test": 0.6, "validation": 0.6}, "the shares of validation and test add up to 1.2"),
        ({"by": "time", "test": 0.6, "validation": 0.6, "allow_shared_people": True}, "add up to 1.2"),
        ({"by": "subject", "folds": 6}, "there are only 5"),
        ({"by": "time", "folds": 5, "allow_shared_people": True}, "needs shares"),
    ],
)
def test_splits_that_cannot_be_are_refused(config: DataConfig, split: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        split_by(config, **split)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "split", "message"),
    [
        ({"subject": ""}, {"by": "subject"}, "sample r0-000003 has no subject"),
        ({"recording": ""}, {"by": "recording", "allow_shared_people": True}, "sample r0-000003 has no recording"),
    ],
)
def test_a_window_that_lacks_a_name_is_named(
    tmp_path: Path, changes: dict[str, Any], split: dict[str, Any], message: str
) -> None:
    pack(tmp_path, made.WINDOWS, [replace(s, **changes) if s.key == "r0-000003" else s for s in windows()])
    with pytest.raises(ConfigError, match=message):
        split_by(DataConfig(url=str(tmp_path), cache=str(tmp_path / "cache")), **split)


def test_windows_without_times_are_not_divided_by_time(tmp_path: Path) -> None:
    pack(tmp_path, made.WINDOWS, [replace(sample, start_s=7.0) for sample in windows()])
    with pytest.raises(ConfigError, match="all windows of recording r0 start at 7 s"):
        split_by(DataConfig(url=str(tmp_path)), by="time", allow_shared_people=True)


def test_recordings_of_one_window_are_not_divided_by_time(tmp_path: Path) -> None:
    pack(tmp_path, made.WINDOWS, [replace(sample, recording=sample.key) for sample in windows()])
    with pytest.raises(ConfigError, match="each window of 'recordings' reaches over the border of two splits"):
        split_by(DataConfig(url=str(tmp_path)), by="time", allow_shared_people=True)


def test_packed_splits_with_people_in_two_are_refused_if_asked_for(tmp_path: Path, config: DataConfig) -> None:
    assert split_by(config, by="given") == load_manifest(config.url)
    synthetic_data.write(str(tmp_path))  # each person is in all splits
    shared = DataConfig(url=str(tmp_path))
    with pytest.raises(ConfigError, match="5 people are in both 'train' and 'validation' as packed"):
        split_by(shared, by="given")
    assert split_by(shared, by="given", allow_shared_people=True) == load_data(shared)


def test_equal_keys_of_two_packed_splits_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    numbers: dict[str, Iterator[int]] = {name: iter(range(1000)) for name in ("train", "validation", "test")}
    pack(tmp_path, made.WINDOWS, [replace(sample, key=f"w{next(numbers[sample.split])}") for sample in windows()])
    config = DataConfig(url=str(tmp_path), cache=str(tmp_path / "cache"), split=BY_NAME)
    assert everything(config, load_data(config), "train").keys.count("w0") == 2
    assert "keys are those of several samples of the new split 'train' (w0, say)" in caplog.text


def test_an_index_of_an_older_version_is_enough(packed: str, config: DataConfig, tmp_path: Path) -> None:
    """It has neither people nor labels."""
    url = str(shutil.copytree(packed, tmp_path / "old"))
    tiny.rewrite(url, lambda key, members: None)
    old = changed(config, url=url)
    assert next(source_of(old, load_manifest(url)).indexes()).subjects is None
    found, expected = load_data(old), load_data(config)
    assert found.modalities == expected.modalities
    assert keys_of(old, found) == keys_of(config, expected)


def test_symbols_that_depend_on_the_packed_splits_are_refused(packed: str, tmp_path: Path) -> None:
    from maestro_dist.data.manifest import SymbolSpec

    for normalize, raw, message in (("dataset", True, "statistics of its training"), ("window", False, "without raw")):
        url = str(tmp_path / normalize)
        spec = SymbolSpec(alphabet=4, word={"acc": 8, "eda": 8, "age": 1}, normalize=normalize, raw=raw)
        lengths = {"acc": (16, 3), "eda": (4, 1), "age": (1, 1)}
        add_symbols(packed, url, spec, lambda name, *_, sizes=lengths: np.zeros(sizes[name], dtype=np.uint8))
        with pytest.raises(ConfigError, match=message):
            load_data(DataConfig(url=url, split=BY_NAME))


# kept statistics, and what others do with a divided set


def test_statistics_are_counted_once(config: DataConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first = load_data(config)
    monkeypatch.setattr(cut_data, "counted", None)
    assert load_data(config) == first
    with pytest.raises(TypeError):
        split_by(config, by="subject")
    with pytest.raises(TypeError):
        load_data(changed(config, cache=str(tmp_path / "another")))
    (tmp_path / "run" / "data").mkdir(parents=True)
    (tmp_path / "run" / "data" / "manifest.json").write_text(json.dumps(first.to_json()))
    assert load_data(changed(config, cache=str(tmp_path / "another")), run_url=str(tmp_path / "run")) == first


def test_a_damaged_selection_is_named(config: DataConfig, tmp_path: Path) -> None:
    body = load_data(config).to_json()
    shard = body["splits"]["test"]["shards"][0]
    for rows in ("00" * (len(shard["rows"]) // 2), shard["rows"] + "00", "zz", "f"):
        (tmp_path / "manifest.json").write_text(json.dumps(body).replace(f'"{shard["rows"]}"', f'"{rows}"', 1))
        with pytest.raises(DataError, match=r"manifest\.json: splits\."):
            load_manifest(str(tmp_path))


def test_a_manifest_of_a_run_is_not_divided_again(config: DataConfig, tmp_path: Path) -> None:
    url = shutil.copytree(config.url, tmp_path / "copy")
    (url / "manifest.json").write_text(json.dumps(load_data(config).to_json()))
    with pytest.raises(DataError, match="its manifest is that of a run"):
        load_data(changed(config, url=str(url)))


def test_a_set_for_tests_is_in_order_and_can_be_divided(tmp_path: Path) -> None:
    from maestro_dist.data.lint import lint

    for url in for_tests(tmp_path).values():
        assert [remark for remark in lint(DataConfig(url=url)) if remark.level == "error"] == []
        config = DataConfig(url=url, cache=str(tmp_path / "cache"))
        with pytest.raises(
            ConfigError, match=r"data\.train: .*splits with samples: test \(\d+\); this data set is only"
        ):
            check_splits(config, load_data(config))
        manifest = split_by(config, by="recording", allow_shared_people=True, test=["r0"], validation=["r1"])
        check_splits(config, manifest)
        assert manifest.statistics_of is None
        with pytest.raises(ConfigError) as caught:
            check_splits(config, split_by(config, by="subject", test=1.0, validation=0.0))
        assert "only for tests" not in str(caught.value)
