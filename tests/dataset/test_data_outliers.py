"""Outliers are found, a signal is not; outliers change neither the mean nor the standard deviation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from maestro_dist.data.outliers import Bulk, FarValues, ValueHistogram

WINDOW, COUNT = 64, 101
DRAW = np.random.default_rng(3).normal(size=(5, WINDOW * COUNT))
NOISE, OTHER = DRAW[0], DRAW[1]
TWO = slice(0, 2 * WINDOW)  # two windows of 101


def spread(values: np.ndarray) -> ValueHistogram:
    found = ValueHistogram(1)
    for window in values.astype(np.float32).reshape(-1, WINDOW, 1):
        found.add(window)
    return found


def bulk_of(values: np.ndarray) -> tuple[Bulk, FarValues | None]:
    found = spread(values)
    bulk = found.bulk(0)
    assert bulk is not None
    return bulk, found.far_values(0, bulk)


def changed(values: np.ndarray, where: slice, new: float | np.ndarray) -> np.ndarray:
    copy = values.copy()
    copy[where] = new
    return copy


@pytest.mark.parametrize("absurd", [1e30, -1e30, 1e6, -9999.0, 3e38, "scaled", "varied"])
@pytest.mark.parametrize(("scale", "mean"), [(1.0, 0.0), (2.0, 97.0), (0.01, 36.6), (1e-6, 0.0)])
def test_two_absurd_samples_of_a_hundred(absurd: float | str, scale: float, mean: float) -> None:
    clean = mean + scale * NOISE
    new = {"scaled": clean[TWO] * 1e6, "varied": OTHER[TWO] * 1e30}.get(absurd, absurd)  # type: ignore[call-overload]
    if absurd == "scaled" and mean:
        new = new * OTHER[TWO]
    bulk, found = bulk_of(changed(clean, TWO, new))
    assert found is not None
    assert (found.windows, found.numbers) == (2, 2 * WINDOW)
    assert abs(found.largest) == pytest.approx(np.abs(new).max(), rel=1e-6)
    assert bulk.mean == pytest.approx(clean[TWO.stop :].mean(), rel=1e-5, abs=1e-6 * scale)
    assert bulk.std == pytest.approx(clean[TWO.stop :].std(), rel=1e-3)


@pytest.mark.parametrize(
    ("where", "windows"),
    [(slice(5, 6), 1), (slice(5, WINDOW * COUNT, WINDOW), COUNT), (slice(0, 8 * WINDOW), 8)],
    ids=["one step", "a step of each window", "8 windows"],
)
def test_wherever_a_broken_reading_is(where: slice, windows: int) -> None:
    bulk, found = bulk_of(changed(80 + 20 * NOISE, where, 1e9))
    assert found is not None
    assert found.windows == windows
    assert bulk.std == pytest.approx(20, rel=0.05)


def test_two_placeholders_at_both_ends() -> None:
    bulk, found = bulk_of(changed(changed(NOISE, slice(0, 64), -9999.0), slice(64, 128), 1e20))
    assert found is not None
    assert (found.windows, found.largest) == (2, pytest.approx(1e20))
    assert bulk.std == pytest.approx(1, rel=0.05)


RARE = slice(0, 128)
SIGNALS: dict[str, Callable[[], np.ndarray]] = {
    "noise": lambda: NOISE,
    "constant": lambda: 0 * NOISE + 97,
    "zeros and a few constant ones": lambda: changed(0 * NOISE, RARE, 50.0),
    "zeros and rare bursts": lambda: changed(0 * NOISE, RARE, 1000 * OTHER[RARE]),
    "a switch with noise": lambda: changed(0.001 * NOISE, RARE, 5 + 0.001 * NOISE[RARE]),
    "a kettle's power": lambda: changed(1 + 0.5 * NOISE, RARE, 2000 + 10 * NOISE[RARE]),
    "bursts in faint noise": lambda: changed(0.001 * NOISE, slice(0, 640), OTHER[:640]),
    "heavy tails": lambda: NOISE / OTHER,
    "very skewed": lambda: np.exp(10 * NOISE),
    "acid-base with typing errors": lambda: changed(7.4 + 0.05 * NOISE, slice(0, 6), [735, 734, 733, 94, 95, 1.0]),
    "pressure": lambda: 101325 + 300 * NOISE,
    "two values": lambda: np.where(NOISE > 3.0, 1.0, 0.0),
    "all over again": lambda: changed(NOISE, slice(0, len(NOISE) // 2), 1e6),
}


@pytest.mark.parametrize("name", list(SIGNALS))
def test_signals_are_left_alone(name: str) -> None:
    assert bulk_of(SIGNALS[name]())[1] is None


def test_neither_order_nor_windows_matter() -> None:
    values = changed(NOISE, TWO, 1e30)
    bulk, found = bulk_of(values)
    again, found_again = bulk_of(values.reshape(-1, WINDOW)[::-1].reshape(-1))
    assert found_again == found
    assert (again.low, again.high) == (bulk.low, bulk.high)
    assert (again.mean, again.std) == (pytest.approx(bulk.mean, abs=1e-12), pytest.approx(bulk.std, rel=1e-12))


def test_gaps_and_variates() -> None:
    values = np.stack([NOISE, 0 * NOISE, np.full_like(NOISE, np.nan), 5 + NOISE], axis=1)
    values[TWO, 3] = -9999.0
    values[1000:2000, 0] = np.nan
    found = ValueHistogram(4)
    for window in values.astype(np.float32).reshape(-1, WINDOW, 4):
        found.add(window)
    bulks = [found.bulk(variate) for variate in range(4)]
    assert bulks[2] is None
    assert [bulk is not None and found.far_values(v, bulk) is not None for v, bulk in enumerate(bulks)] == [0, 0, 0, 1]
    assert bulks[0] is not None
    assert bulks[0].std == pytest.approx(np.nanstd(values[:, 0]), rel=1e-6)


def test_other_windows_are_measured_by_the_bulk_of_these() -> None:
    bulk = spread(NOISE).bulk(0)
    assert bulk is not None
    most = spread(changed(OTHER, slice(0, 90 * WINDOW), -9999.0))  # among themselves they are the bulk
    assert most.far_values(0, bulk) == FarValues(90, 90 * WINDOW, -9999.0)
    assert spread(3 + 5 * OTHER).far_values(0, bulk) is None
