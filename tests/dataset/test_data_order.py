from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maestro_dist.config.learning import MissingConfig
from maestro_dist.data.missing import drop_modalities, drop_probability, evaluation_mask
from maestro_dist.data.order import epoch_order, steps_per_epoch
from maestro_dist.types import Modality

MODALITIES = [Modality(name, 1, 1.0, 1) for name in ("acc", "bvp", "eda")]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=20), st.integers(1, 6), st.integers(0, 5), st.integers(0, 3))
def test_order_is_a_local_permutation(sizes: list[int], window: int, seed: int, epoch: int) -> None:
    order = epoch_order(seed, epoch, sizes, window)
    assert sorted(order.tolist()) == list(range(sum(sizes)))
    assert (order == epoch_order(seed, epoch, sizes, window)).all()
    shard_of = np.repeat(np.arange(len(sizes)), sizes)[order]
    last_seen = -1
    groups = []  # shards of one window appear together, and no shard comes back after its window
    while last_seen + 1 < len(order):
        start = last_seen + 1
        members = list(dict.fromkeys(shard_of[start:].tolist()))
        chosen = next(
            members[:n] for n in range(1, window + 1) if n == len(members) or (sum(sizes[s] for s in members[:n]) and
            set(shard_of[start : start + sum(sizes[s] for s in members[:n])].tolist()) == set(members[:n]))
        )  # fmt: skip
        groups.append(chosen)
        last_seen = start + sum(sizes[s] for s in chosen) - 1
    assert sorted(s for group in groups for s in group) == list(range(len(sizes)))


def test_order_differs_by_epoch_and_seed_and_mixes_shards() -> None:
    sizes = [100] * 20
    orders = [epoch_order(seed, epoch, sizes, 4) for seed in (1, 2) for epoch in (0, 1)]
    assert all((a != b).mean() > 0.95 for i, a in enumerate(orders) for b in orders[:i])
    alone = [epoch_order(1, epoch, [100], 1) for epoch in (0, 1)]
    assert (alone[0] != alone[1]).mean() > 0.9
    first = orders[0][:400] // 100
    assert len(set(first.tolist())) == 4
    assert len(set(first[:40].tolist())) == 4  # four shards already mixed in the first tenth
    assert abs(np.corrcoef(orders[0], np.arange(2000))[0, 1]) < 0.3


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
