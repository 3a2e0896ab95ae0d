"""`data.class_balance`: which samples an epoch has, in which order, and what a run does with them."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pytest
import runs
import synthetic as synthetic_data
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_order import slow_numbers, slow_order
from test_data_order import SETTINGS, lengths_of
from tiny import SIZES, describe, source_of

from maestro_dist.config.check import check
from maestro_dist.config.learning import AugmentConfig
from maestro_dist.config.load import load_config
from maestro_dist.config.schema import DataConfig
from maestro_dist.config.windows import SplitConfig, WindowConfig
from maestro_dist.data import class_balance
from maestro_dist.data.class_balance import ClassBalance, class_balance_of, class_weights, deciding_classes, shares_text
from maestro_dist.data.label_sets import ClassCounter
from maestro_dist.data.label_share import KeptSamples
from maestro_dist.data.load import load_data
from maestro_dist.data.manifest import load_manifest
from maestro_dist.data.mixup import partners_of
from maestro_dist.data.order import EpochOrder, OrderSettings, rank_share
from maestro_dist.data.pack import Description, RawRecording, RawSample, pack, pack_recordings
from maestro_dist.data.reader import SplitSource
from maestro_dist.data.shard_index import ShardIndex, load_index
from maestro_dist.data.storage import Storage
from maestro_dist.data.stream import DataRank, TrainSchedule, TrainStream
from maestro_dist.errors import ConfigError, DataError
from maestro_dist.types import Modality

G, N = 6, SIZES["train"]
CLASSES = 4
SKEWED = [0] * 8 + [1] * 3 + [2]  # class 3 has no sample

SHARDS = st.lists(st.lists(st.sampled_from(SKEWED), min_size=0, max_size=12), min_size=1, max_size=20).filter(any)
BALANCE = st.sampled_from([0.25, 0.5, 1.0])


class Shards:
    """The labels of shards that are in memory."""

    def __init__(self, shards: list[list[int]]) -> None:
        self.shards = shards

    def all(self) -> Iterator[np.ndarray]:
        return iter([self.of(shard) for shard in range(len(self.shards))])

    def of(self, shard: int) -> np.ndarray:
        return np.array(self.shards[shard], dtype=np.float64)


def balanced(
    shards: list[list[int]], balance: float, seed: int = 1, counter: ClassCounter | None = None
) -> ClassBalance:
    counter = counter or ClassCounter(CLASSES)
    counts = counter.counts(np.array([label for shard in shards for label in shard], dtype=np.float64))
    return ClassBalance(Shards(shards), counter, counts, balance, seed)


def members(balance: ClassBalance, epoch: int) -> list[np.ndarray]:
    """The sample numbers of each shard in an epoch."""
    own = balance.epoch(epoch)
    return [own.part(shard, 0, count) for shard, count in enumerate(own.counts.tolist())]


def expected_times(shards: list[list[int]], balance: float) -> np.ndarray:
    """How often each sample is to occur in an epoch, as it is specified."""
    labels = [label for shard in shards for label in shard]
    weights = [labels.count(label) ** -balance for label in labels]
    return np.array([len(labels) * weight / math.fsum(weights) for weight in weights])


@settings(max_examples=200, deadline=None)
@given(SHARDS, BALANCE, st.integers(0, 5), st.integers(0, 1000))
def test_an_epoch_has_each_sample_and_class_as_often_as_wanted(
    shards: list[list[int]], balance: float, seed: int, epoch: int
) -> None:
    labels = np.array([label for shard in shards for label in shard])
    times, found = expected_times(shards, balance), members(balanced(shards, balance, seed), epoch)
    counts = np.bincount(np.concatenate(found), minlength=len(labels))
    assert counts.sum() == len(labels)  # an epoch is as long as ever
    assert (counts >= np.floor(times - 1e-6)).all()
    assert (counts <= np.ceil(times + 1e-6)).all()
    starts = np.cumsum([0, *map(len, shards)])
    for shard, (first, end) in enumerate(pairwise(starts.tolist())):
        assert (np.diff(found[shard]) >= 0).all()
        assert ((found[shard] >= first) & (found[shard] < end)).all()
        for label in range(CLASSES):
            own = np.flatnonzero(labels[first:end] == label) + first
            assert abs(counts[own].sum() - times[own].sum()) < 1 + 1e-6


@settings(max_examples=60, deadline=None)
@given(SHARDS, BALANCE, st.integers(0, 5))
def test_every_sample_gets_its_turn(shards: list[list[int]], balance: float, seed: int) -> None:
    """In any epochs in succession, soon; and in the long run as often as it should."""
    times, whole, epochs = expected_times(shards, balance), balanced(shards, balance, seed), 60
    counts = np.stack([np.bincount(np.concatenate(members(whole, e)), minlength=len(times)) for e in range(epochs)])
    for sample, often in enumerate(times.tolist()):
        within = math.ceil(2 / often) + 1
        came = np.flatnonzero(counts[:, sample])
        assert within > epochs or np.diff(np.concatenate([[-1], came, [epochs]])).max() <= within
    assert np.abs(counts.mean(0) - times).max() < 0.1


@settings(max_examples=100, deadline=None)
@given(SHARDS, SETTINGS, BALANCE, st.integers(0, 3), st.integers(1, 7), st.sampled_from([1, 3]))
def test_all_ranks_and_a_start_in_the_middle_give_the_same_order(
    shards: list[list[int]], options: OrderSettings, balance: float, epoch: int, ranks: int, stretch: int
) -> None:
    sizes, whole = list(map(len, shards)), balanced(shards, balance, options.seed)
    options = replace(options, stretch=stretch)
    lengths = lengths_of if stretch > 1 else None
    order = EpochOrder(options, epoch, sizes, whole.epoch(epoch), lengths)
    assert order.samples == whole.samples == sum(sizes)
    if stretch == 1:
        expected = slow_order(options, epoch, sizes, members=members(whole, epoch))
        assert [order.batch(g).tolist() for g in range(order.steps)] == [[n for n, _ in batch] for batch in expected]
    everything = [order.batch(g).tolist() for g in range(order.steps)]
    assert sorted(chain.from_iterable(everything)) == np.concatenate(members(whole, epoch)).tolist()
    again = balanced(shards, balance, options.seed)  # as another rank, or after a restart, makes it
    for g in reversed(range(order.steps)):
        parts = [
            EpochOrder(options, epoch, sizes, again.epoch(epoch), lengths).batch(g, rank_share(len(batch), rank, ranks))
            for batch in [everything[g]]
            for rank in range(ranks)
        ]
        assert np.concatenate(parts).tolist() == everything[g]


@settings(max_examples=60, deadline=None)
@given(SHARDS, SETTINGS, st.integers(1, 7), st.integers(0, 10), st.sampled_from([1, 3]))
def test_groups_name_what_a_rank_reads_before_it_reads_it(
    shards: list[list[int]], options: OrderSettings, ranks: int, number: int, stretch: int
) -> None:
    whole = balanced(shards, 1.0, options.seed)
    epoch = whole.epoch(2)
    lengths = lengths_of if stretch > 1 else None
    order = EpochOrder(replace(options, stretch=stretch), 2, list(map(len, shards)), epoch, lengths)
    number %= order.steps
    for rank in range(ranks):
        pieces = [(batch, piece) for batch, group in order.groups(number, rank, ranks) for piece in group]
        first_use: dict[int, int] = {}
        for batch, piece in pieces:
            for n in epoch.part(*piece).tolist():
                first_use[n] = min(batch, first_use.get(n, batch))
        for g in range(number, order.steps):
            share = rank_share(len(order.batch(g)), rank, ranks)
            assert all(first_use[n] <= g for n in order.batch(g, share).tolist())


@pytest.mark.parametrize("shards", [[[2, 2, 2], [2], [], [2, 2]], [[0, 1, 3], [1, 0, 0], [3, 1, 3]]])
def test_one_class_or_equal_classes_are_read_as_ever(shards: list[list[int]]) -> None:
    sizes, options = list(map(len, shards)), OrderSettings(3, 2, 2)
    for epoch in range(20):
        plain = EpochOrder(options, epoch, sizes, KeptSamples(3, sizes))
        order = EpochOrder(options, epoch, sizes, balanced(shards, 1.0, 3).epoch(epoch))
        assert [order.batch(g).tolist() for g in range(5)] == [plain.batch(g).tolist() for g in range(5)]


def test_a_class_with_one_sample_comes_as_often_as_the_others() -> None:
    shards = [[0] * 50 for _ in range(10)]
    shards[4][7] = 1
    whole = balanced(shards, 1.0)
    assert whole.shares.tolist() == pytest.approx([0.5, 0.5, 0, 0])
    for epoch in range(5):
        found = np.concatenate(members(whole, epoch))
        assert (found == 207).sum() == 250
        assert len(set(found.tolist())) == 251
    seen = {n for epoch in range(4) for part in members(whole, epoch) for n in part.tolist()}
    assert len(seen) == 500
    order = EpochOrder(OrderSettings(1, 20, 4, lanes=4), 0, [50] * 10, whole.epoch(0))
    assert order.samples == 500


def test_what_comes_again_is_spread_over_its_group() -> None:
    shards = [[0] * 95 + [1] * 5]
    order = EpochOrder(OrderSettings(1, 10, 8), 0, [100], balanced(shards, 1.0).epoch(0))
    batches = [order.batch(g).tolist() for g in range(10)]
    assert [sum(n >= 95 for batch in batches for n in batch)] == [50]
    assert max(batch.count(n) for batch in batches for n in set(batch)) <= 4
    assert all(1 <= sum(n >= 95 for n in batch) <= 9 for batch in batches)


def test_wrong_labels_count_as_the_most_frequent_class() -> None:
    labels = np.array([0.0, 1.0, math.nan, math.inf, -1.0, 7.0, 0.5, 2.0**60])
    assert deciding_classes(labels, ClassCounter(3), [1, 5, 2]).tolist() == [0, 1, 1, 1, 1, 1, 1, 1]
    assert deciding_classes(labels[:0], ClassCounter(3), [1, 5, 2]).tolist() == []
    several = ClassCounter(3, several=True)
    assert deciding_classes(labels, several, [1, 5, 2]).tolist() == [1, 0, 1, 1, 1, 0, 1, 1]  # 7: all three labels
    assert class_weights([1, 4, 0], 0.5).tolist() == [2, 1, 2]
    assert class_weights([0, 0], 1.0).tolist() == [1, 1]


def test_of_several_labels_the_rarest_decides() -> None:
    shards = [[0b001] * 6 + [0b011] * 2 + [0], [0b001] * 6 + [0]]
    whole = balanced(shards, 1.0, counter=ClassCounter(3, several=True))  # 14 have label 0, 2 have label 1
    times = np.array([1 / 14] * 6 + [1 / 2] * 2 + [1 / 14] + [1 / 14] * 7)
    times *= 16 / times.sum()
    assert whole.shares == pytest.approx([(times[:8].sum() + times[9:15].sum()) / 16, times[6:8].sum() / 16, 0])
    counts = np.stack([np.bincount(np.concatenate(members(whole, e)), minlength=16) for e in range(100)])
    assert counts.mean(0) == pytest.approx(times, abs=0.05)


def test_few_labels_stay_in_memory_and_the_others_are_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    shards = [draw.choice(SKEWED, size=1000).tolist() for _ in range(200)]
    monkeypatch.setattr(class_balance, "_KEPT", 3000)
    tracemalloc.start()
    whole = balanced(shards, 1.0)
    before = tracemalloc.get_traced_memory()[0]
    order = EpochOrder(OrderSettings(1, 256, 8), 0, [1000] * 200, whole.epoch(0))
    read = [order.batch(g) for g in (300, 301)]
    assert tracemalloc.get_traced_memory()[0] - before < 2e6
    tracemalloc.stop()
    assert len(whole._known) == 3
    monkeypatch.undo()
    other = EpochOrder(OrderSettings(1, 256, 8), 0, [1000] * 200, balanced(shards, 1.0).epoch(0))
    assert [other.batch(g).tolist() for g in (300, 301)] == [part.tolist() for part in read]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.integers(0, 5), min_size=0, max_size=9), min_size=1, max_size=4), st.integers(0, 9))
def test_a_sample_is_mixed_with_another_where_the_lane_has_enough(of_lanes: list[list[int]], step: int) -> None:
    numbers = np.array([10 * n for own in of_lanes for n in own], dtype=np.int64)
    lanes = np.repeat(np.arange(len(of_lanes)), list(map(len, of_lanes)))
    partners = partners_of(numbers, lanes, seed=1, step=step)
    for lane, own in enumerate(of_lanes):
        pairs = list(zip(numbers[lanes == lane].tolist(), partners[lanes == lane].tolist(), strict=True))
        assert sorted(partner for _, partner in pairs) == sorted(10 * n for n in own)
        most = max((own.count(n) for n in own), default=0)
        assert sum(one == other for one, other in pairs) == max(0, 2 * most - len(own))


# packed data


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
    assert list(chain.from_iterable(expected)) == [
        n for batch in slow_order(OrderSettings(3, G, 2), 0, sizes) for n, _ in batch
    ]
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
