"""Augmentation: each kind against a slow oracle; the whole loader for any number of ranks and micro-batches."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from test_data_stream import STEPS, N, assert_equal, stream

from maestro_dist import rng
from maestro_dist.config.learning import AugmentConfig
from maestro_dist.data.augment import augment, check_augment
from maestro_dist.data.manifest import load_manifest
from maestro_dist.data.sample import DecodedSample
from maestro_dist.errors import ConfigError
from maestro_dist.parallel.sequence import time_cuts
from maestro_dist.types import Modality

AXES = [Modality(f"acc_{axis}", 1, 20.0, 60, "g", (0.3,), (0.9,)) for axis in "xyz"]
OTHERS = [
    Modality("bvp", 1, 64.0, 192, "1", (1.0,), (3.0,)),
    Modality("gyro", 3, 20.0, 60, "rad/s", (0.0, 0.1, 0.2), (1.0, 2.0, 3.0)),
]
MODALITIES = sorted([*AXES, *OTHERS], key=lambda modality: modality.name)
WINDOW_S, SEED, EPOCH = 3.0, 11, 2
ALL = AugmentConfig(jitter=0.1, scaling=0.2, rotation=40.0, time_warp=0.3, shift=0.1, time_mask=0.25)


def samples(gaps: float = 0.0, count: int = 5) -> list[DecodedSample]:
    """Every third sample lacks an axis, every second one the gyroscope."""
    generator = np.random.default_rng(4)
    found = []
    for number in range(count):
        values = {}
        for m in MODALITIES:
            values[m.name] = generator.normal(size=(m.steps, m.variates)).astype(np.float32)
            values[m.name][generator.random(m.steps) < gaps] = np.nan
            values[m.name].flags.writeable = False  # as what was read from a file is
        if number % 3 == 1:
            values.pop("acc_y")
        if number % 2:
            values.pop("gyro")
        found.append(DecodedSample(100 + number, f"k{number}", 0, values))
    return found


def changed(config: AugmentConfig, before: list[DecodedSample], epoch: int = EPOCH) -> list[DecodedSample]:
    return augment(before, config, MODALITIES, WINDOW_S, seed=SEED, epoch=epoch)


def key(kind: str, *of: str) -> int:
    return rng.key(SEED, "augment", kind, EPOCH, *of)


def uniform(key: int, *at: int) -> float:
    return float(rng.uniform(key, *(torch.tensor(index) for index in at)))


def normal(key: int, *at: int) -> float:
    return float(rng.normal(key, *(torch.tensor(index) for index in at)))


def close(found: np.ndarray, expected: Any) -> None:
    np.testing.assert_allclose(found, np.asarray(expected, dtype=np.float32), rtol=2e-5, atol=2e-5)


def test_off_changes_nothing() -> None:
    before = samples(gaps=0.2)
    for one, other in zip(changed(AugmentConfig(), before), before, strict=True):
        assert one is other


def test_noise_and_factors_are_those_of_each_number() -> None:
    before = samples(gaps=0.1)
    after = changed(AugmentConfig(jitter=0.1, scaling=0.2), before)
    for old, new in zip(before, after, strict=True):
        assert (new.number, new.key, new.target, list(new.values)) == (
            old.number,
            old.key,
            old.target,
            list(old.values),
        )
        for m in MODALITIES:
            if m.name not in old.values:
                continue
            expected = np.empty((m.steps, m.variates))
            for d in range(m.variates):
                factor = 1 + 0.2 * normal(key("scaling", m.name), old.number, d)
                for t in range(m.steps):
                    noise = 0.1 * m.std[d] * normal(key("jitter", m.name), old.number, t * m.variates + d)
                    expected[t, d] = m.mean[d] + (old.values[m.name][t, d] - m.mean[d]) * factor + noise
            close(new.values[m.name], expected)


@pytest.mark.parametrize(
    "groups", [[["acc_x", "acc_y", "acc_z"]], [["acc_x", "acc_y", "acc_z", "gyro"]], [["gyro"]], []]
)
def test_axes_turn_in_threes(groups: list[list[str]]) -> None:
    before = samples(gaps=0.1)
    after = changed(AugmentConfig(rotation=90.0, rotation_groups=groups), before)
    turned = 0
    for old, new in zip(before, after, strict=True):
        for group in groups or [["gyro"]]:
            label = "+".join(group)
            axis = np.array([normal(key("rotation", label), old.number, i) for i in range(3)])
            x, y, z = axis / np.linalg.norm(axis) * math.radians(90) * uniform(key("rotation", label), old.number, 3)
            matrix = torch.matrix_exp(torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64)).numpy()
            for names in (["acc_x", "acc_y", "acc_z"], ["gyro"]):
                if names[0] in group and all(name in old.values for name in names):
                    whole = np.concatenate([old.values[name] for name in names], 1)
                    close(np.concatenate([new.values[name] for name in names], 1), whole @ matrix.T)
                    turned += 1
        for name in old.values:
            if not any(name in group for group in groups or [["gyro"]]) or (
                name != "gyro" and "acc_y" not in old.values
            ):
                assert np.array_equal(new.values[name], old.values[name], equal_nan=True)
    assert turned >= 3


def warped(number: int, strength: float, t: float) -> float:
    """The time (seconds) that is read at time t."""
    later = 0.0
    for k in (1, 2, 3):
        size = (2 * uniform(key("time_warp"), number, k) - 1) / 3
        later += strength * size * math.sin(math.pi * k * t / WINDOW_S) / (math.pi * k) * WINDOW_S
    return t + later


def test_a_time_warp_keeps_streams_aligned() -> None:
    """The values of all modalities are the times. After the warp they are the same warped times, in order."""
    values = {m.name: np.repeat(np.arange(m.steps)[:, None] / m.rate_hz, m.variates, 1) for m in MODALITIES}
    before = [DecodedSample(n, "k", 0, {name: x.astype(np.float32) for name, x in values.items()}) for n in range(4)]
    for new in changed(AugmentConfig(time_warp=0.6), before):
        for m in MODALITIES:
            expected = [[warped(new.number, 0.6, t / m.rate_hz)] * m.variates for t in range(m.steps)]
            close(new.values[m.name], np.clip(expected, 0, (m.steps - 1) / m.rate_hz))
            speed = np.diff(new.values[m.name][:, 0]) * m.rate_hz
            assert (speed[:-1] > 0.35).all()
            assert (speed < 1.65).all()
        assert np.abs(new.values["bvp"] - values["bvp"]).max() > 0.02


def test_what_was_not_observed_does_not_spread_and_is_not_filled() -> None:
    x = np.sin(np.arange(60, dtype=np.float32) / 4)[:, None]
    x[20:40] = np.nan
    x[30:33] = 5.0  # alone among gaps
    (new,) = changed(AugmentConfig(time_warp=0.5), [DecodedSample(3, "k", 0, {"acc_x": x})])
    where = np.array([warped(3, 0.5, t / 20) * 20 for t in range(60)])
    nearest = x[np.clip(np.rint(where), 0, 59).astype(int), 0]
    found = new.values["acc_x"][:, 0]
    assert np.array_equal(np.isnan(found), np.isnan(nearest))
    assert set(found[(where > 29) & (where < 33) & ~np.isnan(found)]) == {np.float32(5.0)}


def test_a_shift_moves_all_streams_by_whole_steps() -> None:
    before = samples()
    for old, new in zip(before, changed(AugmentConfig(shift=0.5), before), strict=True):
        later = (2 * uniform(key("shift"), old.number) - 1) * 0.5 * WINDOW_S
        for name, x in old.values.items():
            rate = x.shape[0] / WINDOW_S
            steps = round(later * rate)
            expected = np.full_like(x, np.nan)
            if steps >= 0:
                expected[steps:] = x[: len(x) - steps]
            else:
                expected[:steps] = x[-steps:]
            assert np.array_equal(new.values[name], expected, equal_nan=True)


def test_a_mask_takes_one_span_of_each_modality() -> None:
    before = samples(count=40)
    after = changed(AugmentConfig(time_mask=0.4), before)
    lengths = []
    for old, new in zip(before, after, strict=True):
        for name, x in new.values.items():
            gone = np.isnan(x).all(1)
            assert np.array_equal(x[~gone], old.values[name][~gone])
            assert np.count_nonzero(np.diff(np.concatenate([[0], gone, [0]]))) in (0, 2)
            lengths.append(gone.mean())
    assert max(lengths) <= 0.41
    assert np.mean(lengths) == pytest.approx(0.2, abs=0.03)


def windows(batches: Any) -> dict[tuple[int, int, str], np.ndarray]:
    """Every window by (step, sample, modality)."""
    found = {}
    for batch in batches:
        for name, rows in batch.rows.items():
            for at, row in enumerate(rows.tolist()):
                found[batch.step, int(batch.sample[row]), name] = batch.values[name][at].numpy()
    return found


def assert_same(one: dict[Any, np.ndarray], other: dict[Any, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    assert [key for key in one if not np.array_equal(one[key], other[key], equal_nan=True)] == []


def test_the_cut_of_the_work_changes_no_window(packed: str) -> None:
    whole = windows(stream(packed, augment=ALL).batches(0, 2 * N))
    for ranks, micro in ((2, 3), (3, 1)):
        parts = [windows(stream(packed, rank, ranks, micro, augment=ALL).batches(0, 2 * N)) for rank in range(ranks)]
        assert_same({key: x for part in parts for key, x in part.items()}, whole)
    start = STEPS + 2
    later = windows(stream(packed, augment=ALL).batches(N + 2 * 12, 2 * N))
    assert_same(later, {key: x for key, x in whole.items() if key[0] >= start})
    plain = windows(stream(packed).batches(0, 2 * N))
    assert plain.keys() == whole.keys()
    assert not any(np.array_equal(plain[key], whole[key], equal_nan=True) for key in plain)
    twice = [[x for (step, n, name), x in whole.items() if (n, name) == (7, key) and (step < STEPS) == first]
             for key in ("acc", "ecg", "temp") for first in (True, False)]  # fmt: skip
    assert not any(np.array_equal(a[0], b[0]) for a, b in zip(twice[::2], twice[1::2], strict=True) if a and b)


def test_slices_of_time_join_to_the_augmented_whole(packed: str) -> None:
    cuts = {m.name: time_cuts(m.steps, 4, 2) for m in load_manifest(packed).select(None)}
    parts = [
        windows(stream(packed, slices={n: (e[rank], e[rank + 1]) for n, e in cuts.items()}, augment=ALL).batches(0, N))
        for rank in range(2)
    ]
    whole = windows(stream(packed, augment=ALL).batches(0, N))
    assert_same({key: np.concatenate([part[key] for part in parts]) for key in whole}, whole)


def test_recording_statistics_stay(packed: str) -> None:
    for plain, other in zip(stream(packed).batches(0, N), stream(packed, augment=ALL).batches(0, N), strict=True):
        other.values = plain.values
        assert_equal(plain, other)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (
            {"rotation": 9, "rotation_groups": [["acc_x", "acc_y"]]},
            r"\[acc_x, acc_y\] has 2 axes; give a multiple of three",
        ),
        ({"rotation": 9, "rotation_groups": [["acc_x", "acc_y", "acc_x"]]}, "each axis once"),
        (
            {"rotation": 9, "rotation_groups": [["acc_x", "acc_y", "bvp"]]},
            "acc_x, acc_y, bvp rotate together, but differ",
        ),
        ({"rotation": 9, "rotation_groups": [["acc"]]}, "modality 'acc' is not used; there are acc_x"),
    ],
)
def test_what_does_not_fit_the_data_is_refused(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_augment(AugmentConfig.model_validate(asked), MODALITIES)


def test_rotation_needs_axes_and_noise_needs_statistics() -> None:
    with pytest.raises(ConfigError, match=r"no modality has three variates; name the axes in augment\.rotation_groups"):
        check_augment(AugmentConfig(rotation=9), AXES)
    with pytest.raises(ConfigError, match=r"augment\.jitter: the manifest has no mean and std of modality 'x'"):
        check_augment(AugmentConfig(jitter=0.1), [Modality("x", 1, 1.0, 4)])
    check_augment(AugmentConfig(), [Modality("x", 1, 1.0, 4)])
