"""Folders of tables become recordings: values, times, labels and people are those of the files."""

from __future__ import annotations

import gzip
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from table_folders import STATES, wristbands

from maestro_dist.data.parts import Remarks
from maestro_dist.data.recordings.raw import RawRecording
from maestro_dist.data.tables.conversion import convert
from maestro_dist.data.tables.layout import TableLayout, load_layout
from maestro_dist.errors import ConfigError, DataError

LAYOUT = """
name: wrist
task: classification
target: state
classes: [rest, walk, run]
window: {length_s: 10, stride_s: 5}
files:
- path: "{subject}/acc.csv"
  time: {column: time}
  modalities: {acc: {columns: [acc_x, acc_y, acc_z], rate_hz: 16, unit: g}}
- path: "{subject}/heart.csv"
  time: {column: timestamp}
  modalities: {heart: {columns: [bpm], rate_hz: 1}}
- path: "{subject}/labels.csv"
  intervals: {start: start, end: end}
  label: state
- path: people.csv
  facts: true
  subject: person
  group: ward
  modalities: {age: {columns: [age]}}
"""


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tables") / "wrist"
    folder.mkdir()
    wristbands(folder, people=3)
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "wrist"))


def layout(change: str = "", to: str = "") -> TableLayout:
    assert change in LAYOUT
    return TableLayout.model_validate(yaml.safe_load(LAYOUT.replace(change, to)))


def recordings(source: Path, of: TableLayout | None = None) -> tuple[dict[str, RawRecording], list[str]]:
    """The recordings by key, and all warnings."""
    conversion = convert(str(source), of or layout())
    remarks = Remarks()
    found = [recording for part in conversion.parts for recording in part.samples(remarks)]
    assert all(isinstance(recording, RawRecording) for recording in found)
    assert len({recording.key for recording in found}) == len(found)  # type: ignore[union-attr]
    return {r.key: r for r in found}, [*conversion.warnings, *remarks.lines()]  # type: ignore[union-attr, misc]


def test_values_times_labels_and_people(folder: Path) -> None:
    found, warnings = recordings(folder)
    assert warnings == []
    assert list(found) == ["P00", "P01", "P02"]
    recording = found["P01"]
    rows = np.loadtxt(folder / "P01/acc.csv", delimiter=",", skiprows=1)
    at = np.round((rows[:, 0] - rows[0, 0]) * 16).astype(int)
    acc = recording.values["acc"]
    np.testing.assert_array_equal(acc[at], rows[:, 1:].astype(np.float32))
    assert np.isnan(np.delete(acc, at, axis=0)).all()
    assert len(acc) == 240 * 16
    heart = recording.values["heart"][:, 0]
    assert len(heart) == 239, "the first row has no pulse"
    assert recording.start_s == {"acc": 0.0, "heart": 1.0}
    texts = [line.split(",")[1] for line in (folder / "P01/heart.csv").read_text().splitlines()[2:]]
    np.testing.assert_array_equal(heart, np.array([float(t) if t else np.nan for t in texts], dtype=np.float32))
    lines = [line.split(",") for line in (folder / "P01/labels.csv").read_text().splitlines()[1:]]
    start = float(lines[0][0])
    assert recording.labels == [(float(a) - start, float(b) - start, state) for a, b, state in lines]
    assert (recording.subject, recording.group, recording.split) == ("P01", "B", "")
    assert recording.values["age"].tolist() == [[31.0]]


@pytest.mark.parametrize("form", ["zip", "gz", "parquet", "semicolons", "utf16"])
def test_other_forms_of_the_same_files_are_the_same(form: str, folder: Path, tmp_path: Path) -> None:
    expected, _ = recordings(folder)
    of = layout()
    source = folder
    if form == "zip":
        source = tmp_path / "wrist.zip"
        with zipfile.ZipFile(source, "w") as archive:
            for path in sorted(folder.rglob("*.csv")):
                archive.write(path, path.relative_to(folder))
    else:
        for path in folder.rglob("*.csv"):
            text = path.read_text()
            if form == "gz":
                path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(text.encode()))
                path.unlink()
            elif form == "parquet":
                import pandas as pd

                pd.read_csv(path).to_parquet(path.with_suffix(".parquet"))
                path.unlink()
            elif form == "semicolons":
                path.write_bytes(
                    ("# a\n# b\n" + text.replace(",", ";").replace(".", ",")).replace("\n", "\r\n").encode()
                )
            else:
                path.write_bytes(text.encode("utf-16"))
        endings = {"gz": (".csv", ".csv.gz"), "parquet": (".csv", ".parquet")}
        of = layout(*endings[form]) if form in endings else of
        more = {"semicolons": {"delimiter": ";", "decimal": ",", "skip_rows": 2}, "utf16": {"encoding": "utf-16"}}
        files = [file.model_copy(update=more.get(form, {})) for file in of.files]
        of = of.model_copy(update={"files": files})
    found, warnings = recordings(source, of)
    assert warnings == []
    assert list(found) == list(expected)
    for key, recording in found.items():
        for name, values in expected[key].values.items():
            np.testing.assert_array_equal(recording.values[name], values)
        assert recording.labels == expected[key].labels
        assert recording.start_s == expected[key].start_s


def test_one_file_with_all_recordings_is_the_same_as_a_file_for_each(folder: Path, tmp_path: Path) -> None:
    """Rows of all people in one file for each sensor, mixed, told apart by a column."""
    expected, _ = recordings(folder)
    source = tmp_path / "together"
    source.mkdir()
    for name in ("acc", "heart", "labels"):
        lines = []
        for person in ("P00", "P01", "P02"):
            head, *rows = (folder / person / f"{name}.csv").read_text().splitlines()
            lines += [f"{row},{person}" for row in rows]
        if name != "labels":
            order = np.argsort([float(line.split(",")[0]) % 1000 for line in lines], kind="stable")
            lines = [lines[place] for place in order]
        (source / f"{name}.csv").write_text("\n".join([f"{head},who", *lines]) + "\n")
    shutil.copy(folder / "people.csv", source)
    of = layout("{subject}/", "")
    files = [file.model_copy(update={"recording": "who", "subject": "who"}) for file in of.files[:3]]
    found, warnings = recordings(source, of.model_copy(update={"files": [*files, of.files[3]]}))
    assert warnings == []
    assert list(found) == list(expected)
    for key, recording in found.items():
        for name, values in expected[key].values.items():
            np.testing.assert_array_equal(recording.values[name], values)
        assert (recording.labels, recording.subject) == (expected[key].labels, expected[key].subject)


def test_labels_of_rows_are_intervals(folder: Path) -> None:
    """A column with the label of each row gives the intervals of a file of intervals."""
    expected, _ = recordings(folder)
    for person in ("P00", "P01", "P02"):
        intervals = [line.split(",") for line in (folder / person / "labels.csv").read_text().splitlines()[1:]]
        head, *rows = (folder / person / "heart.csv").read_text().splitlines()
        states = [next(s for a, b, s in intervals if float(a) <= float(row.split(",")[0]) < float(b)) for row in rows]
        text = "\n".join([f"{head},state", *(f"{row},{s}" for row, s in zip(rows, states, strict=True))])
        (folder / person / "heart.csv").write_text(text + "\n")
        (folder / person / "labels.csv").unlink()
    of = layout('- path: "{subject}/labels.csv"\n  intervals: {start: start, end: end}\n  label: state\n')
    files = [file.model_copy(update={"label": "state"}) if "heart" in file.path else file for file in of.files]
    found, _ = recordings(folder, of.model_copy(update={"files": files}))
    for key, recording in found.items():
        merged: list[tuple[float, float, str]] = []
        for a, b, state in expected[key].labels:
            if merged and merged[-1][2] == state:
                merged[-1] = (merged[-1][0], b, state)
            else:
                merged.append((a, b, state))
        assert recording.labels == merged


def change(path: Path, old: str, new: str, count: int = 1) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, count))


def damage(folder: Path, what: str) -> None:
    """Make a folder wrong in one way."""
    acc, heart, labels = (folder / f"P01/{name}.csv" for name in ("acc", "heart", "labels"))
    rows = acc.read_text().splitlines()
    if what == "text":
        acc.write_text("\n".join([*rows[:9], rows[9].rpartition(",")[0] + ",broken", *rows[10:]]) + "\n")
    elif what == "cut":
        acc.write_text("\n".join([*rows[:-1], rows[-1].rpartition(",")[0]]) + "\n")
    elif what == "column":
        change(acc, "acc_y", "acc_q")
    elif what == "twice":
        change(acc, "acc_y", "acc_x")
    elif what == "label":
        change(labels, STATES[1], "jump")
    elif what == "clock":
        labels.write_text("\n".join(["start,end,state", "7200,7230,rest", "7230,7260,run"]) + "\n")
    elif what == "backwards":
        labels.write_text("\n".join(["start,end,state", "1700001030,1700001000,rest"]) + "\n")
    elif what == "unit":
        lines = heart.read_text().splitlines()
        moved = [f"{int(line.split(',')[0]) * 1000},{line.split(',')[1]}" for line in lines[1:]]
        heart.write_text("\n".join([lines[0], *moved]) + "\n")
    elif what == "doubled":
        acc.write_text("\n".join([*rows, *rows[1:]]) + "\n")
    elif what == "people":
        change(folder / "people.csv", "P02", "P01")
    elif what == "latin":
        heart.write_bytes(heart.read_bytes().replace(b"bpm", b"b\xe4m"))
    elif what == "gz":
        (folder / "P01/acc.csv").write_bytes(b"not a table\x00\x01")


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("text", r"P01/acc\.csv: column 'acc_z' has 'broken' in row 9, which is not a number"),
        ("cut", r"P01/acc\.csv: cannot be read as a table .*Expected 4 columns, got 3"),
        ("column", r"P01/acc\.csv: there is no column 'acc_y'; there are 'time', 'acc_x', 'acc_q', 'acc_z'"),
        ("twice", r"P01/acc\.csv: two columns are named 'acc_x'"),
        (
            "label",
            r"P01/labels\.csv, row \d+: label 'jump' is not in the layout \(rest, walk, run\); add it to classes",
        ),
        (
            "clock",
            r"recording P01: all labels lie outside of its signals \(.* s from their start\): another unit, zone",
        ),
        ("backwards", r"P01/labels\.csv: the label of row 1 ends before it starts"),
        ("unit", r"P01/heart\.csv: column 'timestamp': 17\d+000 is no time in s; correct its unit in the layout"),
        (
            "doubled",
            r"P01/acc\.csv: in row \d+,?\d* time goes back to times that were there before; if several recordings",
        ),
        ("people", r"people\.csv, P01: two rows have other values of age|people\.csv, P01: its group is"),
        ("latin", r"P01/heart\.csv: not text in utf-8 .*name its encoding"),
        ("gz", r"P01/acc\.csv: there is no column"),
    ],
)
def test_what_is_wrong_is_named(what: str, message: str, folder: Path) -> None:
    damage(folder, what)
    with pytest.raises(DataError, match=message) as caught:
        recordings(folder)
    assert "\n" not in str(caught.value)


def test_what_is_missing_or_left_over_is_said(folder: Path) -> None:
    (folder / "P00/heart.csv").unlink()
    (folder / "P01/labels.csv").write_text("")
    (folder / "P02/notes.csv").write_text("a,b\n1,2\n")
    (folder / "P09").mkdir()
    shutil.copy(folder / "P02/labels.csv", folder / "P09")
    found, warnings = recordings(folder)
    assert list(found) == ["P00", "P01", "P02"]
    assert "heart" not in found["P00"].values
    assert found["P01"].labels is None
    assert warnings == [
        "recordings with labels or facts but without signals, left out: P09",
        "tables that the layout does not name, left out (1): P02/notes.csv",
        "recordings without heart: P00",
        f"files without any row: {folder / 'P01/labels.csv'}",
        "recordings without a label: P01",
    ]


def test_names_that_are_no_keys_stay_apart(folder: Path) -> None:
    os.rename(folder / "P00", folder / "anna b")
    os.rename(folder / "P01", folder / "anna.b")
    os.rename(folder / "P02", folder / ("x" * 60))
    found, _ = recordings(folder)
    assert len(found) == 3
    assert {recording.subject for recording in found.values()} == {"anna b", "anna.b", "x" * 60}
    assert all(len(key) <= 40 for key in found)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("classes: [rest, walk, run]\n", "", "classes belong to task: classification"),
        ("name: wrist", "nam: wrist", "nam: Extra inputs|name: Field required"),
        ("name: wrist", "name: wrist\nname: other", "not valid YAML"),
        ("rate_hz: 16", "rate_hz: -1", r"files\.0\.modalities\.acc\.rate_hz: Input should be greater than 0"),
        ("heart: {columns", "acc: {columns", "two modalities are named 'acc'"),
        ("{subject}/heart.csv", "{subject}/{day}/heart.csv", "paths of signals name recordings in different ways"),
        ("{subject}/heart.csv", "/etc/{subject}", "a path below the source"),
        ("{subject}/heart.csv", "{sub ject}/heart.csv", "names in braces have small letters"),
        ("  label: state\n", "", "intervals need the column of the label"),
        ("[rest, walk, run]", "{rest: [a], walk: [a], run: [c]}", "'a' is in two places"),
    ],
)
def test_wrong_layouts_are_named(old: str, new: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "layout.yaml"
    assert old in LAYOUT
    path.write_text(LAYOUT.replace(old, new))
    with pytest.raises(ConfigError, match=message) as caught:
        load_layout(str(path))
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_layout_that_is_not_there_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file; `--infer FILE` writes one"):
        load_layout(str(tmp_path / "x.yaml"))
    (tmp_path / "y.yaml").write_text("- 1")
    with pytest.raises(ConfigError, match="not a layout"):
        load_layout(str(tmp_path / "y.yaml"))
    (tmp_path / "z.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_layout(str(tmp_path / "z.yaml"))


def test_numbers_as_names_and_words_as_labels_stay_what_they_are(tmp_path: Path) -> None:
    """Person 007 is not person 7; none, no and 01 are labels, and 1.0 is 1."""
    for person, text in (("007", "none"), ("7", "no"), ("08", "1.0"), ("9", "")):
        place = tmp_path / "x" / f"{person}.csv"
        place.parent.mkdir(exist_ok=True)
        rows = [f"{k},{k % 7},{text}" for k in range(20)]
        place.write_text("\n".join(["time,force,state", *rows]) + "\n")
    (tmp_path / "x/people.csv").write_text("id,ward\n007,A\n7,B\n08,01\n9,1\n")
    of = TableLayout.model_validate(
        {
            "name": "x", "task": "classification", "classes": ["none", "no", 1], "window": {"length_s": 5},
            "files": [
                {"path": "people.csv", "facts": True, "subject": "id", "group": "ward"},
                {"path": "{subject}.csv", "time": {"column": "time"}, "label": "state",
                 "modalities": {"force": {"columns": ["force"]}}},
            ],
        }
    )  # fmt: skip
    found, warnings = recordings(tmp_path / "x", of)
    assert {key: (r.group, [label for _, _, label in r.labels or []]) for key, r in found.items()} == {
        "007": ("A", ["none"]), "7": ("B", ["no"]), "08": ("01", ["1"]), "9": ("1", []),
    }  # fmt: skip
    assert warnings == ["recordings without a label: 9"]


def test_words_that_yaml_takes_for_truth_are_labels(tmp_path: Path) -> None:
    path = tmp_path / "layout.yaml"
    path.write_text(LAYOUT.replace("[rest, walk, run]", "[no, yes, true]").replace("facts: true", "facts: yes"))
    layout, _ = load_layout(str(path))
    assert list(layout.classes) == ["no", "yes", "true"]
    assert layout.files[3].facts


def test_labels_that_last_until_the_next_one(folder: Path) -> None:
    expected, _ = recordings(folder)
    for person in ("P00", "P01", "P02"):
        path = folder / person / "labels.csv"
        path.write_text("\n".join(line.replace("end", "note") for line in path.read_text().splitlines()) + "\n")
    found, warnings = recordings(folder, layout("{start: start, end: end}", "{start: start}"))
    assert warnings == []
    assert {key: r.labels for key, r in found.items()} == {key: r.labels for key, r in expected.items()}


def test_numbers_that_stand_for_a_missing_value(folder: Path, tmp_path: Path) -> None:
    path = folder / "P00/heart.csv"
    path.write_text(path.read_text().replace(",\n", ",-999\n", 3).replace(",\n", ",none\n", 3))
    expected, _ = recordings(folder, layout("[bpm], rate_hz: 1}}", "[bpm], rate_hz: 1}}"))
    (tmp_path / "y.yaml").write_text(LAYOUT.replace("rate_hz: 1}}\n", "rate_hz: 1}}\n  missing: [-999]\n"))
    found, _ = recordings(folder, load_layout(str(tmp_path / "y.yaml"))[0])
    assert int((expected["P00"].values["heart"] == -999).sum()) == 3
    assert int(np.isnan(found["P00"].values["heart"]).sum()) > 3
    assert not (found["P00"].values["heart"] == -999).any()
