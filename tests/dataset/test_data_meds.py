"""The converter of MEDS, on generated trees of its layout, against a slow loop over the events."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from converting import packed, recordings_of

from maestro_dist.config.schema import DataConfig
from maestro_dist.config.windows import SplitConfig
from maestro_dist.data.load import load_data
from maestro_dist.errors import ConfigError, DataError

T0 = datetime(2150, 3, 14, 1, 30)
US = pa.timestamp("us")
Event = tuple[int, datetime | None, str, float | None]


def write_events(path: Path, events: list[Event], kind: pa.DataType = US) -> None:
    person, time, code, value = (list(column) for column in zip(*events, strict=True))
    columns = {
        "subject_id": pa.array(person, pa.int64()),
        "time": pa.array(time, kind),
        "code": pa.array(code, pa.string()),
        "numeric_value": pa.array(value, pa.float32()),
        "text_value": pa.array([None] * len(code), pa.string()),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def write_labels(
    path: Path, rows: list[tuple[int, datetime, Any]], column: str = "boolean_value", kind: pa.DataType = US
) -> None:
    person, time, label = (list(values) for values in zip(*rows, strict=True))
    columns = {"subject_id": person, "prediction_time": pa.array(time, kind), column: label}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def write_splits(root: Path, splits: dict[int, str]) -> None:
    (root / "metadata").mkdir(parents=True, exist_ok=True)
    table = {"subject_id": list(splits), "split": list(splits.values())}
    pq.write_table(pa.table(table), root / "metadata" / "subject_splits.parquet")


def person_events(person: int, draw: np.random.Generator) -> list[Event]:
    static: list[Event] = [(person, None, "GENDER//F" if person % 2 else "GENDER//M", None)]
    birth: list[Event] = [(person, datetime(2100, 1, 1), "MEDS_BIRTH", None)]
    seconds = np.sort(draw.integers(-30 * 3600, 12 * 3600, size=200)).tolist()
    names = ["HR", "LAB//K//mEq/L", "note"]
    events: list[Event] = []
    for second in seconds:
        code = names[int(draw.integers(3))]
        value = None if code == "note" else float(np.float32(draw.normal(80, 5)))
        events.append((person, T0 + timedelta(seconds=int(second)), code, value))
    return static + birth + events


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Six people in two files; one has two labels."""
    draw = np.random.default_rng(0)
    root = tmp_path / "meds"
    events = {person: person_events(person, draw) for person in range(1, 7)}
    write_events(root / "data" / "train" / "0.parquet", [e for p in (1, 2, 3, 4) for e in events[p]])
    write_events(root / "data" / "held_out" / "0.parquet", [e for p in (5, 6) for e in events[p]])
    rows = [(p, T0, p % 3 == 0) for p in range(1, 7)] + [(1, T0 + timedelta(hours=5), True)]
    write_labels(root / "labels" / "mortality" / "0.parquet", rows)
    write_splits(root, {1: "train", 2: "train", 3: "train", 4: "tuning", 5: "held_out", 6: "held_out"})
    return root


def slow_series(
    root: Path, person: int, code: str, end: datetime, reduce: Callable[[list[float]], float]
) -> np.ndarray:
    """Hourly cells that end at `end`: each includes its end."""
    cells: list[list[float]] = [[] for _ in range(24)]
    for file in sorted((root / "data").rglob("*.parquet")):
        for row in pq.read_table(file, partitioning=None).to_pylist():
            if row["subject_id"] == person and row["code"] == code and row["time"] and row["numeric_value"] is not None:
                for cell in range(24):
                    last = end - timedelta(hours=23 - cell)
                    if last - timedelta(hours=1) < row["time"] <= last:
                        cells[cell].append(row["numeric_value"])
    return np.array([reduce(values) if values else np.nan for values in cells])


@pytest.mark.parametrize(("cell", "reduce"), [("mean", np.mean), ("last", lambda values: values[-1])])
def test_histories_against_a_slow_loop(tree: Path, cell: str, reduce: Callable[[list[float]], float]) -> None:
    conversion, found, _ = recordings_of("meds", tree, cell=cell)
    assert {m.name for m in conversion.description.modalities} == {"hr", "lab_k_meq_l", "static"}
    assert sorted(found) == ["1-0", "1-1", "2-0", "3-0", "4-0", "5-0", "6-0"]
    for key, end in (("1-0", T0), ("1-1", T0 + timedelta(hours=5)), ("6-0", T0)):
        for name, code in (("hr", "HR"), ("lab_k_meq_l", "LAB//K//mEq/L")):
            expected = slow_series(tree, int(key[0]), code, end, reduce)
            assert np.allclose(found[key].values[name][:, 0], expected, equal_nan=True), (key, name)
            assert 0 < np.isnan(expected).sum() < 24
    assert {key: (r.subject, r.split, r.labels) for key, r in found.items() if key in ("1-1", "4-0", "6-0")} == {
        "1-1": ("1", "train", 1),
        "4-0": ("4", "validation", 0),
        "6-0": ("6", "test", 1),
    }
    assert found["2-0"].values["static"][0] == pytest.approx([50.196, 0, 1], abs=0.001)  # age, F, M
    assert conversion.description.classes == ("no", "yes")


def test_nothing_after_the_prediction_is_seen(tree: Path) -> None:
    """Removing all later events changes nothing but the choice of codes; an event at the time itself is used."""
    _, before, _ = recordings_of("meds", tree, codes="HR;LAB//K//mEq/L")
    for file in sorted((tree / "data").rglob("*.parquet")):
        rows = pq.read_table(file, partitioning=None).to_pylist()
        kept = [r for r in rows if r["subject_id"] == 1 or r["time"] is None or r["time"] <= T0]
        events = [(r["subject_id"], r["time"], r["code"], r["numeric_value"]) for r in kept]
        last = events[-1][0]
        write_events(file, [*events, (last, T0, "HR", 1000.0), (last, T0 + timedelta(microseconds=1), "HR", 1e6)])
    _, after, _ = recordings_of("meds", tree, codes="HR;LAB//K//mEq/L", cell="last")
    _, means, _ = recordings_of("meds", tree, codes="HR;LAB//K//mEq/L")
    for key in ("1-0", "1-1", "2-0", "3-0", "5-0"):
        assert np.array_equal(means[key].values["hr"], before[key].values["hr"], equal_nan=True)
    assert after["4-0"].values["hr"][-1, 0] == 1000.0


def test_codes_are_counted_among_training_people_only(tree: Path) -> None:
    file = tree / "data" / "held_out" / "0.parquet"
    rows = pq.read_table(file, partitioning=None).to_pylist()
    events: list[Event] = [(r["subject_id"], r["time"], r["code"], r["numeric_value"]) for r in rows]
    write_events(file, events + [(6, T0 - timedelta(minutes=n), "ONLY_TEST", 1.0) for n in range(900)])
    conversion, _, _ = recordings_of("meds", tree, codes=3)
    assert "only_test" not in {m.name for m in conversion.description.modalities}
    with pytest.raises(ConfigError, match="without any number among the training people: ONLY_TEST"):
        recordings_of("meds", tree, codes="HR;ONLY_TEST")
    (tree / "metadata" / "subject_splits.parquet").unlink()  # now the folders say it
    conversion, found, _ = recordings_of("meds", tree, codes=3)
    assert "only_test" not in {m.name for m in conversion.description.modalities}
    assert {key: r.split for key, r in found.items()}["4-0"] == "train"
    for name in ("train", "held_out"):
        (tree / "data" / name / "0.parquet").rename(tree / "data" / f"{name}.parquet")
    conversion, _, _ = recordings_of("meds", tree, codes=1)
    assert [m.name for m in conversion.description.modalities] == ["only_test", "static"]
    assert conversion.warnings == (f"there are no splits, so codes are counted over all people: {tree}",)


def test_splits_of_other_names(tree: Path, tmp_path: Path) -> None:
    """MEDS allows any name besides the three; the people of such a split are in none."""
    write_splits(tree, {1: "train", 2: "train", 3: "external", 4: "tuning", 5: "held_out", 6: "held_out"})
    conversion, found, _ = recordings_of("meds", tree)
    assert "splits other than train, tuning and held_out, whose people are in none: external" in conversion.warnings
    splits = {r.subject: r.split for r in found.values()}
    assert (splits["1"], splits["3"], splits["4"]) == ("train", "", "validation")
    data = load_data(DataConfig(url=packed_at(tree, tmp_path / "out"), split=SplitConfig(by="given")))
    assert {name: split.samples for name, split in data.splits.items()} == {
        name: sum(r.split == name for r in found.values()) for name in ("train", "validation", "test")
    }


def packed_at(tree: Path, out: Path) -> str:
    packed("meds", tree, out)
    return str(out)


def test_events_without_a_column_of_numbers(tree: Path) -> None:
    """MEDS allows to leave it out, for a file in which no event has a number."""
    before = recordings_of("meds", tree)[1]
    file = tree / "data" / "held_out" / "0.parquet"
    pq.write_table(pq.read_table(file, partitioning=None).drop_columns(["numeric_value"]), file)
    found = recordings_of("meds", tree)[1]
    assert set(found) == set(before)
    assert {key: set(r.values) == {"static"} for key, r in found.items()} == {
        key: r.split == "test" for key, r in found.items()
    }


@pytest.mark.parametrize("kind", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("of_labels", ["s", "ns"])
def test_units_of_time(tree: Path, kind: str, of_labels: str) -> None:
    _, expected, _ = recordings_of("meds", tree)
    for file in sorted((tree / "data").rglob("*.parquet")):
        table = pq.read_table(file, partitioning=None)
        pq.write_table(table.set_column(1, "time", table["time"].cast(pa.timestamp(kind))), file)
    labels = tree / "labels" / "mortality" / "0.parquet"
    table = pq.read_table(labels, partitioning=None)
    pq.write_table(
        table.set_column(1, "prediction_time", table["prediction_time"].cast(pa.timestamp(of_labels))), labels
    )
    _, found, _ = recordings_of("meds", tree)
    for key, recording in expected.items():
        for name, values in recording.values.items():
            assert np.array_equal(found[key].values[name], values, equal_nan=True)


def test_a_nanosecond_after_the_prediction_is_after_it(tree: Path) -> None:
    file = tree / "data" / "held_out" / "0.parquet"
    at = np.datetime64(T0, "us").astype("datetime64[ns]").astype(np.int64)
    columns = {
        "subject_id": pa.array([5, 5, 6], pa.int64()),
        "time": pa.array([at, at + 1, at], pa.int64()).cast(pa.timestamp("ns")),
        "code": ["HR"] * 3,
        "numeric_value": pa.array([1.0, 1e6, 3.0], pa.float32()),
    }
    pq.write_table(pa.table(columns), file)
    _, found, _ = recordings_of("meds", tree)
    assert found["5-0"].values["hr"][-1, 0] == 1.0


def test_time_zones(tree: Path) -> None:
    """In UTC all is well, across the change to summer time too; with a zone in some files only it is refused."""
    _, expected, _ = recordings_of("meds", tree)
    berlin = pa.timestamp("us", tz="Europe/Berlin")
    for file in sorted((tree / "data").rglob("*.parquet")):
        table = pq.read_table(file, partitioning=None)
        utc = table["time"].cast(pa.timestamp("us", tz="UTC"))
        pq.write_table(table.set_column(1, "time", utc.cast(berlin)), file)
    with pytest.raises(DataError, match="some have a time zone, others have none"):
        recordings_of("meds", tree)
    rows = [(p, T0.replace(tzinfo=UTC), p % 3 == 0) for p in range(1, 7)]
    write_labels(tree / "labels" / "mortality" / "0.parquet", rows, kind=pa.timestamp("us", tz="America/New_York"))
    _, found, _ = recordings_of("meds", tree)
    for key in ("1-0", "6-0"):
        assert np.array_equal(found[key].values["hr"], expected[key].values["hr"], equal_nan=True)


def test_unsorted_and_repeated_events(tree: Path) -> None:
    _, expected, _ = recordings_of("meds", tree, cell="last")
    file = tree / "data" / "train" / "0.parquet"
    table = pq.read_table(file, partitioning=None)
    order = np.random.default_rng(1).permutation(len(table))
    pq.write_table(table.take(order), file)
    conversion, found, _ = recordings_of("meds", tree, cell="last")
    assert np.array_equal(found["1-0"].values["hr"], expected["1-0"].values["hr"], equal_nan=True)
    from maestro_dist.data.parts import Remarks

    remarks = Remarks()
    list(conversion.samples(remarks))
    assert remarks.counts["files of events that were not sorted by person and time"] == 1


@pytest.mark.parametrize(
    ("column", "labels", "task", "classes"),
    [
        ("categorical_value", ["home", "died", "home"], "classification", ("died", "home")),
        ("float_value", [0.5, 2.0, -1.0], "regression", ()),
        ("integer_value", [3, 0, 7], "regression", ()),
    ],
)
def test_kinds_of_labels(tree: Path, column: str, labels: list[Any], task: str, classes: tuple[str, ...]) -> None:
    rows = [(p, T0, label) for p, label in zip((1, 2, 3), labels, strict=True)]
    write_labels(tree / "labels" / "mortality" / "0.parquet", rows, column)
    conversion, found, _ = recordings_of("meds", tree)
    assert (conversion.description.task, conversion.description.classes) == (task, classes)
    assert [found[f"{p}-0"].labels for p in (1, 2, 3)] == labels


def other_labels(root: Path, rows: list[tuple[int, datetime, Any]], **more: Any) -> None:
    write_labels(root / "labels" / "mortality" / "0.parquet", rows, **more)


def change(root: Path, column: str, values: pa.Array) -> None:
    file = root / "data" / "held_out" / "0.parquet"
    table = pq.read_table(file, partitioning=None).slice(0, len(values))
    pq.write_table(table.set_column(table.schema.names.index(column), column, values), file)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda r: other_labels(r, [(1, T0, True), (1, T0, False)]), "person 1 has two labels at one prediction_time"),
        (lambda r: other_labels(r, [(99, T0, True)]), "no person of the labels has events"),
        (lambda r: other_labels(r, [(1, T0, None)]), "no label in any of"),
        (lambda r: other_labels(r, [(1, T0, "a"), (2, T0, "a")], column="categorical_value"), "only the label 'a'"),
        (lambda r: other_labels(r, [(1, T0, 1)], column="value"), "no label in any of"),
        (
            lambda r: other_labels(r, [(1, T0, 1)], kind=pa.date32()),
            r"prediction_time is date32\[day\], not a timestamp",
        ),
        (
            lambda r: write_labels(r / "labels" / "b.parquet", [(1, T0, 1.5)], "float_value"),
            "keep one of these columns",
        ),
        (lambda r: (r / "labels" / "mortality" / "0.parquet").write_bytes(b"PAR1"), "not a readable parquet file"),
        (lambda r: (r / "labels" / "mortality" / "0.parquet").unlink(), "no file of labels"),
        (lambda r: write_splits(r, {1: "dev", 2: "x"}), "splits 'dev', 'x'; those of MEDS are train, tuning, held_out"),
        (lambda r: change(r, "time", pa.array(["2150-03-14"] * 3)), "time is string, not a timestamp"),
        (lambda r: change(r, "subject_id", pa.array(["5"] * 3)), "subject_id is string"),
        (lambda r: change(r, "subject_id", pa.array([5, None, 5])), "1 nulls"),
        (lambda r: change(r, "subject_id", pa.array([2**63] * 3, pa.uint64())), "does not fit int64"),
        (lambda r: change(r, "subject_id", pa.array([1, 5, 5])), "person 1 is in data/held_out|person 1 is in data/"),
        (lambda r: change(r, "code", pa.array([1, 2, 3])), "code is int64, not a string"),
        (lambda r: change(r, "numeric_value", pa.array(["a", "b", "c"])), "numeric_value is string"),
        (lambda r: change(r, "time", pa.array([2**62] * 3).cast(pa.timestamp("ms"))), "out of range"),
    ],
)
def test_damaged_trees(tree: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(tree)
    with pytest.raises(DataError, match=message):
        recordings_of("meds", tree)


def test_wrong_options(tree: Path) -> None:
    for options in (
        {"history_hours": 24, "grid_minutes": 7},
        {"history_hours": 0},
        {"history_hours": "nan"},
        {"grid_minutes": 1e-9},
        {"codes": "HR;HR"},
        {"static": -1},
        {"splits": ["test=1"]},
    ):
        with pytest.raises(ConfigError, match="--"):
            recordings_of("meds", tree, **options)
    with pytest.raises(DataError, match="that fits --labels nothing"):
        recordings_of("meds", tree, labels="nothing")


def test_packed_with_the_tool(tree: Path, tmp_path: Path) -> None:
    manifest = packed("meds", tree, tmp_path / "out", "--grid_minutes", "30")
    assert manifest.recordings is not None
    assert {m.name: m.steps for m in manifest.modalities}["hr"] == 48
