"""Times and grids of tables: right, or refused with the reason."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pytest

from maestro_dist.data.tables.grid import Steps, on_grid
from maestro_dist.data.tables.times import SECOND, check_clock_changes, in_order, nanoseconds
from maestro_dist.errors import DataError


def column(values: list[object], kind: pa.DataType | None = None) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(values, kind)])


def ns(values: list[object], unit: str, form: str | None = None, zone: str | None = None) -> list[int]:
    return nanoseconds(column(values), unit, form, zone, "x.csv: column 'time'").tolist()


@pytest.mark.parametrize(("unit", "factor"), [("s", 1), ("ms", 10**3), ("us", 10**6), ("ns", 10**9)])
def test_units(unit: str, factor: int) -> None:
    start = 1_700_000_000
    whole = ns([start * factor, (start + 1) * factor, (start + 3) * factor], unit)
    assert whole == [start * SECOND, (start + 1) * SECOND, (start + 3) * SECOND]
    if factor < 10**9:
        (half,) = ns([0.5 * factor], unit)
        assert half == SECOND // 2


def test_nanoseconds_keep_their_last_digit() -> None:
    start = 1_700_000_000_123_456_789  # a float64 would round it to 256 ns
    assert ns([start, start + 1], "ns") == [start, start + 1]


@pytest.mark.parametrize(
    ("values", "unit", "message"),
    [
        ([1_700_000_000_000_000_000], "s", "no time in s; correct its unit"),
        ([1.0, None], "s", "row 2 has no time"),
        ([1.0, float("nan")], "s", "row 2 has nan, which is no time"),
        (["1.0", "x"], "s", "'x' in row 2 is not a number; for dates use unit: date"),
        ([datetime(2024, 1, 1)], "ms", "it has dates .*; use date"),
        (["03.04.2024 10:00:00"], "date", "is not a date of ISO 8601; say its form"),
        ([5], "date", "5 is not a date"),
        ([datetime(1500, 1, 1)], "date", "before 1678 or after 2262"),
    ],
)
def test_what_is_no_time(values: list[object], unit: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        ns(values, unit)
    assert str(caught.value).startswith("x.csv: column 'time'")
    assert "\n" not in str(caught.value)


def test_dates_with_offsets_are_moments() -> None:
    """The same moment in two zones."""
    plain = datetime(2024, 7, 1, 12, tzinfo=UTC)
    utc = int(plain.timestamp()) * SECOND
    assert ns([plain, plain.astimezone(timezone(timedelta(hours=5)))], "date") == [utc, utc]
    assert ns(["01.07.2024 14:00:00 +0200"], "date", "%d.%m.%Y %H:%M:%S %z") == [utc]
    assert ns(["01.07.2024 14:00:00"], "date", "%d.%m.%Y %H:%M:%S", "Europe/Berlin") == [utc]
    assert ns([datetime(2024, 7, 1, 14)], "date", None, "Europe/Berlin") == [utc]
    assert ns([datetime(2024, 7, 1, 12)], "date") == [utc]


def test_a_date_of_another_form_is_named() -> None:
    with pytest.raises(DataError, match=r"row 2 has '2024-07-01', which is not of the form"):
        ns(["01.07.2024", "2024-07-01"], "date", "%d.%m.%Y")


def test_an_unknown_zone_is_named() -> None:
    with pytest.raises(DataError, match="no time zone 'Europe/Berln'"):
        ns([datetime(2024, 7, 1)], "date", None, "Europe/Berln")


def local_clock(start: datetime, minutes: int, zone: str) -> tuple[list[object], list[int]]:
    """What a wall clock shows each minute, and the true moments."""
    moments = [start + timedelta(minutes=m) for m in range(minutes)]
    shown = [moment.astimezone(ZoneInfo(zone)).replace(tzinfo=None) for moment in moments]
    return list(shown), [int(moment.timestamp()) * SECOND for moment in moments]


AUTUMN = datetime(2024, 10, 26, 23, 0, tzinfo=UTC)  # 01:00 summer time; at 01:00 UTC clocks go back
SPRING = datetime(2024, 3, 30, 23, 0, tzinfo=UTC)


@pytest.mark.parametrize("start", [AUTUMN, SPRING])
def test_a_night_with_a_clock_change_is_right_with_its_zone(start: datetime) -> None:
    shown, true = local_clock(start, 300, "Europe/Berlin")
    assert ns(shown, "date", None, "Europe/Berlin") == true


def test_a_night_with_a_clock_change_is_refused_without_a_zone() -> None:
    shown, _ = local_clock(AUTUMN, 300, "Europe/Berlin")
    with pytest.raises(DataError, match=r"time goes back .*about an hour: the end of daylight saving"):
        in_order(np.array(ns(shown, "date")), "x.csv")
    shown, _ = local_clock(SPRING, 300, "Europe/Berlin")
    times = np.array(ns(shown, "date"))
    assert in_order(times, "x.csv") is None
    with pytest.raises(DataError, match="jumps by one hour at 2024-03-31T03:00:00: the start of daylight saving"):
        check_clock_changes(times, "x.csv")
    check_clock_changes(times[:100], "x.csv")


def test_an_hour_that_the_zone_does_not_have_is_refused() -> None:
    with pytest.raises(DataError, match="do not fit the zone"):
        ns([datetime(2024, 3, 31, 2, 30)], "date", None, "Europe/Berlin")


def test_times_of_day_go_on_after_midnight() -> None:
    values = column([86_398, 86_399, 0, 1], pa.time32("s"))
    assert np.diff(nanoseconds(values, "date", None, None, "x")).tolist() == [SECOND] * 3


def test_rows_out_of_turn_are_sorted_and_blocks_too() -> None:
    times = np.arange(100) * SECOND
    assert in_order(times, "x") is None
    for order in (np.r_[50:100, 0:50], np.r_[0:10, 11, 10, 12:100]):
        found = in_order(times[order], "x")
        assert found is not None
        np.testing.assert_array_equal(times[order][found], times)


@pytest.mark.parametrize(
    "second", [np.arange(100) * SECOND, np.arange(20, 60) * SECOND + 1, np.arange(99, 200) * SECOND // 2]
)
def test_two_recordings_in_one_file_are_refused(second: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"x.csv: in row \d+ time goes back.*name the column that tells them apart"):
        in_order(np.concatenate([np.arange(100) * SECOND, second]), "x.csv")


def grid(
    times: np.ndarray, values: np.ndarray, rate: float, rule: str = "auto"
) -> tuple[np.ndarray, float, Counter[str]]:
    """Values on the grid, its start in seconds, and the notes; `times` in seconds."""
    notes = Counter[str]()
    given = np.round(np.asarray(times) * SECOND).astype(np.int64)
    values = np.asarray(values, dtype=np.float64).reshape(len(given), -1)
    stream = on_grid(given, values, Steps(rate, rule, 0), "x.csv: acc", notes)
    assert stream is not None
    return stream.values, stream.start / SECOND, notes


def test_exact_times_keep_their_values_and_gaps_stay_gaps() -> None:
    times, values = np.arange(1000) / 32, np.random.default_rng(0).normal(size=(1000, 3)).astype(np.float32)
    found, _, _ = grid(times, values, 32)
    np.testing.assert_array_equal(found, values)
    keep = np.r_[0:100, 200:1000]
    found, _, _ = grid(times[keep] + 5, values[keep], 32)
    assert np.isnan(found[100:200]).all()
    np.testing.assert_array_equal(found[keep], values[keep])


def test_milliseconds_of_a_rate_that_they_cannot_hold() -> None:
    """32 Hz written in whole milliseconds: 0, 31, 62 (62.5), 94 (93.75), ..."""
    values = np.arange(3200.0)
    found, _, _ = grid(np.round(np.arange(3200) / 32, 3), values, 32)
    np.testing.assert_array_equal(found[:, 0], values.astype(np.float32))


@pytest.mark.parametrize("true_rate", [31.97, 32.03, 31.0])
def test_a_clock_that_drifts_is_interpolated(true_rate: float) -> None:
    """No row is lost or doubled: a smooth signal stays where it was in time, without gaps."""
    times = np.arange(20_000) / true_rate
    found, start, _ = grid(times, np.sin(times), 32)
    at = start + np.arange(len(found)) / 32
    assert not np.isnan(found).any()
    np.testing.assert_allclose(found[:, 0], np.sin(at), atol=2e-4)


@pytest.mark.parametrize(
    ("times", "rate", "message"),
    [
        (np.arange(100) / 32, 64.0, r"rows are 0\.03125 s apart, which is 32 Hz and not 64 Hz; correct rate_hz"),
        (np.arange(100) / 32 * 1000, 32.0, r"is the unit of its time right\?"),
        (np.cumsum(np.random.default_rng(0).exponential(size=300)), 1.5, "irregular|Hz and not"),
        (
            np.r_[0.0, 1.7e9 + np.arange(100)],
            1.0,
            r"would take 1,700,000,\d+ steps .* row 1 and the next lie 1,700,000,000 s",
        ),
    ],
)
def test_times_that_do_not_fit_the_rate(times: np.ndarray, rate: float, message: str) -> None:
    with pytest.raises(DataError, match=message):
        grid(times, np.ones(len(times)), rate)


def test_doubled_rows() -> None:
    times, values = np.array([0.0, 1, 1, 2]), np.array([5.0, 6, 6, 7])
    found, _, notes = grid(times, values, 1)
    assert found[:, 0].tolist() == [5, 6, 7]
    assert notes == {"rows that occur twice, counted once": 1}
    values[2] = 9
    with pytest.raises(DataError, match="1 rows have the time of the row before, but other values"):
        grid(times, values, 1)
    assert grid(times, values, 1, "mean")[0][:, 0].tolist() == [5, 7.5, 7]
    assert grid(times, values, 1, "last")[0][:, 0].tolist() == [5, 9, 7]


def test_irregular_rows_by_mean_and_last() -> None:
    times = np.array([0.2, 0.9, 3.5, 3.6, 3.9])
    values = np.array([[1, np.nan], [3, 8], [5, 1], [np.nan, 2], [7, np.nan]])
    found, start, _ = grid(times, values, 1, "mean")
    assert start == 0, "steps count from the recording's time 0"
    np.testing.assert_array_equal(found, [[2, 8], [np.nan] * 2, [np.nan] * 2, [6, 1.5]])
    found, _, _ = grid(times, values, 1, "last")
    np.testing.assert_array_equal(found, [[3, 8], [np.nan] * 2, [np.nan] * 2, [7, 2]])


def test_one_row_and_no_row() -> None:
    assert grid(np.array([3.0]), np.array([4.0]), 1)[0].tolist() == [[4.0]]
    assert on_grid(np.array([0]), np.array([[np.nan]]), Steps(1.0, "auto", 0), "x", Counter()) is None
