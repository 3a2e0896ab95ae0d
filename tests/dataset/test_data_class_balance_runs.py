"""`data.class_balance` of packed data: ranks, readers, refusals, and whole runs."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import runs
import synthetic as synthetic_data
from slow_order import slow_numbers
from tiny import SIZES, describe, source_of

from maestro_dist.config.check import check
from maestro_dist.config.learning import AugmentConfig
from maestro_dist.config.load import load_config
from maestro_dist.config.schema import DataConfig
from maestro_dist.config.windows import SplitConfig, WindowConfig
from maestro_dist.data.class_balance import class_balance_of, shares_text
from maestro_dist.data.load import load_data
from maestro_dist.data.manifest import load_manifest
from maestro_dist.data.order import OrderSettings
from maestro_dist.data.pack import Description, RawRecording, RawSample, pack, pack_recordings
from maestro_dist.data.reader import SplitSource
from maestro_dist.data.shard_index import ShardIndex, load_index
from maestro_dist.data.storage import Storage
from maestro_dist.data.stream import DataRank, TrainSchedule, TrainStream
from maestro_dist.errors import ConfigError, DataError
from maestro_dist.types import Modality

G, N = 6, SIZES["train"]


def stream(url: str, balance: float, rank: int = 0, ranks: int = 1, **options: object) -> TrainStream:
    augment = options.pop("augment", None)
    data = DataConfig.model_validate({"url": url, "shuffle_shards": 2, "class_balance": balance, **options})
    schedule = TrainSchedule(seed=3, global_batch=G, total_steps=10)
    return TrainStream(source_of(url, config=data, augment=augment), schedule, DataRank(rank, ranks))


@pytest.fixture(scope="module")
def rare(tmp_path_factory: pytest.TempPathFactory, samples: list[RawSample]) -> str:
    """The small data set with few samples of one class, and none of another in the training split."""
    url, found = str(tmp_path_factory.mktemp("rare") / "data"), []
    for number, sample in enumerate(samples):
        label = int(number % 8 == 3) if sample.split == "train" else sample.label
        found.append(replace(sample, label=label))
    pack(url, describe(), found, shard_bytes=20_000)
    return url


@pytest.mark.parametrize("mixup", [0.0, 0.4])
def test_ranks_and_readers_share_a_balanced_epoch(rare: str, mixup: float) -> None:
    more = {"augment": AugmentConfig(mixup=mixup)} if mixup else {}
    whole = stream(rare, 1.0, **more)
    assert (whole.samples, whole.steps_per_epoch) == (N, 9)
    batches = list(whole.batches(0, 2 * N))
    for epoch in range(2):
        labels = [label for b in batches if b.epoch == epoch for label in b.target.tolist()]
        shards = len(load_manifest(rare).split("train").shards)
        assert len(labels) == N
        assert abs(sum(labels) - N / 2) <= shards
    streams = [stream(rare, 1.0, rank, 3, loader_workers=rank % 2, **more) for rank in range(3)]
    parts = [list(one.batches(2 * G, 2 * N)) for one in streams]  # from the middle of an epoch
    for step, batch in enumerate(batches[2:]):
        own = [part[step] for part in parts]
        assert [n for b in own for n in b.sample.tolist()] == batch.sample.tolist()
        for name in ("mix", "partner_target"):
            if mixup:
                assert [v for b in own for v in getattr(b, name).tolist()] == getattr(batch, name).tolist()
        for row, key in enumerate(key for b in own for key in b.keys):
            assert key == batch.keys[row]
    for batch in batches:  # what comes twice in a batch is the same twice
        for name, rows in batch.rows.items():
            values = dict(zip(rows.tolist(), batch.values[name], strict=True))
            for row, number in enumerate(batch.sample.tolist()):
                twin = batch.sample.tolist().index(number)
                if not mixup and row in values:
                    assert np.array_equal(values[row].numpy(), values[twin].numpy(), equal_nan=True)


def test_without_it_no_index_is_read_and_nothing_changes(rare: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = stream(rare, 0.0)
    expected = [b.sample.tolist() for b in plain.batches(0, N)]
    sizes = load_manifest(rare).split("train").shard_samples
    assert list(chain.from_iterable(expected)) == slow_numbers(OrderSettings(3, G, 2), 0, sizes)
    with monkeypatch.context() as patch:
        patch.setattr(SplitSource, "indexes", None)
        assert stream(rare, 0.0).notes() == stream(rare, 0.0).warnings() == []
    balanced_one = stream(rare, 0.5)
    assert balanced_one.notes() == balanced_one.warnings() == []


def test_old_indexes_are_refused(rare: str, tmp_path: Path) -> None:
    url = str(tmp_path / "old")
    shutil.copytree(rare, url)
    storage, manifest = Storage(url), json.loads(Path(url, "manifest.json").read_text())
    shards = load_manifest(url).split("train").shards
    for shard, entry in zip(shards, manifest["splits"]["train"]["shards"], strict=True):
        found = load_index(storage, shard)
        old = ShardIndex(found.keys, found.members, found.offsets, found.sizes).to_bytes()
        storage.write(shard.index, old)
        entry["index_sha256"] = hashlib.sha256(old).hexdigest()
    storage.write("manifest.json", json.dumps(manifest).encode())
    with pytest.raises(
        DataError, match=r"train-000000\.index: an index of an older version, .*pack the data set again"
    ):
        stream(url, 1.0)
    assert len(list(stream(url, 0.0).batches(0, N))) == 9


def test_windows_of_recordings_are_balanced(tmp_path: Path) -> None:
    """With batches of like lengths, and as the same windows packed; no index is read for it."""
    pulse = Modality("pulse", 1, 4.0, 40)
    about = Description(
        "nights", "internal", "", "none", task="classification", classes=("calm", "restless", "never"), target="state",
        window_s=10.0, modalities=(pulse,), window=WindowConfig(length_s=10.0),
    )  # fmt: skip

    def nights() -> Iterator[RawRecording]:
        draw = np.random.default_rng(0)
        for night in range(40):
            length = 80.0 if night % 4 else 6.0
            states = (
                [(0.0, length, "calm")] if night % 10 else [(0, length / 2, "restless"), (length / 2, length, "calm")]
            )
            yield RawRecording(
                f"n{night}", {"pulse": draw.normal(size=(int(4 * length), 1))}, states, subject=f"p{night}"
            )

    pack_recordings(tmp_path / "data", about, nights(), shard_bytes=6000)
    split = SplitConfig(by="subject", test=0.1, validation=0.1)
    config = DataConfig(
        url=str(tmp_path / "data"), cache=str(tmp_path / "c"), split=split, like_lengths=4, class_balance=1.0,
        shuffle_shards=2,
    )  # fmt: skip
    manifest = load_data(config)
    source = SplitSource(config.url, manifest, config, tuple(manifest.select(None)), "train")
    counts = manifest.split("train").class_counts
    assert len(manifest.split("train").shards) > 4
    assert min(counts[:2]) * 5 < max(counts)
    streams = [TrainStream(source, TrainSchedule(3, 8, 100), DataRank(rank, 2)) for rank in range(2)]
    batches = [list(one.batches(0, one.samples)) for one in streams]
    labels = [label for part in batches for b in part for label in b.target.tolist()]
    assert len(labels) == sum(counts)
    assert abs(sum(labels) - len(labels) / 2) <= len(manifest.split("train").shards)
    found = [
        b.sample.tolist() for b in TrainStream(source, TrainSchedule(3, 8, 100), DataRank()).batches(0, sum(counts))
    ]
    assert found == [a.sample.tolist() + b.sample.tolist() for a, b in zip(*batches, strict=True)]
    again = class_balance_of(source, 3)
    with again._lock:
        again._known.clear()  # then the labels of a shard come from the table
    assert [again.epoch(0).part(0, 0, 3).tolist()] == [class_balance_of(source, 3).epoch(0).part(0, 0, 3).tolist()]


# runs


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data.class_balance=1.5"], "data.class_balance"),
        (["data.class_balance=nan"], "data.class_balance"),
        (["data.class_balance=1", "data.label_share=0.5"], "not possible with data.label_share=0.5; use 0"),
        (["data.class_balance=1", "task.class_weights=balanced"], "corrects for rare classes twice"),
        (["data.class_balance=1", "task.kind=pretrain"], "needs classes, which task.kind=pretrain does not use"),
        (["data.class_balance=1", "task.kind=regression"], "needs classes"),
    ],
)
def test_what_cannot_work_is_refused(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check(load_config(None, ["data.url=x", *words]))


def test_several_data_sets_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"not possible with several data sets .data\.sources"):
        check(load_config(None, ["data.sources=[{url: a}, {url: b}]", "data.class_balance=0.5"]))


def test_numbers_are_no_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    synthetic_data.write(str(tmp_path / "data"), "regression")
    assert runs.train(tmp_path, str(tmp_path / "data"), "data.class_balance=0.5") == 2
    assert "data.class_balance: 0.5, but the samples of 'synthetic' have no classes" in capsys.readouterr().err


def test_a_line_names_the_rarest_and_the_most_frequent() -> None:
    assert shares_text(["a", "b", "c"], [0.9, 0.1, 0.0], [0.5, 0.5, 0.0]) == (
        "b 50.0% instead of 10.0%, a 50.0% instead of 90.0%"
    )
    text = shares_text(list("abcdefghij"), np.arange(1, 11) / 55, [0.1] * 10)
    assert text.startswith("a 10.0% instead of 1.8%, b ")
    assert ", d 10.0% instead of 7.3%, ..., g 10.0%" in text


@pytest.fixture(scope="module")
def rare_synthetic(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The synthetic data set with every eighth sample of its two frequent classes' number in the third."""
    url = str(tmp_path_factory.mktemp("rare_synthetic") / "data")
    kept = [
        sample
        for number, sample in enumerate(synthetic_data.samples())
        if sample.split != "train" or sample.label != 2 or number % 4 == 0
    ]
    pack(url, synthetic_data.describe(), kept, shard_bytes=24_000)
    return url


def test_windows_that_are_divided_anew_are_balanced(rare_synthetic: str, tmp_path: Path) -> None:
    split = SplitConfig(by="subject", test=["s0"], validation=["s1"])
    config = DataConfig(url=rare_synthetic, cache=str(tmp_path), split=split, class_balance=1.0, shuffle_shards=2)
    manifest = load_data(config)
    entry = manifest.split("train")
    assert len(entry.shards) > 3
    assert any(shard.selected is not None for shard in entry.shards)
    source = SplitSource(config.url, manifest, config, tuple(manifest.select(None)), "train")
    whole = TrainStream(source, TrainSchedule(3, 8, 100), DataRank())
    counts = np.bincount([label for b in whole.batches(0, whole.samples) for label in b.target.tolist()], minlength=3)
    assert counts.sum() == entry.samples
    assert np.abs(counts - entry.samples / 3).max() < np.abs(np.array(entry.class_counts) - entry.samples / 3).max() / 2


def test_a_run_resumes_to_the_same_weights(
    rare_synthetic: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    split = load_manifest(rare_synthetic).split("train")
    more = [
        "data.class_balance=1", "data.shuffle_shards=2", "data.lanes=2", "checkpoint.every_steps=2",
        "augment.mixup=0.3", "checkpoint.keep_last=9", "augment.jitter=0.05", "evaluation.draws=[0]",
        "evaluation.test_rates=[0]", "optim.epochs=2",
    ]  # fmt: skip
    assert runs.train(tmp_path / "whole", rare_synthetic, *more) == 0
    share = split.class_counts[2] / split.samples
    assert share < 0.15
    assert f"sampling   training sees fast 33.3% instead of {share:.1%}, " in capsys.readouterr().out
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    runs.rewind_to(tmp_path / "parts" / "tiny", 8)  # in the middle of the second epoch
    capsys.readouterr()
    assert runs.train(tmp_path / "parts", rare_synthetic, *more, "data.loader_workers=1") == 0
    assert "resumes at step 8" in capsys.readouterr().out
    runs.assert_same_weights(runs.weights(tmp_path / "whole"), runs.weights(tmp_path / "parts"))
    assert runs.tracked(tmp_path / "whole") == runs.tracked(tmp_path / "parts")
    assert runs.train(tmp_path / "parts", rare_synthetic, *more, "data.class_balance=0") == 2
    assert "data.class_balance 1.0 -> 0.0" in capsys.readouterr().err
