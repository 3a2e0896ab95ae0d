from __future__ import annotations

import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_order import slow_order

from maestro_dist.config.learning import MissingConfig
from maestro_dist.data.label_share import KeptSamples
from maestro_dist.data.missing import drop_modalities, drop_probability, evaluation_mask
from maestro_dist.data.order import EpochOrder, OrderSettings, lane_count, rank_share, steps_per_epoch
from maestro_dist.types import Modality

MODALITIES = [Modality(name, 1, 1.0, 1) for name in ("acc", "bvp", "eda")]


SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=30)
SETTINGS = st.builds(
    OrderSettings,
    seed=st.integers(0, 5),
    global_batch=st.integers(1, 70),
    shuffle_shards=st.integers(1, 8),
    lanes=st.sampled_from([1, 2, 6, 64]),
    mixes=st.booleans(),
)


@settings(max_examples=150, deadline=None)
@given(SIZES, SETTINGS, st.integers(0, 3), st.sampled_from([1.0, 0.5, 0.1]), st.integers(1, 7))
def test_order_is_as_specified_and_the_same_for_all_ranks(
    sizes: list[int], options: OrderSettings, epoch: int, share: float, ranks: int
) -> None:
    kept = KeptSamples(options.seed, sizes, share)
    chosen = np.concatenate([kept.numbers(shard) for shard in range(len(sizes))])
    order = EpochOrder(options, epoch, sizes, kept)
    expected = slow_order(options, epoch, sizes, chosen)
    assert len(expected) == order.steps
    assert order.samples == len(chosen) == kept.counts.sum()
    assert sorted(number for batch in expected for number, _ in batch) == chosen.tolist()
    for g in reversed(range(order.steps)):  # a start in the middle, and backwards
        assert order.batch(g).tolist() == [number for number, _ in expected[g]]
        shares = [rank_share(len(expected[g]), rank, ranks) for rank in range(ranks)]
        parts = [EpochOrder(options, epoch, sizes, kept).batch(g, share) for share in shares]
        assert np.concatenate(parts).tolist() == [number for number, _ in expected[g]]
        for part in shares:
            around, lanes = order.whole_lanes(g, part)
            assert around.start <= part.start <= part.stop <= around.stop
            assert [lane for _, lane in expected[g][around]] == lanes.tolist()


@settings(max_examples=100, deadline=None)
@given(SIZES, SETTINGS, st.integers(1, 7), st.integers(0, 10))
def test_groups_name_what_a_rank_reads_before_it_reads_it(
    sizes: list[int], options: OrderSettings, ranks: int, number: int
) -> None:
    kept = KeptSamples(options.seed, sizes)
    order = EpochOrder(options, 0, sizes, kept)
    check_groups(order, kept, ranks, number % order.steps)


def check_groups(order: EpochOrder, kept: KeptSamples, ranks: int, number: int) -> None:
    for rank in range(ranks):
        groups = order.groups(number, rank, ranks)
        assert [batch for batch, _ in groups] == sorted(batch for batch, _ in groups)
        pieces = [(batch, piece) for batch, group in groups for piece in group]
        first_use = {n: batch for batch, p in pieces for n in kept.numbers(p.shard)[p.first : p.end].tolist()}
        for g in range(number, order.steps):
            share = rank_share(len(order.batch(g)), rank, ranks)
            assert all(first_use[n] <= g for n in order.batch(g, share).tolist())


def lengths_of(numbers: np.ndarray) -> np.ndarray:
    """Of many samples equal ones."""
    return numbers * 7919 % 13


@settings(max_examples=150, deadline=None)
@given(SIZES, SETTINGS, st.integers(2, 5), st.integers(1, 7), st.sampled_from([1.0, 0.5]))
def test_a_stretch_is_sorted_by_length(
    sizes: list[int], options: OrderSettings, stretch: int, ranks: int, share: float
) -> None:
    kept = KeptSamples(options.seed, sizes, share)
    plain, size = EpochOrder(options, 1, sizes, kept), options.global_batch
    options = replace(options, stretch=stretch)
    order = EpochOrder(options, 1, sizes, kept, lengths_of)
    full = order.samples // size
    for start in range(0, order.steps, stretch):
        numbers = range(start, min(start + stretch, full))
        if order.steps > full and start + stretch > full:  # the last, smaller batch stays as it is
            assert order.batch(full).tolist() == plain.batch(full).tolist()
        if not numbers:
            continue
        _, lanes = order.whole_lanes(start, slice(0, size))
        before, after = (np.stack([one.batch(number) for number in numbers]) for one in (plain, order))
        ranking = {}
        for lane in set(lanes.tolist()):
            given, found = before[:, lanes == lane], after[:, lanes == lane]
            expected = given.ravel()[np.argsort(lengths_of(given.ravel()), kind="stable")].reshape(given.shape)
            places = [expected.tolist().index(row) for row in found.tolist()]
            assert sorted(places) == list(range(len(numbers)))
            ranking[lane] = places
        assert len(set(map(tuple, ranking.values()))) == 1  # long ones come together from all lanes
    for number in reversed(range(order.steps)):
        whole = order.batch(number)
        shares = [rank_share(len(whole), rank, ranks) for rank in range(ranks)]
        parts = [EpochOrder(options, 1, sizes, kept, lengths_of).batch(number, share) for share in shares]
        assert np.concatenate(parts).tolist() == whole.tolist()


@settings(max_examples=100, deadline=None)
@given(SIZES, SETTINGS, st.integers(1, 7), st.integers(0, 10), st.integers(2, 5))
def test_sorted_groups_are_named_before_they_are_read(
    sizes: list[int], options: OrderSettings, ranks: int, number: int, stretch: int
) -> None:
    kept = KeptSamples(options.seed, sizes)
    order = EpochOrder(replace(options, stretch=stretch), 0, sizes, kept, lengths_of)
    check_groups(order, kept, ranks, number % order.steps)


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_ranks_read_their_share_of_the_shards(ranks: int) -> None:
    sizes = [100 + shard % 3 for shard in range(200)]
    order = EpochOrder(OrderSettings(1, 64, 8), 0, sizes, KeptSamples(1, sizes))
    assert order.lanes == 64
    read = []
    for rank in range(ranks):
        pieces = [piece for _, group in order.groups(0, rank, ranks) for piece in group]
        read.append(sum(piece.end - piece.first for piece in pieces))
        assert len({piece.shard for piece in pieces}) <= 200 / ranks + 2
    assert sum(read) == sum(sizes)
    assert max(read) <= 1.02 * sum(sizes) / ranks


@pytest.mark.parametrize(
    ("options", "shards", "lanes"),
    [
        ({"global_batch": 256}, 8, 1),  # all shards are shuffled together
        ({"global_batch": 256}, 9, 4),
        ({"global_batch": 256}, 1000, 64),
        ({"global_batch": 48}, 1000, 32),
        ({"global_batch": 48, "mixes": True}, 1000, 4),
        ({"global_batch": 4, "mixes": True}, 1000, 1),
        ({"global_batch": 256, "lanes": 12}, 1000, 12),
        ({"global_batch": 256, "lanes": 12}, 20, 6),
        ({"global_batch": 1}, 1000, 1),
    ],
)
def test_number_of_lanes(options: dict[str, Any], shards: int, lanes: int) -> None:
    assert lane_count(OrderSettings(seed=1, shuffle_shards=8, **options), shards) == lanes


def test_one_lane_shuffles_a_few_shards_at_a_time() -> None:
    sizes = [100] * 20
    order = EpochOrder(OrderSettings(1, 40, 4, lanes=1), 0, sizes, KeptSamples(1, sizes))
    whole = np.concatenate([order.batch(g) for g in range(order.steps)])
    for first in range(0, 2000, 400):
        assert len(set((whole[first : first + 400] // 100).tolist())) == 4
    assert len(set((whole[:40] // 100).tolist())) == 4  # four shards are mixed from the start


def test_order_differs_by_epoch_and_seed_and_mixes_shards() -> None:
    sizes = [100] * 200
    kept = KeptSamples(1, sizes)
    orders = [EpochOrder(OrderSettings(seed, 64, 8), epoch, sizes, kept) for seed in (1, 2) for epoch in (0, 1)]
    whole = [np.concatenate([order.batch(g) for g in range(order.steps)]) for order in orders]
    assert all((a != b).mean() > 0.95 for i, a in enumerate(whole) for b in whole[:i])
    assert len(set((whole[0][:64] // 100).tolist())) >= 60  # each batch has samples of many shards
    assert abs(np.corrcoef(whole[0], np.arange(20000))[0, 1]) < 0.25


def test_the_order_of_a_huge_set_needs_little_memory() -> None:
    sizes = [1000] * 100_000
    tracemalloc.start()
    order = EpochOrder(OrderSettings(1, 256, 8), 0, sizes, KeptSamples(1, sizes))
    assert order.samples == 10**8
    assert len(order.batch(order.steps // 2)) == 256
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


@pytest.mark.parametrize(("samples", "batch", "steps"), [(10, 3, 4), (9, 3, 3), (1, 64, 1)])
def test_steps_per_epoch(samples: int, batch: int, steps: int) -> None:
    assert steps_per_epoch(samples, batch) == steps


def slow_mask(present: np.ndarray, rate: float, draw: int) -> np.ndarray:
    """The evaluation protocol as it is specified, without shortcuts."""
    generator = np.random.default_rng(draw)
    removed = generator.random([len(present), present.shape[1]]) < rate
    kept = np.zeros_like(present)
    for n in range(len(present)):
        left = [m for m in range(present.shape[1]) if present[n, m] and not removed[n, m]]
        natural = [m for m in range(present.shape[1]) if present[n, m]]
        if not left and natural:
            left = [generator.choice(natural)]
        kept[n, left] = True
    return kept


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.4, 0.9, 1.0])
@pytest.mark.parametrize("draw", [0, 2])
def test_evaluation_mask_follows_the_protocol(rate: float, draw: int) -> None:
    present = np.random.default_rng(9).random((200, 5)) < 0.6
    present[3] = False
    kept = evaluation_mask(present, rate, draw)
    assert (kept == slow_mask(present, rate, draw)).all()
    assert (kept.any(axis=1) == present.any(axis=1)).all()
    assert not (kept & ~present).any()
    assert (kept == present).all() == (rate == 0.0)


def test_curriculum() -> None:
    config = MissingConfig(max_rate=0.4, ramp_start=0.2, ramp_end=0.6)
    ramp = [drop_probability(config, step, 100) for step in range(101)]
    assert ramp[:21] == [0.0] * 21
    assert ramp[60:] == [0.4] * 41
    assert ramp[40] == pytest.approx(0.2)
    assert ramp == sorted(ramp)
    assert [drop_probability(MissingConfig(ramp_start=0.5, ramp_end=0.5), s, 10) for s in (4, 5)] == [0.0, 0.4]


def test_drop_never_drops_all_and_has_the_right_rate() -> None:
    present = np.random.default_rng(0).random((20_000, 3)) < 0.8
    present[:50] = False
    sample = np.arange(20_000)
    kept = drop_modalities(present, sample, MODALITIES, p=0.4, seed=1, step=7)
    assert (kept.any(axis=1) == present.any(axis=1)).all()
    assert not (kept & ~present).any()
    whole = present.all(axis=1)
    # of three, each stays with .6, or is the one saved of none (.4^3 / 3)
    assert kept[whole].mean(axis=0) == pytest.approx([0.6 + 0.4**3 / 3] * 3, abs=0.02)
    assert (drop_modalities(present, sample, MODALITIES, p=0.4, seed=1, step=8) != kept).mean() > 0.2
    assert (drop_modalities(present, sample, MODALITIES, p=0.0, seed=1, step=7) == present).all()


def test_drop_does_not_depend_on_the_batch_or_the_order_of_modalities() -> None:
    present = np.random.default_rng(1).random((64, 3)) < 0.9
    sample = np.random.default_rng(2).permutation(1000)[:64]
    kept = drop_modalities(present, sample, MODALITIES, p=0.7, seed=3, step=4)
    rows = [
        drop_modalities(present[i : i + 1], sample[i : i + 1], MODALITIES, p=0.7, seed=3, step=4) for i in range(64)
    ]
    assert (np.concatenate(rows) == kept).all()
    turned = drop_modalities(present[:, ::-1], sample, MODALITIES[::-1], p=0.7, seed=3, step=4)
    assert (turned[:, ::-1] == kept).all()
    assert drop_modalities(present[:0], sample[:0], MODALITIES, p=0.7, seed=3, step=4).shape == (0, 3)
