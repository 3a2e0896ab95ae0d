"""The converter of MIMIC, on generated tables with the columns of MIMIC-III and MIMIC-IV, against a slow loop."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from converting import packed, recordings_of

from maestro_dist.data.converters import mimic
from maestro_dist.data.converters.mimic_items import VARIABLES
from maestro_dist.data.parts import Remarks
from maestro_dist.errors import ConfigError, DataError

T0 = datetime(2143, 3, 31, 1, 17, 5)
HOUR = timedelta(hours=1)
COLUMNS = {
    3: {
        "PATIENTS": "ROW_ID SUBJECT_ID GENDER DOB DOD",
        "ADMISSIONS": "ROW_ID SUBJECT_ID HADM_ID ADMITTIME DISCHTIME DEATHTIME HOSPITAL_EXPIRE_FLAG",
        "ICUSTAYS": "ROW_ID SUBJECT_ID HADM_ID ICUSTAY_ID INTIME OUTTIME LOS",
        "CHARTEVENTS": "ROW_ID SUBJECT_ID HADM_ID ICUSTAY_ID ITEMID CHARTTIME VALUE VALUENUM VALUEUOM WARNING ERROR",
        "LABEVENTS": "ROW_ID SUBJECT_ID HADM_ID ITEMID CHARTTIME VALUE VALUENUM VALUEUOM FLAG",
    },
    4: {
        "hosp/patients": "subject_id gender anchor_age anchor_year anchor_year_group dod",
        "hosp/admissions": "subject_id hadm_id admittime dischtime deathtime hospital_expire_flag",
        "icu/icustays": "subject_id hadm_id stay_id first_careunit intime outtime los",
        "icu/chartevents": "subject_id hadm_id stay_id charttime storetime itemid value valuenum valueuom warning",
        "hosp/labevents": "labevent_id subject_id hadm_id itemid charttime value valuenum valueuom comments",
    },
}
PEOPLE = {  # person -> age, gender, hours of each stay, died
    10: (40.0, "F", [60], 0),
    11: (70.0, "M", [47.9], 0),  # too short
    12: (17.5, "M", [60], 0),  # a child
    13: (300.0, "M", [200], 1),  # older than 89: a false date of birth
    14: (55.0, "F", [50, 80], 0),  # the second stay is of the same admission
}


def write_tree(root: Path, version: int, rows: dict[str, list[dict[str, Any]]]) -> None:
    for name, columns in COLUMNS[version].items():
        path = root / f"{name}.csv.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        with gzip.open(path, "wt", newline="") as file:
            writer = csv.DictWriter(file, columns.split(), restval="", extrasaction="ignore", quoting=csv.QUOTE_MINIMAL)
            writer.writeheader()
            for row in rows[Path(name).name.lower()]:
                writer.writerow({**{c: row.get(c.lower(), "") for c in columns.split()}})


def tables(people: int = 0) -> dict[str, list[dict[str, Any]]]:
    """Rows of all tables by name: of PEOPLE, and of `people` more. Each third of these died."""
    draw = np.random.default_rng(0)
    everyone = PEOPLE | {number: (50.0, "M", [70], int(number % 3 == 0)) for number in range(100, 100 + people)}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in mimic.TABLES}
    for person, (age, gender, stays, died) in everyone.items():
        born = T0 - timedelta(days=age * 365.25)
        anchor = {"anchor_age": min(91, int(age)), "anchor_year": T0.year}
        found["patients"].append({"subject_id": person, "gender": gender, "dob": born, **anchor})
        hospital = {"subject_id": person, "hadm_id": person + 1000}
        found["admissions"].append(
            {**hospital, "hospital_expire_flag": died, "deathtime": T0 + 199 * HOUR if died else ""}
        )
        start = T0
        for number, hours in enumerate(stays):
            stay = {**hospital, "icustay_id": person * 10 + number, "stay_id": person * 10 + number}
            found["icustays"].append({**stay, "intime": start, "outtime": start + hours * HOUR})
            start += (hours + 5) * HOUR
        for table, items in (("chartevents", [211, 220045, 223761, 676, 51, 999]), ("labevents", [50912, 50813, 7])):
            for _ in range(150):
                time = T0 + timedelta(minutes=int(draw.integers(-300, 60 * 60)))
                item = int(draw.choice(items))
                value = {223761: 98.6, 676: 37.5}.get(item, round(float(draw.uniform(1, 50)), 3))
                row = {**hospital, "itemid": item, "charttime": time, "value": 'a, "b"\nc', "valuenum": value}
                found[table].append(row)
    order = draw.permutation(len(found["chartevents"])).tolist()
    found["chartevents"] = [found["chartevents"][place] for place in order]
    return found


@pytest.fixture(params=[3, 4])
def version(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def slow(rows: list[dict[str, Any]], person: int, items: dict[int, Callable[[float], float]]) -> np.ndarray:
    cells: list[list[float]] = [[] for _ in range(48)]
    for row in rows:
        hour = (row["charttime"] - T0) / HOUR
        if row["subject_id"] == person and row["itemid"] in items and 0 <= hour < 48:
            cells[int(hour)].append(items[row["itemid"]](row["valuenum"]))
    return np.array([np.mean(values) if values else np.nan for values in cells])


@pytest.mark.parametrize("rename", [str.upper, lambda name: name.removesuffix(".gz"), lambda name: f"{name[:-3]}.GZ"])
def test_tables_are_read_by_their_content(tmp_path: Path, version: int, rename: Callable[[str], str]) -> None:
    """Names in capital letters, and compressed tables that are named as plain ones."""
    write_tree(tmp_path / "a", version, tables())
    write_tree(tmp_path / "b", version, tables())
    for path in sorted((tmp_path / "b").rglob("*.gz")):
        path.rename(path.with_name(rename(path.name)))
    one, other = (recordings_of("mimic", tmp_path / name)[1] for name in "ab")
    assert set(one) == set(other) == {"100", "130", "140"}
    assert all(np.array_equal(v, other[k].values[n], equal_nan=True) for k in one for n, v in one[k].values.items())


def test_stays_and_values_against_a_slow_loop(tmp_path: Path, version: int) -> None:
    rows = tables()
    write_tree(tmp_path, version, rows)
    conversion, found, _ = recordings_of("mimic", tmp_path)
    assert {k: (r.subject, r.labels, r.length_s) for k, r in found.items()} == {
        "100": ("10", 0, 48 * 3600),
        "130": ("13", 1, 48 * 3600),
        "140": ("14", 0, 48 * 3600),
    }
    same = float
    celsius = {223761: lambda f: (f - 32) * 5 / 9, 676: same}
    wanted = {
        "heart_rate": ("chartevents", {211: same, 220045: same}),
        "temperature": ("chartevents", celsius),
        "abp_systolic": ("chartevents", {51: same}),
        "creatinine": ("labevents", {50912: same}),
        "lactate": ("labevents", {50813: same}),
    }
    for key, recording in found.items():
        assert set(recording.values) == {*wanted, "static"}
        for name, (table, items) in wanted.items():
            expected = slow(rows[table], int(recording.subject), items)
            assert np.allclose(recording.values[name][:, 0], expected, equal_nan=True), (key, name)
            assert np.isfinite(expected).any()
    assert found["100"].values["static"][0] == pytest.approx([40, 0], abs=0.01)
    assert found["130"].values["static"][0].tolist() == [90, 1]
    notes = " | ".join(conversion.notes({}))
    for text in ("3 stays, 1 died", "1 later stays", "1 stays of people below 18", "1 stays that are too short"):
        assert text in notes


def test_groups_of_stays_make_the_same(tmp_path: Path, version: int, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tree(tmp_path, version, tables())
    _, expected, _ = recordings_of("mimic", tmp_path)
    monkeypatch.setattr(mimic, "_STAYS", 1)
    monkeypatch.setattr("maestro_dist.data.converters.csv_tables._BLOCK", 2000)
    conversion, found, _ = recordings_of("mimic", tmp_path)
    assert len(conversion.parts) == 3
    for key, recording in expected.items():
        for name, values in recording.values.items():
            assert np.allclose(found[key].values[name], values, equal_nan=True)


def test_edges_errors_and_impossible_values(tmp_path: Path) -> None:
    rows = tables()
    rows["chartevents"] = [
        {"subject_id": 10, "itemid": 211, "charttime": time, "valuenum": value, "error": error}
        for time, value, error in (
            (T0, 70, 0),
            (T0 - timedelta(seconds=1), 1, 0),
            (T0 + 48 * HOUR, 2, 0),
            (T0 + 48 * HOUR - timedelta(seconds=1), 80, ""),
            (T0 + HOUR, 3, 1),
            (T0 + HOUR, 5000, 0),
            (T0 + HOUR, "", 0),
            ("", 4, 0),
        )
    ] + [{"subject_id": 10, "itemid": 676, "charttime": T0, "valuenum": 98.6}]  # Fahrenheit in the wrong field
    write_tree(tmp_path, 3, rows)
    conversion, remarks = recordings_of("mimic", tmp_path)[0], Remarks()
    found = {recording.key: recording for recording in conversion.samples(remarks)}
    rate = found["100"].values["heart_rate"][:, 0]
    assert (rate[0], rate[47], int(np.isfinite(rate).sum())) == (70, 80, 2)
    assert set(found["100"].values) - {v.name for v in VARIABLES if v.lab} == {"heart_rate", "static"}
    assert {text: count for text, count in remarks.counts.items() if "events" in text and count} == {
        "events without a number, left out": 1,
        "events that are marked as errors, left out": 1,
        "events beyond what is possible for a patient, left out": 2,
    }


def test_a_death_within_the_hours_is_left_out(tmp_path: Path, version: int) -> None:
    rows = tables()
    rows["admissions"][0] |= {"deathtime": T0 + 47 * HOUR, "hospital_expire_flag": 1}
    write_tree(tmp_path, version, rows)
    conversion, found, _ = recordings_of("mimic", tmp_path)
    assert sorted(found) == ["130", "140"]
    assert any("died within these hours" in note for note in conversion.notes({}))


def _set(name: str, column: str, value: Any) -> Callable[[dict[str, list[dict[str, Any]]]], object]:
    return lambda rows: rows[name][0].update({column: value})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_set("chartevents", "charttime", "31.03.2143 10:00"), r"(?i)chartevents.csv.gz: not a readable CSV table"),
        (_set("chartevents", "charttime", "2143-03-31 10:00:00+02:00"), r"(?i)chartevents.csv.gz: not a readable CSV"),
        (_set("labevents", "valuenum", "high"), r"(?i)labevents.csv.gz: not a readable CSV table"),
        (_set("chartevents", "subject_id", ""), r"(?i)chartevents.csv.gz: a row without subject_id"),
        (_set("admissions", "hospital_expire_flag", 2), "its flag is 2"),
        (_set("icustays", "hadm_id", 5), "stay 100 has an admission or person that is in no table"),
        (_set("icustays", "subject_id", 5), "stay 100 has an admission or person that is in no table"),
        (lambda rows: rows["icustays"].append(rows["icustays"][0]), "stay 100 is there twice"),
        (lambda rows: rows["patients"].append(rows["patients"][0]), "a subject_id is there twice"),
        (lambda rows: rows.update(icustays=rows["icustays"][1:3]), "no stay of an adult lasts 48 hours"),
        (lambda rows: rows.update(patients=[]), "it has no rows|not a readable CSV"),
    ],
)
def test_damaged_tables(
    tmp_path: Path, version: int, damage: Callable[[dict[str, list[dict[str, Any]]]], object], message: str
) -> None:
    rows = tables()
    damage(rows)
    write_tree(tmp_path, version, rows)
    with pytest.raises(DataError, match=message):
        recordings_of("mimic", tmp_path)


def test_files_that_are_missing_or_cut(tmp_path: Path, version: int) -> None:
    write_tree(tmp_path, version, tables())
    name = next(name for name in COLUMNS[version] if name.lower().endswith("labevents"))
    file = tmp_path / f"{name}.csv.gz"
    body = file.read_bytes()
    file.write_bytes(body[: len(body) // 2])
    with pytest.raises(DataError, match=r"(?i)labevents.csv.gz: not a readable CSV table"):
        recordings_of("mimic", tmp_path)
    file.write_bytes(gzip.compress(b"subject_id,itemid,charttime\n1,2,2143-01-01 00:00:00\n"))
    with pytest.raises(DataError, match="no column valuenum"):
        recordings_of("mimic", tmp_path)
    file.unlink()
    with pytest.raises(DataError, match=r"labevents.csv is missing"):
        recordings_of("mimic", tmp_path)
    for options in ({"hours": 48, "grid_minutes": 7}, {"hours": 1, "grid_minutes": 0.0125}, {"splits": ["test=1"]}):
        with pytest.raises(ConfigError, match="--"):
            recordings_of("mimic", tmp_path, **options)


def test_packed_with_the_tool(tmp_path: Path, version: int) -> None:
    write_tree(tmp_path / "tables", version, tables())
    manifest = packed("mimic", tmp_path / "tables", tmp_path / "out")
    assert manifest.classes == ["survived", "died"]
    assert {m.name: m.steps for m in manifest.modalities}["heart_rate"] == 48
