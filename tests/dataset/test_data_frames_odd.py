"""Odd frames, arrays and names: they are what they look like, or are refused with what is wrong."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from maestro_dist.data.frames import FramesAbout, pack_frames
from maestro_dist.data.manifest import Manifest, load_manifest
from maestro_dist.data.recordings.table import RecordingFacts
from maestro_dist.data.recordings.windowing import load_table
from maestro_dist.errors import DataError

NOON = pd.date_range("2024-07-01 12:00", periods=60, freq="s")
STEPS = np.arange(60.0)
HERTZ = {"h": 1.0}


def packed(url: Path, recordings: Any, labels: Any = None, **about: Any) -> tuple[Manifest, dict[str, RecordingFacts]]:
    manifest = pack_frames(url / "set", recordings, labels, window_s=10, about=FramesAbout(**about))
    table = load_table(str(url / "set"), load_manifest(str(url / "set")))
    rows = [table.facts(row) for row in range(len(table))]
    return manifest, {row.key: row for row in rows}


@pytest.mark.parametrize("name", [1, np.int64(1), 1.0, pd.Timestamp("2024-07-01"), ("a", 1), "夜", "a/b c"])
def test_names_of_any_type_find_their_labels_and_people(tmp_path: Path, name: Any) -> None:
    recordings = {name: {"h": STEPS}, "other": {"h": STEPS}}
    named = {"subjects": {name: 7.0, "other": None}, "splits": {name: "Test"}, "groups": pd.Series(["x"], [name])}
    manifest, rows = packed(tmp_path, recordings, {name: "b", "other": "a"}, rates_hz=HERTZ, **named)
    own = next(row for key, row in rows.items() if key != "other")
    assert (own.subject, own.group, own.split, manifest.classes[int(own.whole)]) == ("7", "x", "test", "b")
    assert (rows["other"].subject, rows["other"].split, rows["other"].whole) == ("", "", 0.0)


def test_labels_of_a_series_are_by_its_index(tmp_path: Path) -> None:
    _, rows = packed(tmp_path, {1: {"h": STEPS}, 2: {"h": STEPS}}, pd.Series([5, 3], index=[1, 2]), rates_hz=HERTZ)
    assert (rows["1"].whole, rows["2"].whole) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ([np.True_, True, False], ["false", "true"]),
        ([np.array("u"), np.str_("u"), "v"], ["u", "v"]),
        ([torch.tensor(1), 1, np.array(0)], ["0", "1"]),
        ([900000000000207008, "900000000000207009", np.int64(900000000000207008)],
         ["900000000000207008", "900000000000207009"]),
        (["1_1", "11", 11.0], ["11", "1_1"]),
        ([1e16, 10**16, 1], ["1", "10000000000000000"]),
        ([" u ", "u", "u v"], ["u", "u v"]),
    ],
)  # fmt: skip
def test_different_labels_stay_different_and_equal_ones_equal(
    tmp_path: Path, labels: list[Any], classes: list[str]
) -> None:
    names = dict(zip("abc", labels, strict=True))
    manifest, _ = packed(tmp_path, {key: {"h": STEPS} for key in "abc"}, names, rates_hz=HERTZ)
    assert manifest.classes == classes


@pytest.mark.parametrize(
    "index",
    [
        NOON.astype("timestamp[ms][pyarrow]"),
        NOON.tz_localize("Europe/Berlin").astype("timestamp[us, Europe/Berlin][pyarrow]"),
        (NOON - NOON[0]).astype("duration[ms][pyarrow]"),
        NOON.astype(object),
        pd.Index(NOON.to_pydatetime(), dtype=object),
        NOON.to_period("s"),
        pd.CategoricalIndex(NOON),
        pd.Index([Decimal(n) for n in range(60)], dtype=object),
        pd.Index(range(60), dtype="Int64"),
        NOON.as_unit("s"),
    ],
    ids=lambda index: f"{type(index).__name__}-{index.dtype}",
)
def test_times_in_any_form(tmp_path: Path, index: pd.Index) -> None:
    manifest, rows = packed(tmp_path, {"a": {"h": pd.Series(STEPS, index)}})
    assert manifest.modalities[0].rate_hz == 1.0
    assert (rows["a"].streams[0].steps, rows["a"].length_s) == (60, 60.0)


def test_dates_of_python_on_both_sides_of_a_clock_change_are_one_sequence(tmp_path: Path) -> None:
    true = pd.date_range("2024-03-31 00:30", periods=120, freq="min", tz="UTC")
    shown = pd.Index([moment.to_pydatetime() for moment in true.tz_convert("Europe/Berlin")], dtype=object)
    _, rows = packed(tmp_path, {"a": {"h": pd.Series(np.arange(120.0), shown)}})
    assert rows["a"].streams[0].gaps.tolist() == []
    assert rows["a"].length_s == pytest.approx(7200)
    zoneless = true.tz_convert("Europe/Berlin").tz_localize(None)
    with pytest.raises(DataError, match=r"recording a: h: time jumps by one hour .* frame\.tz_localize"):
        packed(tmp_path / "b", {"a": {"h": pd.Series(np.arange(120.0), zoneless)}})


@pytest.mark.parametrize(
    "values",
    [
        np.arange(60, dtype=np.float16),
        np.arange(60, dtype=">f8"),
        np.arange(120.0)[::2] / 2,
        np.arange(59.0, -1, -1)[::-1],
        [*range(59), 59],
        [Decimal(n) for n in range(60)],
        np.arange(60).astype(object),
        np.ma.masked_array(np.arange(60), mask=False),
        pd.Series(range(60), dtype="int64[pyarrow]"),
        pd.Series(range(60), dtype="category"),
        pd.DataFrame({"v": np.arange(60)}, dtype=object),
    ],
)
def test_values_in_any_form(tmp_path: Path, values: Any) -> None:
    manifest, rows = packed(tmp_path, {"a": {"h": values}}, rates_hz=HERTZ)
    assert rows["a"].streams[0].steps == 60
    assert manifest.modalities[0].mean == [29.5]


@pytest.mark.parametrize("gap", [None, np.nan, pd.NA])
def test_what_is_missing_is_a_gap_or_absent(tmp_path: Path, gap: Any) -> None:
    frame = pd.DataFrame({"v": [1.0, gap, *range(8)]}, dtype=object)
    for number, values in enumerate(([1.0, gap, *range(8)], frame)):
        _, rows = packed(tmp_path / str(number), {"a": {"h": values}}, rates_hz=HERTZ)
        assert rows["a"].streams[0].gaps.tolist() == [[1, 2]]
    empty: tuple[Any, ...] = ([], np.empty((0, 3)), pd.DataFrame(columns=["x"]), pd.Series([], dtype=float))
    given = {"a": {"h": STEPS, "age": gap, "male": True}, "b": {"h": STEPS, "age": 30, "male": np.False_}}
    given |= {f"e{number}": {"h": nothing, "age": 3, "g": STEPS} for number, nothing in enumerate(empty)}
    manifest, rows = packed(tmp_path, given, rates_hz={"h": 1, "g": 1})
    assert [(m.name, m.always) for m in manifest.modalities] == [
        ("age", True), ("g", False), ("h", False), ("male", True),
    ]  # fmt: skip
    assert [stream.steps for stream in rows["a"].streams] == [0, 0, 60, 1]
    assert [stream.steps for stream in rows["e3"].streams] == [1, 60, 0, 0]


DATED = pd.Series(STEPS, NOON)
SPANS = pd.DataFrame({"start": [0, 30], "end": [30, 60], "label": ["u", "v"]})


@pytest.mark.parametrize(
    ("modalities", "labels", "about", "message"),
    [
        ({"h": [[1.0], [1.0, 2.0]]}, None, {}, "recording a: h: of type list, not an array of numbers"),
        ({"h": DATED.to_frame().assign(t=NOON)}, None, {}, r"h: column 't' has values of type datetime64.*set_index"),
        ({"h": DATED * 1j}, None, {}, "h: column 0 has values of type complex128, not numbers"),
        ({"h": pd.Series(NOON - NOON[0])}, None, {}, "h: column 0 has values of type timedelta64"),
        ({"h": pd.Series(STEPS, range(1_700_000_000_000, 1_700_000_060_000, 1000))}, None, {}, "row 1 .* too large"),
        ({"h": pd.Series(STEPS, [*range(59), np.inf])}, None, {}, "row 60 has the time inf"),
        ({"h": pd.Series(STEPS, NOON.as_unit("s") + pd.Timedelta(days=400_000))}, None, {}, "before 1678 or after"),
        ({"h": pd.Series(STEPS, pd.MultiIndex.from_product([range(6), range(10)]))}, None, {}, "index has 2 levels"),
        ({"h": DATED, "g": DATED.tz_localize("UTC")}, None, {}, "times of h are dates, those of g are dates with a"),
        ({"h": DATED, "g": pd.Series(STEPS)}, None, {}, "times of h are dates, those of g are seconds"),
        ({"h": DATED}, {"a": SPANS}, {}, "times of its modalities are dates, those of its labels are seconds"),
        ({"h": STEPS}, {"a": pd.Series(["u"] * 30 + ["v"] * 30, NOON)}, {}, "those of its labels are dates"),
        ({"h": STEPS}, {"a": ["u", "v"]}, {}, "the labels of recording a: .* of type list; a label is text or"),
        ({"h": STEPS}, {"a": pd.Series([["u"], ["v"]])}, {}, "the labels of recording a: .* of type list"),
        ({"h": STEPS}, {"a": ""}, {}, "the labels of recording a: a label is empty text"),
        ({"h": STEPS}, {"a": None}, {}, "labels has no label of any recording"),
        ({"h": torch.ones(9).requires_grad_()}, None, {}, "recording a: h: of type Tensor, not an array of numbers"),
        ({"h": pd.Series([1.0, np.inf, 2.0], [0, 1.2, 2])}, None, {}, "recording a: h: row 2 has inf, which float32"),
        ({"h": [[1.0, 2.0], [3.0, 1e300]]}, None, {}, r"recording a: h: row 2 has 1e\+300, which float32 cannot hold"),
        ({"h": STEPS, "age": np.inf}, None, {}, "recording a: age: inf is not a finite number"),
        ({"h": STEPS}, None, {"rates_hz": {"h": 1, "pulse": 2}}, "rates_hz has 'pulse', which is no modality"),
        ({"h": STEPS}, None, {"units": {"H": "mV"}}, "units has 'H', which is no modality"),
        ({"h": STEPS}, None, {"grid": "median"}, "grid 'median' is not one of auto, nearest"),
        ({"h": STEPS}, None, {"stride_s": 0}, "stride_s 0 is not a positive number"),
        ({"h": STEPS}, None, {"subjects": ["p"]}, "subjects is of type list, not a dictionary by name"),
    ],
)
def test_what_is_odd_is_named(
    tmp_path: Path, modalities: dict[str, Any], labels: Any, about: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        packed(tmp_path, {"a": modalities}, labels, **({"rates_hz": HERTZ} | about))
    assert "\n" not in str(caught.value)


def test_two_recordings_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="recordings has '1' twice"):
        packed(tmp_path, {1: {"h": STEPS}, "1": {"h": STEPS}}, rates_hz=HERTZ)
    with pytest.raises(DataError, match="recordings is of type list, not a dictionary"):
        packed(tmp_path, [{"h": STEPS}], rates_hz=HERTZ)


def test_columns_of_one_name_are_refused_and_modalities_may_have_numbers(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="recording a: two columns are named 'v'; rename one"):
        packed(tmp_path, {"a": pd.DataFrame(np.ones((60, 2)), columns=["v", "v"])})
    manifest, _ = packed(tmp_path, {"a\ud800": {1: STEPS}}, rates_hz={1: 4})  # a broken letter in the name
    assert [(m.name, m.rate_hz) for m in manifest.modalities] == [("1", 4.0)]


def test_recordings_that_runs_would_leave_out_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recordings = {f"r{k}": {"x": np.zeros(60) + k} for k in range(5)}
    labels = {
        f"r{k}": pd.DataFrame({"start": [100.0 * (k < 2)], "end": [100.0 * (k < 2) + 30], "label": ["ab"[k % 2]]})
        for k in range(5)
    }
    about = FramesAbout(rates_hz={"x": 1.0}, splits={"r0": "train", "r1": "validation", "r2": "test"})
    pack_frames(str(tmp_path), recordings, labels, window_s=10, about=about)
    said = [record.getMessage() for record in caplog.records if record.name.endswith("recordings.packing")]
    assert len(said) == 2
    assert said[0].startswith("2 of 5 recordings have no split (r3, r4): they are in none, unless a run divides")
    assert said[1].startswith("2 of 5 recordings have no labels: all theirs lie outside of their time (r0, r1)")
    caplog.clear()
    inside = {key: frame.assign(start=0.0, end=30.0) for key, frame in labels.items()}
    pack_frames(str(tmp_path), recordings, inside, window_s=10, about=FramesAbout(rates_hz={"x": 1.0}), overwrite=True)
    assert not [record for record in caplog.records if record.name.endswith("recordings.packing")]
