"""`--infer` where files are unclear: several recordings in a file, codes for missing values, names of people."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from test_tables_devices import draws, lines
from test_tables_infer import inferred, signals

from maestro_dist.data.parts import Remarks
from maestro_dist.data.recordings.raw import RawRecording
from maestro_dist.data.tables.conversion import convert
from maestro_dist.data.tables.infer import look
from maestro_dist.data.tables.layout import TableLayout, load_layout
from maestro_dist.data.tables.layout_text import doubts, layout_text
from maestro_dist.data.tables.paths import same_names
from maestro_dist.errors import ConfigError, DataError

DRAW = np.random.default_rng(0)


def session(name: str, rows: int = 60, front: str = "") -> list[str]:
    """Rows of a recording whose time begins at 0."""
    return [f"{front}{name}{k / 10:.1f},{draws(2)}" for k in range(rows)]


@pytest.mark.parametrize("names", [("1", "2", "3"), ("0", "1", "2"), ("early", "mid", "late"), ("7", "3", "12")])
def test_a_column_that_changes_where_time_goes_back_names_the_recording(names: tuple[str, ...], tmp_path: Path) -> None:
    rows = [row for person in ("p0", "p1") for name in names for row in session(f"{name},", front=f"{person},")]
    lines(tmp_path / "all/x.csv", ["who,c,t,x,y", *rows])
    layout, found, doubtful = inferred(tmp_path / "all")
    assert [doubt for doubt in doubtful if "label" not in doubt] == []
    assert layout.files[0].recording_columns == ["who", "c"]
    assert signals(layout) == {"x": (["x", "y"], 10, "")}
    assert {(key, r.subject, len(r.values["x"])) for key, r in found.items()} == {
        (f"{person}-{name}", person, 60) for person in ("p0", "p1") for name in names
    }
    for person in range(2):
        lines(tmp_path / f"each/p{person}.csv", ["c,t,x,y", *(row for name in names for row in session(f"{name},"))])
    layout, found, _ = inferred(tmp_path / "each")
    assert set(found) == {f"p{person}-{name}" for person in range(2) for name in names}


def test_a_counter_that_comes_again_is_no_name(tmp_path: Path) -> None:
    for person in range(2):
        rows = [row for name in ("1", "2", "1") for row in session(f"{name},")]
        lines(tmp_path / f"again/p{person}.csv", ["c,t,x,y", *rows])
    layout, found, doubtful = inferred(tmp_path / "again")
    assert layout.files[0].restarts
    assert doubtful[0] == "time goes back in 4 places: each time, another recording starts"
    assert len(found) == 6


def test_without_a_column_each_restart_is_a_recording(tmp_path: Path) -> None:
    for person in range(2):
        lines(tmp_path / f"r/p{person}.csv", ["t,x,y", *session("", 60), *session("", 40)])
    _, found, doubtful = inferred(tmp_path / "r")
    assert doubtful == ["time goes back in 2 places: each time, another recording starts"]
    assert {key: (r.subject, len(r.values["signals"])) for key, r in found.items()} == {
        "p0-1": ("p0", 60), "p0-2": ("p0", 40), "p1-1": ("p1", 60), "p1-2": ("p1", 40),
    }  # fmt: skip


def test_rows_out_of_turn_are_no_sessions(tmp_path: Path) -> None:
    rows = session("", 60)
    rows[10], rows[11] = rows[11], rows[10]
    lines(tmp_path / "out/p0.csv", ["t,x,y", *rows])
    lines(tmp_path / "out/p1.csv", ["t,x,y", *session("")])
    layout, found, doubtful = inferred(tmp_path / "out")
    assert (doubtful, layout.files[0].restarts, len(found)) == ([], False, 2)


def test_codes_for_missing_values_are_asked_about(tmp_path: Path) -> None:
    """-9999 and -1 far from all other values, and words; but not -1 that is a value like others."""
    for person in range(2):
        rows = [
            f"{k},{-9999 if k % 20 == 0 else 60 + k % 30},{'--' if k % 30 == 0 else 36 + k % 3},{k % 3 - 1},{k % 17}"
            for k in range(300)
        ]
        lines(tmp_path / f"codes/P{person}.csv", ["time,hr,temp,turn,level", *rows])
        rows = [f"{k},{-1 if k % 9 == 0 else k % 40}" for k in range(300)]
        lines(tmp_path / f"minus/P{person}.csv", ["time,stress", *rows])
    layout, found, doubtful = inferred(tmp_path / "codes")
    assert layout.files[0].missing == ["--", -9999.0]
    assert doubtful == [
        "column 'temp' has 20 x '--', which now counts as missing",
        "-9999 in column 'hr' is far from all other values: it now counts as missing",
    ]
    values = found["P0"].values
    assert (np.nanmin(values["hr"]), np.nanmin(values["temp"]), values["turn"].min()) == (60, 36, -1)
    layout, found, doubtful = inferred(tmp_path / "minus")
    assert layout.files[0].missing == [-1.0]
    assert doubtful == ["-1 in column 'stress' is far from all other values: it now counts as missing"]
    assert np.nanmin(found["P0"].values["stress"]) == 0


@pytest.mark.parametrize(
    ("text", "delimiter", "expected", "doubts"),
    [
        ('"101,325"', ",", 101325, 1), ('"1,101,325.5"', ",", 1101325.5, 0), ("101.325,25", ";", 101325.25, 0),
        ("101 325", ";", 101325, 0), ("101\u00a0325", ";", 101325, 0), ("101'325", ",", 101325, 0),
    ],
)  # fmt: skip
def test_marks_of_thousands(text: str, delimiter: str, expected: float, doubts: int, tmp_path: Path) -> None:
    other = "1,5" if "," in text and delimiter == ";" else "1.5"
    for person in range(2):
        rows = [f"{k}{delimiter}{text}{delimiter}{other}" for k in range(50)]
        lines(tmp_path / f"x/P{person}.csv", [f"time{delimiter}pressure{delimiter}flow", *rows], "utf-8-sig")
    _, found, doubtful = inferred(tmp_path / "x")
    assert len(doubtful) == doubts
    assert (found["P0"].values["pressure"].max(), found["P0"].values["flow"].max()) == (np.float32(expected), 1.5)


def test_decimal_commas_in_quotes(tmp_path: Path) -> None:
    lines(tmp_path / "q/P0.csv", ["time,x", *(f'{k},"{k % 7},25"' for k in range(60))])
    layout, found, _ = inferred(tmp_path / "q")
    assert layout.files[0].decimal == ","
    assert found["all"].values["x"][3] == 3.25


def test_text_behind_numbers_and_rows_that_are_no_rows(tmp_path: Path) -> None:
    for person in range(2):
        rows = [f"{k},{60 + k % 9},{k % 50} %" for k in range(60)]
        lines(tmp_path / f"x/P{person}.csv", ["time,hr,spo2", *rows, "Average,60,5 %"])
    _, found, doubtful = inferred(tmp_path / "x")
    assert "rows end above 'Average': that line and what follows is left out" in doubtful
    assert [len(recording.values["hr"]) for recording in found.values()] == [60, 60]
    for path in (tmp_path / "x").iterdir():
        path.write_text(path.read_text().replace("59,65,9 %", "Pause,,\n59,65,9 %"))
    text = "\n".join(doubt for found in look(str(tmp_path / "x")).kinds for doubt in found.doubts)
    assert "column 'time' has 'Pause' in row 60 of P0.csv: remove the row" in text
    with pytest.raises(DataError, match=r"P0\.csv: column 'time': 'Pause' in row 60 is not a number"):
        inferred(tmp_path / "x")
    for path in (tmp_path / "x").iterdir():
        path.write_text(path.read_text().replace("Pause,,\n", ""))
    for path in (tmp_path / "x").iterdir():
        path.write_text(path.read_text().replace("Average,60,5 %\n", ""))
    layout, _, doubtful = inferred(tmp_path / "x")
    assert list(signals(layout)) == ["hr"]
    assert doubtful == ["column 'spo2' is left out: text follows its numbers, such as '0 %'"]


def test_empty_files_are_said_and_left_out(tmp_path: Path) -> None:
    for person in range(4):
        rows = session("") if person != 2 else []
        lines(tmp_path / f"e/P{person}/acc.csv", ["time,x,y", *rows])
        lines(tmp_path / f"e/P{person}/labels.csv", ["start,stop,label", "0,3,a", "3,6,b"])
    (tmp_path / "e/P3/labels.csv").write_text("")
    _, found, doubtful = inferred(tmp_path / "e")
    assert doubtful == []
    assert [(key, r.labels is not None) for key, r in found.items()] == [("P0", True), ("P1", True), ("P3", False)]
    assert look(str(tmp_path / "e")).remarks == ["files without any row, left out (2): P2/acc.csv, P3/labels.csv"]


def annotated(folder: Path, people: list[str], names: list[str]) -> None:
    for person in people:
        lines(folder / f"{person}.csv", ["time,x,y", *session("", 100)])
    rows = [f"{name},{start},{start + 5},{label}" for name in names for start, label in ((0, "sit"), (5, "walk"))]
    lines(folder / "annotations.csv", ["participant,start_time,stop_time,annotation", *rows])


def warned(layout: TableLayout, folder: Path) -> list[str]:
    remarks = Remarks()
    conversion = convert(str(folder), layout)
    for part in conversion.parts:
        assert all(isinstance(made, RawRecording) for made in part.samples(remarks))
    return [*conversion.warnings, *remarks.lines()]


def test_people_whom_files_name_in_different_ways(tmp_path: Path) -> None:
    annotated(tmp_path / "a", ["sub-01", "sub-02", "sub-03"], ["1", "2"])
    layout, found, _ = inferred(tmp_path / "a")
    assert [r.labels is not None for r in found.values()] == [True, True, False]
    assert found["01"].labels == [(0, 5, "sit"), (5, 10, "walk")]
    assert warned(layout, tmp_path / "a") == [
        "names that were taken for the same (2): 01 = 1, 02 = 2", "recordings without a label: 03",
    ]  # fmt: skip
    annotated(tmp_path / "b", ["sub-01", "sub-02"], ["anna", "ben"])
    with pytest.raises(
        DataError, match=r"recordings or people \(anna, ben\) are none of those of the signals \(01, 02"
    ):
        inferred(tmp_path / "b")


@pytest.mark.parametrize(
    ("names", "others", "same"),
    [
        (["01", "02"], ["1", "2"], {"01": "1", "02": "2"}),
        (["sub-01"], ["P1"], {"sub-01": "P1"}),
        (["S1", "P1"], ["1"], {}),
        (["S1"], ["1", "01"], {}),
        (["1", "S1"], ["1"], {}),
        (["ward1"], ["1"], {}),
    ],
)
def test_names_are_the_same_only_without_doubt(names: list[str], others: list[str], same: dict[str, str]) -> None:
    assert same_names(names, others) == same


def test_labels_of_a_person_are_those_of_the_recordings_at_that_time(tmp_path: Path) -> None:
    for person in ("S1", "S2"):
        for number, start in enumerate((1_700_000_000, 1_700_009_000)):
            rows = [f"{start + k},{draws(1)}" for k in range(40)]
            lines(tmp_path / f"p/{person}/rec{number}.csv", ["time,x", *rows])
    rows = [
        f"{p},{s},{s + 20},{label}" for p in ("S1", "S2") for s, label in ((1_700_000_000, "a"), (1_700_000_020, "b"))
    ]
    lines(tmp_path / "p/labels.csv", ["subject,start,end,label", *rows])
    layout, found, _ = inferred(tmp_path / "p")
    assert [r.labels for r in found.values()] == [[(0, 20, "a"), (20, 40, "b")], None] * 2
    assert "recordings outside of all labels of their person (another clock or unit?) (2): S1-rec1, S2-rec1" in warned(
        layout, tmp_path / "p"
    )


@pytest.mark.parametrize(
    ("paths", "pattern", "subjects", "doubts"),
    [
        (["2024-02-03/gw-1.csv", "2024-02-03/gw-2.csv", "2024-02-04/gw-1.csv"], "{part1}/gw-{recording}.csv", {""}, 1),
        (["a1/20240203.csv", "a1/20240204.csv", "b2/20240203.csv"], "{subject}/{recording}.csv", {"a1", "b2"}, 1),
        (["person=A/x.csv", "person=B/x.csv"], "person={subject}/x.csv", {"A", "B"}, 0),
        (["p=A/x.csv", "p=B/x.csv"], "p={recording}/x.csv", {""}, 1),
        (["S1/S1_1.csv", "S1/S1_2.csv", "S2/S2_1.csv"], "{subject}/{subject}_{recording}.csv", {"S1", "S2"}, 0),
        (["id=7/part-0-a.csv", "id=7/part-1-b.csv", "id=8/part-0-c.csv"], "id={subject}/part-*-*.csv", {"7", "8"}, 0),
    ],
)  # fmt: skip
def test_parts_of_paths(paths: list[str], pattern: str, subjects: set[str], doubts: int, tmp_path: Path) -> None:
    for number, path in enumerate(paths):
        lines(tmp_path / "x" / path, ["time,x", *(f"{1.7e9 + 60 * number + k:.0f},{draws(1)}" for k in range(40))])
    layout, found, doubtful = inferred(tmp_path / "x")
    assert layout.files[0].path == pattern
    assert {r.subject for r in found.values()} == subjects
    assert len(doubtful) == doubts, "who is a person is asked, unless words say it"


def test_a_column_of_people_counts_more_than_the_path(tmp_path: Path) -> None:
    for person in ("001-A", "002-B"):
        for day in ("2024-01-05", "2024-01-06"):
            rows = [f"{k},{person},{draws(1)}" for k in range(40)]
            lines(tmp_path / f"x/{person}/{day}/{person[:3]}_eda.csv", ["time,participant_id,eda", *rows])
    _, found, doubtful = inferred(tmp_path / "x")
    assert doubtful == []
    assert {r.subject for r in found.values()} == {"001-A", "002-B"}
    assert len(found) == 4


def test_files_with_other_columns_or_rates_than_most(tmp_path: Path) -> None:
    for person in range(4):
        more, rate = (",7" if person == 3 else ""), (50, 100)[person // 2]
        lines(
            tmp_path / f"c/P{person}.csv", [f"time,x,y{',z' if more else ''}", *(f"{row}{more}" for row in session(""))]
        )
        lines(tmp_path / f"r/P{person}.csv", ["time,x", *(f"{k / rate:.2f},{draws(1)}" for k in range(100))])
    _, found, doubtful = inferred(tmp_path / "c")
    assert (doubtful, len(found)) == (["other columns (z) than most files: P3.csv"], 4)
    layout, found, doubtful = inferred(tmp_path / "r")
    assert doubtful == ["x: files have different rates (50, 100 Hz): a step is now the mean of its rows"]
    assert (layout.files[0].modalities["x"].rate_hz, len(found["P3"].values["x"])) == (50, 50)


def test_values_without_a_header(tmp_path: Path) -> None:
    rows = [f"33,Jogging,{49 + k}105962326000,{draws(3)};" for k in range(60)]
    lines(tmp_path / "w/raw.txt", rows)
    doubtful = inferred(tmp_path / "w")[2]
    assert "there is no header: what are the columns c1, c2, c3, c4, c5, c6?" in doubtful
    assert any(doubt.startswith("column 'c6' is left out: text follows its numbers") for doubt in doubtful)


def test_labels_that_have_only_a_start_and_epochs(tmp_path: Path) -> None:
    for person in range(2):
        for kind, rows in {"a": ["timestamp,event", "0,rest", "120,walk", "150,run"],
                           "b": ["epoch,stage", *(f"{k},{'WNR'[k % 3]}" for k in range(10))]}.items():  # fmt: skip
            lines(tmp_path / f"{kind}/P{person}/hr.csv", ["timestamp,hr", *(f"{k},{60 + k % 9}" for k in range(300))])
            lines(tmp_path / f"{kind}/P{person}/labels.csv", rows)
    _, found, doubtful = inferred(tmp_path / "a")
    assert doubtful == ["labels have no end: each lasts until the next one"]
    assert found["P0"].labels == [(0, 120, "rest"), (120, 150, "walk"), (150, 300, "run")]
    _, _, doubtful = inferred(tmp_path / "b")
    assert "column 'epoch' counts rows: if a row is an epoch of 30 s, say, write unit: 30" in doubtful
    path = tmp_path / "layout.yaml"
    path.write_text(path.read_text().replace("{column: epoch, unit: s}", "{column: epoch, unit: 30}"))
    layout, _ = load_layout(str(path))
    (first, *_) = [r for part in convert(str(tmp_path / "b"), layout).parts for r in part.samples(Remarks())]
    assert isinstance(first, RawRecording)
    assert first.labels[:2] == [(0, 30, "W"), (30, 60, "N")]


def test_no_label_but_columns_that_may_be_one(tmp_path: Path) -> None:
    for person in range(2):
        rows = [f"{k},{draws(1)},{('low', 'high')[k // 20 % 2]}" for k in range(60)]
        lines(tmp_path / f"x/P{person}.csv", ["time,x,effort", *rows])
    assert inferred(tmp_path / "x")[2] == [
        "no label was found; is column 'effort' one (high, low)? see task, classes and label"
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("start_and_rate: true", "start_and_rate belongs to signals without a column of time"),
        ("thousands: '.'", "decimal and thousands are both"),
        ("thousands: x", "thousands: Input should be"),
    ],
)
def test_options_that_do_not_fit(change: str, message: str, tmp_path: Path) -> None:
    lines(tmp_path / "x/P0.csv", ["time,x,y", *session("")])
    inferred(tmp_path / "x")
    path = tmp_path / "layout.yaml"
    path.write_text(path.read_text().replace("  modalities:", f"  {change}\n  modalities:"))
    with pytest.raises(ConfigError, match=message):
        load_layout(str(path))
    path.write_text(path.read_text().replace(change, "restarts: true").replace("{column: time", "{column: [time, x]"))
    with pytest.raises(ConfigError, match="a time in several columns is a date"):
        load_layout(str(path))


def test_windows_are_shorter_than_labels_or_are_asked_about(tmp_path: Path) -> None:
    """A class that never lasts for half a window would have no window."""
    for person in range(2):
        states = [("sit", "walk")[k // 50 % 2] for k in range(400)]
        rows = [f"{k / 10:.1f},{draws(1)},{state}" for k, state in enumerate(states)]
        lines(tmp_path / f"fast/P{person}.csv", ["time,x,activity", *rows])
        lines(tmp_path / f"slow/P{person}.csv", ["time,x,activity", *(row for row in rows[::10])])
    layout, _, doubtful = inferred(tmp_path / "fast")
    assert (layout.window.length_s, doubtful) == (2, [])
    layout, _, doubtful = inferred(tmp_path / "slow")
    assert doubtful == [f"the window of {layout.window.length_s:g} s is longer than a usual label of 5 s"]


def test_the_end_of_daylight_saving_is_no_restart(tmp_path: Path) -> None:
    start = datetime(2024, 10, 27, 1, 30)
    shown = [start + timedelta(minutes=m - (60 if m >= 90 else 0)) for m in range(200)]
    lines(tmp_path / "x/P0.csv", ["time,x", *(f"{at},{draws(1)}" for at in shown)])
    text = layout_text(look(str(tmp_path / "x")))
    assert "time goes back by an hour: the end of daylight saving? Name the zone" in doubts(text)
    path = tmp_path / "layout.yaml"
    path.write_text(text.replace("unit: date}", "unit: date, zone: Europe/Berlin}"))
    layout, _ = load_layout(str(path))
    (found,) = [r for part in convert(str(tmp_path / "x"), layout).parts for r in part.samples(Remarks())]
    assert len(found.values["x"]) == 200


def test_a_first_row_without_values_is_no_row_of_units(tmp_path: Path) -> None:
    rows = [f"2024-01-01 10:00:{k:02d},{'--' if k == 0 else k % 7}" for k in range(60)]
    lines(tmp_path / "x/P0.csv", ["time,x", *rows])
    layout, _, doubtful = inferred(tmp_path / "x")
    assert (layout.files[0].units_row, layout.files[0].missing) == (False, ["--"])
    assert doubtful == ["column 'x' has 1 x '--', which now counts as missing"]
