"""`--infer` joins labels and facts to recordings by what columns hold, whatever they are called."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from test_tables_devices import draws, lines
from test_tables_infer import inferred

from maestro_dist.data.parts import Remarks
from maestro_dist.data.tables.conversion import convert
from maestro_dist.data.tables.layout import TableLayout
from maestro_dist.errors import DataError

A, B = [(0.0, 3.0, "a"), (3.0, 6.0, "b")], [(0.0, 2.0, "b"), (2.0, 6.0, "a")]


def write_signals(folder: Path, *paths: str) -> None:
    for path in paths:
        lines(folder / path, ["time,x,y", *(f"{k / 10:.1f},{draws(2)}" for k in range(60))])


def write_labels(folder: Path, header: str, of: Mapping[str, list[tuple[float, float, str]]]) -> None:
    rows = [f"{front},{start},{end},{label}" for front, spans in of.items() for start, end, label in spans]
    lines(folder / "labels.csv", [f"{header},start,end,label", *rows])


def labels_of(found: Mapping[str, object]) -> dict[str, object]:
    return {key: recording.labels for key, recording in found.items()}  # type: ignore[attr-defined]


@pytest.mark.parametrize("shape", ["{0}/{1}/acc.csv", "{0}_{1}_acc.csv"])
@pytest.mark.parametrize("header", ["participant,day", "who,tag", "cow,day"])
def test_each_day_of_a_person_has_its_own_labels(shape: str, header: str, tmp_path: Path) -> None:
    both = [(person, day) for person in ("S00", "S01", "S02") for day in ("day1", "day2")]
    write_signals(tmp_path / "x", *(shape.format(*names) for names in both))
    own = {names: A if names[1] == "day1" else B for names in both}
    write_labels(tmp_path / "x", header, {",".join(names): spans for names, spans in own.items()})
    layout, found, doubtful = inferred(tmp_path / "x")
    assert labels_of(found) == {"-".join(names): spans for names, spans in own.items()}
    assert layout.files[1].recording_columns == header.split(",")
    assert any("'day' holds the names of recordings" in doubt for doubt in doubtful) == ("day" in header)


@pytest.mark.parametrize("column", ["pump", "machine", "cow_tag", "recording"])
def test_any_column_with_the_names_of_recordings_joins_the_labels(column: str, tmp_path: Path) -> None:
    names = [f"pump{number}" for number in range(4)]
    write_signals(tmp_path / "x", *(f"{name}/vib.csv" for name in names))
    own = {name: A if name < "pump2" else B for name in names}
    write_labels(tmp_path / "x", column, own)
    _, found, doubtful = inferred(tmp_path / "x")
    assert labels_of(found) == own
    asked = f"column '{column}' holds the names of recordings, as the signals have them"
    assert (asked in doubtful) == (column != "recording")


def test_signals_with_a_column_and_labels_with_the_same_one(tmp_path: Path) -> None:
    names = ["pump0", "pump1", "pump2"]
    rows = [f"{name},{k / 10:.1f},{draws(2)}" for name in names for k in range(60)]
    lines(tmp_path / "x" / "vib.csv", ["pump,time,x,y", *rows])
    own = dict(zip(names, (A, B, A), strict=True))
    write_labels(tmp_path / "x", "pump", own)
    _, found, _ = inferred(tmp_path / "x")
    assert labels_of(found) == own


@pytest.mark.parametrize(
    ("header", "person"), [("rec,id", "id"), ("session,subject", "subject"), ("stay_id,subject_id", "subject_id")]
)
def test_a_table_of_recordings_says_whose_they_are(header: str, person: str, tmp_path: Path) -> None:
    """Each person has two recordings: taken for people, they could be in two splits."""
    names = [f"rec{number}" for number in range(6)]
    write_signals(tmp_path / "x", *(f"{name}/vib.csv" for name in names))
    people = {name: "ABC"[number // 2] for number, name in enumerate(names)}
    lines(tmp_path / "x/people.csv", [f"{header},age", *(f"{name},{who},{40}" for name, who in people.items())])
    layout, found, _ = inferred(tmp_path / "x")
    assert {key: recording.subject for key, recording in found.items()} == people
    assert layout.files[-1].subject == person


def test_a_table_of_people_stays_one(tmp_path: Path) -> None:
    names = [f"P{number:02d}" for number in range(4)]
    write_signals(tmp_path / "x", *(f"{name}/vib.csv" for name in names))
    lines(tmp_path / "x/people.csv", ["patient,age", *(f"{name},{30 + k}" for k, name in enumerate(names))])
    _, found, _ = inferred(tmp_path / "x")
    assert {key: (r.subject, float(r.values["age"][0, 0])) for key, r in found.items()} == {
        name: (name, 30.0 + k) for k, name in enumerate(names)
    }


def test_labels_that_name_only_the_person_are_asked_about(tmp_path: Path) -> None:
    """Days are 1 and 2 here, and day1 and day2 in the paths."""
    both = [(person, day) for person in ("S00", "S01", "S02") for day in ("1", "2")]
    write_signals(tmp_path / "x", *(f"{person}_day{day}_acc.csv" for person, day in both))
    write_labels(tmp_path / "x", "subject,day", {",".join(names): A for names in both})
    _, _, doubtful = inferred(tmp_path / "x")
    assert any(doubt.startswith("labels name the person only") for doubt in doubtful)


def test_a_row_of_labels_is_named_as_it_is_counted_in_the_file(tmp_path: Path) -> None:
    names = ["r0", "r1", "r2"]
    write_signals(tmp_path / "x", *(f"{name}/vib.csv" for name in names))
    write_labels(tmp_path / "x", "recording", dict.fromkeys(names, A))
    layout, _, _ = inferred(tmp_path / "x")
    text = (tmp_path / "x/labels.csv").read_text().replace("r2,3.0,6.0,b", "r2,6.0,3.0,b")
    (tmp_path / "x/labels.csv").write_text(text)
    with pytest.raises(DataError, match="the label of row 6 ends before it starts"):
        read_all(layout, tmp_path / "x")
    (tmp_path / "x/labels.csv").write_text(text.replace("r2,6.0,3.0,b", "r2,3.0,6.0,odd"))
    with pytest.raises(DataError, match=r"labels\.csv, row 6: label 'odd' is not in the layout"):
        read_all(layout, tmp_path / "x")


def read_all(layout: TableLayout, folder: Path) -> None:
    for part in convert(str(folder), layout).parts:
        list(part.samples(Remarks()))
