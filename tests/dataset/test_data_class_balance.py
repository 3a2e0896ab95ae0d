"""`data.class_balance`: which samples an epoch has, in which order, and what a run does with them."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_order import slow_order
from test_data_order import SETTINGS, lengths_of

from maestro_dist.data import class_balance
from maestro_dist.data.class_balance import ClassBalance, class_weights, deciding_classes
from maestro_dist.data.label_sets import ClassCounter
from maestro_dist.data.label_share import KeptSamples
from maestro_dist.data.mixup import partners_of
from maestro_dist.data.order import EpochOrder, OrderSettings, rank_share

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
