"""Mixup and two views of each sample, compared with the packed samples, for any number of ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from slow_order import slow_order
from test_data_augment import ALL, assert_same
from test_data_stream import CURRICULUM, MODALITIES, NAMES, STEPS, G, N, assert_equal, stream
from tiny import SIZES, rewrite

from maestro_dist.config.learning import AugmentConfig
from maestro_dist.data.manifest import load_manifest
from maestro_dist.data.missing import drop_modalities, drop_probability
from maestro_dist.data.mixup import partners_of, shares_of
from maestro_dist.data.order import OrderSettings
from maestro_dist.data.pack import RawSample
from maestro_dist.types import Batch

MIXUP = AugmentConfig(mixup=0.4)


def test_partners_form_a_ring_of_each_lane() -> None:
    whole, lanes = np.arange(100, 112) * 3, np.repeat([0, 2, 5], [6, 4, 2])
    partners = partners_of(whole, lanes, seed=1, step=5)
    for lane in (0, 2, 5):
        members = lanes == lane
        assert sorted(partners[members]) == sorted(whole[members])
    assert not (partners == whole).any()
    shuffled = np.random.default_rng(0).permutation(6)  # within the first lane
    assert np.array_equal(partners_of(whole[:6][shuffled], lanes[:6], seed=1, step=5), partners[:6][shuffled])
    assert not np.array_equal(partners_of(whole, lanes, seed=1, step=6), partners)
    assert partners_of(whole[:1], lanes[:1], seed=1, step=5).tolist() == [300]
    assert partners_of(whole[:0], lanes[:0], seed=1, step=5).tolist() == []


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_shares_are_drawn_from_beta(alpha: float) -> None:
    shares = shares_of(np.arange(20_000), alpha, seed=3, step=1)
    assert shares.dtype == np.float32
    assert shares.mean() == pytest.approx(0.5, abs=0.01)
    assert shares.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.03)


def test_a_batch_holds_mixtures_of_what_was_packed(packed: str, samples: list[RawSample]) -> None:
    train = [sample for sample in samples if sample.split == "train"]
    shard_samples = load_manifest(packed).splits["train"].shard_samples
    seen = 0
    for batch in stream(packed, augment=MIXUP).batches(0, 2 * N):
        epoch, g = divmod(batch.step, STEPS)
        pairs = slow_order(OrderSettings(3, G, 2, mixes=True), epoch, shard_samples)[g]
        whole, lanes = np.array(pairs).T
        partner = dict(zip(whole.tolist(), partners_of(whole, lanes, seed=3, step=batch.step).tolist(), strict=True))
        p = drop_probability(CURRICULUM, batch.step, 2 * STEPS)
        assert batch.mix is not None
        assert batch.partner_target is not None
        shares = shares_of(batch.sample.numpy(), 0.4, seed=3, step=batch.step)
        assert np.array_equal(batch.mix.numpy(), shares)
        for row, number in enumerate(batch.sample.tolist()):
            one, other = train[number], train[partner[number]]
            assert int(batch.target[row]) == one.label
            assert int(batch.partner_target[row]) == other.label
            there = np.array([[name in one.values or name in other.values for name in NAMES]])
            left = drop_modalities(there, np.array([number]), MODALITIES, p=p, seed=3, step=batch.step)[0]
            assert batch.present[row].tolist() == left.tolist()
            for name in np.array(NAMES)[left].tolist():
                found = batch.values[name][batch.rows[name].tolist().index(row)].numpy()
                a, b = one.values.get(name), other.values.get(name)
                if a is None or b is None:
                    assert np.array_equal(found, b if a is None else a, equal_nan=True)
                    continue
                mixed = shares[row] * a + (1 - shares[row]) * b
                np.testing.assert_allclose(found, np.where(np.isnan(a), b, np.where(np.isnan(b), a, mixed)), rtol=1e-5)
                seen += 1
    assert seen > 100


def numbered(batches: Any) -> dict[Any, np.ndarray]:
    """All fields of each sample in the batches, by (step, sample)."""
    found: dict[Any, np.ndarray] = {}
    for batch in batches:
        for view in range(batch.views):
            rows = range(view * batch.samples, (view + 1) * batch.samples)
            for row in rows:
                at = batch.step, int(batch.sample[row]), view
                for what in ("present", "target", "mix", "partner_target"):
                    tensor = getattr(batch, what)
                    if tensor is not None:
                        found[(*at, what)] = tensor[row].numpy()
            for name in NAMES:
                for place, row in enumerate(batch.rows[name].tolist()):
                    if row in rows:
                        key = batch.step, int(batch.sample[row]), view, name
                        found[key] = batch.values[name][place].numpy()
                        found[(*key, "recording")] = batch.recording[name][place].numpy()
    return found


EVERYTHING = ALL.model_copy(update={"mixup": 0.4})


def test_the_cut_of_the_work_changes_nothing(packed: str) -> None:
    def read(start: int = 0, *cut: Any, **more: Any) -> dict[Any, np.ndarray]:
        return numbered(stream(packed, *cut, augment=EVERYTHING, consistency=1.0, **more).batches(start, 2 * N))

    whole = read()
    for ranks, micro in ((2, 3), (3, 1)):
        parts = [read(0, rank, ranks, micro) for rank in range(ranks)]
        assert_same({key: x for part in parts for key, x in part.items()}, whole)
    assert_same(read(N + 2 * G), {key: x for key, x in whole.items() if key[0] >= STEPS + 2})
    assert_same(read(loader_workers=1), whole)


def test_two_views_are_the_whole_sample_and_the_dropped_one(packed: str) -> None:
    views = stream(packed, consistency=1.0).batches(0, 2 * N), stream(packed).batches(0, 2 * N)
    lost = 0
    for both, dropped in zip(*views, strict=True):
        for what in ("keys", "global_samples", "position", "last", "samples"):
            assert getattr(both, what) == getattr(dropped, what)
        if drop_probability(CURRICULUM, dropped.step, 2 * STEPS) == 0.0:  # both views would be the same
            assert both.views == 1
            assert_equal(both, dropped)
            continue
        half = len(dropped)
        assert (both.views, len(both)) == (2, 2 * half)
        assert torch.equal(both.sample, dropped.sample.repeat(2))
        assert torch.equal(both.target, dropped.target.repeat(2))
        assert torch.equal(both.present[half:], dropped.present)
        assert (both.present[:half] | ~dropped.present).all()
        for name in NAMES:
            second = both.rows[name] >= half
            assert torch.equal(both.rows[name][second] - half, dropped.rows[name])
            assert torch.equal(both.values[name][second].nan_to_num(-9), dropped.values[name].nan_to_num(-9))
            assert both.rows[name].tolist() == both.present[:, NAMES.index(name)].nonzero().flatten().tolist()
            lost += int((~second).sum()) - int(second.sum())
    assert lost > 0


def test_a_bad_partner_leaves_its_sample_unmixed(fresh: str) -> None:
    def change(key: str, members: dict[str, bytes]) -> None:
        if key == "train-007":
            members["json"] = members["json"].replace(b'"label"', b'"lable"')

    rewrite(fresh, change)
    even = AugmentConfig(mixup=4.0)  # no share is nearly 1
    batches: list[Batch] = list(stream(fresh, augment=even, max_bad_samples=1).batches(0, N))
    assert sum(len(batch) for batch in batches) == SIZES["train"] - 1
    assert [len(batch.bad) for batch in batches if batch.bad] == [1]
    unmixed = [(b, row) for b in batches if b.mix is not None for row in (b.mix == 1.0).nonzero().flatten().tolist()]
    ((batch, row),) = [(b, row) for b, row in unmixed if b.bad]
    assert batch.partner_target is not None
    assert batch.partner_target[row] == batch.target[row]
