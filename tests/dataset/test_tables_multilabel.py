"""Tables with several labels at once: columns of yes and no, cells with several names, intervals that overlap."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from pack_dataset import main
from test_tables_infer import inferred

from maestro_dist.config.schema import DataConfig
from maestro_dist.data.label_sets import without_overlaps
from maestro_dist.data.load import load_data
from maestro_dist.data.parts import Remarks
from maestro_dist.data.reader import Request, SplitSource
from maestro_dist.data.recordings.raw import RawRecording
from maestro_dist.data.tables.conversion import convert
from maestro_dist.data.tables.layout import TableLayout
from maestro_dist.data.tables.look_sets import separator_of
from maestro_dist.errors import DataError

LABELS = ("walk", "phone", "rain")
SECONDS = 240


def holds(person: int) -> np.ndarray:
    """Which labels hold in each piece of 8 s, bool [pieces, labels]."""
    return np.random.default_rng(person).random((SECONDS // 8, len(LABELS))) < (0.5, 0.4, 0.3)


def write(path: Path, head: Sequence[str], rows: Sequence[Sequence[Any]], mark: str = ",", point: str = ".") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [[str(v).replace(".", point) if isinstance(v, float) else str(v) for v in row] for row in rows]
    path.write_bytes(
        "\n".join(mark.join(row) for row in [head, *cells]).encode("cp1252" if mark == ";" else "utf-8-sig")
    )


def folder(place: Path, kind: str, people: int = 3) -> Path:
    """PERSON/signals.csv at 2 Hz, and the labels in one of several forms."""
    for person in range(people):
        draw, sets = np.random.default_rng(100 + person), holds(person)
        of_row = sets[np.arange(2 * SECONDS) // 16]
        values = np.round(draw.normal(size=of_row.shape) + 4 * of_row, 3)
        head, rows = ["time", "acc", "light", "wet"], [[n / 2, *v] for n, v in enumerate(values.tolist())]
        names = [[name for name, there in zip(LABELS, row, strict=True) if there] for row in of_row]
        own = place / f"P{person:02d}"
        if kind == "columns":
            head += [f"{name}_label" for name in LABELS]
            rows = [[*row, *("yes" if there else "No" for there in of)] for row, of in zip(rows, of_row, strict=True)]
        if kind == "names":
            head, rows = [*head, "activity"], [[*row, "+".join(of)] for row, of in zip(rows, names, strict=True)]
        write(own / "signals.csv", head, rows, *((";", ",") if kind == "columns" else ()))
        if kind == "intervals":
            found = [(8 * k, 8 * k + 8, LABELS[n]) for k, n in zip(*np.nonzero(sets), strict=True)]
            write(own / "events.csv", ["start", "end", "what"], found)
        if kind == "marks":
            write(
                own / "events.csv", ["begin", "length", *LABELS], [[8 * k, 8, *s] for k, s in enumerate(sets.tolist())]
            )
    return place


FILE = {"path": "{subject}/signals.csv", "time": {"column": "time"}}
MODALITIES = {name: {"columns": [name], "rate_hz": 2} for name in ("acc", "light", "wet")}
ENTRIES: dict[str, list[dict[str, Any]]] = {
    "columns": [{"label": [f"{n}_label" for n in LABELS], "delimiter": ";", "decimal": ",", "encoding": "cp1252"}],
    "names": [{"label": "activity", "separator": "+", "marks": {"": False}}],
    "intervals": [
        {}, {"path": "{subject}/events.csv", "intervals": {"start": "start", "end": "end"}, "label": "what"},
    ],
    "marks": [
        {},
        {"path": "{subject}/events.csv", "intervals": {"start": "begin", "duration": "length"}, "label": [*LABELS]},
    ],
}  # fmt: skip


def layout(kind: str, **changes: Any) -> dict[str, Any]:
    first, *others = ENTRIES[kind]
    classes: Any = {name: [name, f"{name}_label"] for name in LABELS}
    entries = [{**FILE, "modalities": MODALITIES, **first}, *others]
    entries[-1] = {**entries[-1], **changes.pop("file", {})}
    given = {"name": "walks", "task": "multilabel", "classes": classes, "window": {"length_s": 8}, "files": entries}
    return given | changes


def labels(source: Path, given: dict[str, Any]) -> tuple[dict[str, Any], Remarks]:
    remarks = Remarks()
    made = [r for p in convert(str(source), TableLayout.model_validate(given)).parts for r in p.samples(remarks)]
    return {r.key: r.labels for r in made if isinstance(r, RawRecording)}, remarks


@pytest.mark.parametrize("kind", list(ENTRIES))
def test_all_forms_of_the_same_labels_make_the_same_windows(kind: str, tmp_path: Path) -> None:
    source = folder(tmp_path / "tables", kind)
    (tmp_path / "layout.yaml").write_text(yaml.safe_dump(layout(kind), sort_keys=False))
    url = str(tmp_path / "data")
    assert main(["csv", "--source", str(source), "--layout", str(tmp_path / "layout.yaml"), "--out", url]) == 0
    config = DataConfig.model_validate({"url": url, "split": {"by": "subject", "validation": ["P01"], "test": ["P02"]}})
    manifest = load_data(config)
    assert manifest.task == "multilabel"
    assert list(manifest.classes) == list(LABELS)
    for person, split in enumerate(("train", "validation", "test")):
        source_of = SplitSource(url, manifest, config, tuple(manifest.select(None)), split)
        found = np.asarray(source_of.open().batch(Request(np.arange(SECONDS // 8))).target)
        np.testing.assert_array_equal(np.sort(found), np.sort(holds(person) @ (1, 2, 4)))
        assert manifest.split(split).class_counts == holds(person).sum(0).tolist()


@pytest.mark.parametrize("kind", ["columns", "marks", "names"])
def test_what_is_unmistakable_is_inferred(kind: str, tmp_path: Path) -> None:
    source = folder(tmp_path / "tables", kind)
    found, recordings, doubtful = inferred(source)
    assert found.task == "multilabel"
    assert len(recordings) == 3
    assert any("may hold together?" in doubt or "divided by '+'?" in doubt for doubt in doubtful)
    of_labels = next(file for file in found.files if file.label)
    assert of_labels.label_columns == (
        ["activity"] if kind == "names" else list(LABELS) if kind == "marks" else [f"{name}_label" for name in LABELS]
    )


def test_what_may_be_something_else_is_asked_about(tmp_path: Path) -> None:
    found, _, doubtful = inferred(folder(tmp_path / "tables", "intervals"))
    assert found.task == "none"  # column `what` says nothing
    rows = [[n, n % 7 / 8, n % 2, n // 3 % 2] for n in range(60)]
    write(tmp_path / "switches" / "a.csv", ["time", "acc", "button", "door"], rows)
    found, _, doubtful = inferred(tmp_path / "switches")
    assert found.task == "none"
    assert {"button", "door"} <= {m for file in found.files for m in file.modalities}
    assert any("columns button, door say yes or no: labels? then task: multilabel" in doubt for doubt in doubtful)
    rows = [[n, n % 7 / 8, n % 2, 1 - n % 2] for n in range(60)]
    write(tmp_path / "one" / "a.csv", ["time", "acc", "label_sit", "label_walk"], rows)
    found, _, doubtful = inferred(tmp_path / "one")  # exactly one in each row: classes
    assert found.task == "classification"


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        (["walk", "walk;phone", "run"], (";", ["phone", "run", "walk"])),
        (["walk", "phone", "walk, phone"], (",", ["phone", "walk"])),
        (["sit, floor", "sit, chair", "walk"], None),  # names of classes have commas
        (["1,5", "2,5", "1,2", "2,1"], None),  # decimal commas
        (["a;a", "a"], None),
        (["walk", "run"], None),
        ([], None),
        (["a|b", "c|d"], None),
    ],
)
def test_cells_with_several_names(texts: list[str], found: tuple[str, list[str]] | None) -> None:
    assert separator_of(texts) == found


def rows_of_labels(place: Path, cells: Sequence[str], head: str = "walk,phone") -> Path:
    place.mkdir(parents=True)
    lines = [f"{n},{n % 5},{cell}" for n, cell in enumerate(cells)]
    (place / "a.csv").write_text("\n".join([f"time,acc,{head}", *lines]) + "\n")
    return place


ROWS = {
    "name": "x", "task": "multilabel", "classes": ["walk", "phone"], "window": {"length_s": 2},
    "files": [{"path": "{recording}.csv", "time": {"column": "time"}, "label": ["walk", "phone"],
               "modalities": {"acc": {"columns": ["acc"], "rate_hz": 1}}}],
}  # fmt: skip


def rows_layout(**file: Any) -> dict[str, Any]:
    return {**ROWS, "files": [{**ROWS["files"][0], **file}]}  # type: ignore[dict-item,index]


def test_empty_cells_are_unknown_unless_marks_say_otherwise(tmp_path: Path) -> None:
    source = rows_of_labels(tmp_path / "x", ["1,0", "1,0", ",", "NA,", "0,1", "0,", "0,0", "0,0"])
    found, remarks = labels(source, rows_layout())
    known = [(a, b, names) for a, b, names in found["a"] if names is not None]
    assert known == [(0, 2, ("walk",)), (4, 5, ("phone",)), (6, 8, ())]
    assert [(a, b) for a, b, names in found["a"] if names is None] == [(2, 4), (5, 6)]
    assert remarks.counts["rows with a label that is not known, which count as rows without labels"] == 1
    found, _ = labels(source, rows_layout(marks={"": False}))
    assert [(a, b, names) for a, b, names in found["a"] if names is not None] == [
        (0, 2, ("walk",)), (2, 3, ()), (4, 5, ("phone",)), (5, 8, ()),
    ]  # fmt: skip


def test_other_words_for_yes_and_no(tmp_path: Path) -> None:
    source = rows_of_labels(tmp_path / "x", ["x,", ",x", "x,x", ","])
    with pytest.raises(DataError, match=re.escape("column 'walk' has 'x' in row 1, which is neither yes nor no")):
        labels(source, rows_layout())
    found, _ = labels(source, rows_layout(marks={"x": True, "": False}))
    assert [names for _, _, names in found["a"] if names is not None] == [
        ("walk",), ("phone",), ("walk", "phone"), (),
    ]  # fmt: skip


def test_unknown_names_in_cells_are_refused(tmp_path: Path) -> None:
    source = rows_of_labels(tmp_path / "x", ["walk|phone", "walk| |", "swim|walk"], head="tags")
    with pytest.raises(DataError, match=r"label 'swim' is not in the layout \(walk, phone\)"):
        labels(source, rows_layout(label="tags", separator="|"))
    with pytest.raises(DataError, match=r"'walk\|phone' is not in the layout .*several labels in one cell need a sep"):
        labels(source, rows_layout(label="tags"))
    given = {**rows_layout(label="tags", separator="|"), "ignore": ["swim"]}
    found, _ = labels(source, given)
    assert [names for _, _, names in found["a"] if names is not None] == [("walk", "phone"), ("walk",), ("walk",)]


def test_starts_alone_last_until_the_next_later_one(tmp_path: Path) -> None:
    source = rows_of_labels(tmp_path / "x", ["", "", "", "", "", ""], head="none")
    (source / "a_events.csv").write_text("at,what\n0,walk\n0,phone\n2,\n4,phone\n")
    events = {"path": "{recording}_events.csv", "intervals": {"start": "at"}, "label": "what"}
    signals = {**ROWS["files"][0], "path": "{recording}.csv", "label": None}  # type: ignore[dict-item,index]
    found, _ = labels(source, {**ROWS, "files": [signals, events]})
    assert found["a"] == [(0, 2, ("walk",)), (0, 2, ("phone",)), (2, 4, None), (4, 6, ("phone",))]


def test_one_set_for_each_recording(tmp_path: Path) -> None:
    for name in "abcd":
        rows_of_labels(tmp_path / "x" / name, [""] * 4, head="none")
    (tmp_path / "x" / "facts.csv").write_text("who,walk,phone\na,1,1\nb,0,0\nc,,\nd,true,False\n")
    facts = {"path": "facts.csv", "facts": True, "recording": "who", "label": ["walk", "phone"]}
    signals = {**ROWS["files"][0], "path": "{recording}/a.csv", "label": None}  # type: ignore[dict-item,index]
    found, remarks = labels(tmp_path / "x", {**ROWS, "files": [signals, facts]})
    assert found == {"a": ("walk", "phone"), "b": (), "c": None, "d": ("walk",)}
    assert remarks.warnings["recordings without a label"] == ["c"]


def test_parquet_with_booleans(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    (tmp_path / "x").mkdir()
    table = {"time": [0.0, 1, 2], "acc": [1.0, 2, 3], "walk": [True, None, False], "phone": [True, False, True]}
    pq.write_table(pa.table(table), tmp_path / "x" / "a.parquet")
    found, _ = labels(tmp_path / "x", rows_layout(path="{recording}.parquet"))
    assert [names for _, _, names in found["a"] if names is not None] == [("walk", "phone"), ("phone",)]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"file": {"label": ["walk_label", "sun"]}}, "column 'sun' of {subject}/signals.csv is not in classes"),
        ({"file": {"separator": ";"}}, "separator belongs to a label in one column"),
        ({"file": {"marks": {"": True}}}, "an empty cell may mean no, not yes"),
        ({"task": "classification"}, "label of {subject}/signals.csv is one column"),
        ({"task": "classification", "file": {"label": "a", "separator": ";"}}, "belong to task: multilabel"),
        ({"file": {"label": "activity", "marks": {"x": True}}}, "belong to columns of yes and no"),
        ({"classes": []}, "classes belong to task: classification or multilabel"),
    ],
)
def test_layouts_that_do_not_fit_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        TableLayout.model_validate(layout("columns", **change))


def test_unknown_times_are_gaps_between_sets() -> None:
    sets = without_overlaps([(0, 4, 1), (2, 6, 2)], 10, [(3, 5), (8, 20)])
    np.testing.assert_array_equal(sets, [[0, 2, 1], [2, 3, 3], [5, 6, 2], [6, 8, 0]])
    assert without_overlaps([], 10, [(-5, 20)]).shape == (0, 3)
