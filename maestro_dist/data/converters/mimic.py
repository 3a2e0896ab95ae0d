"""MIMIC-III and MIMIC-IV: the first hours of stays in intensive care of adults, died in hospital or not.

Source: the published tables PATIENTS, ADMISSIONS, ICUSTAYS, CHARTEVENTS and LABEVENTS, as `.csv` or `.csv.gz`, with
names in capital letters (MIMIC-III) or in `hosp` and `icu` (MIMIC-IV). Of each admission the first stay is used, if it
lasts as long as the history. Events are those of the person in these hours, whatever their other numbers.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from maestro_dist.config.windows import WindowConfig
from maestro_dist.data.converters.csv_tables import NO_TIME, csv_blocks, csv_table
from maestro_dist.data.converters.event_grid import grid_steps
from maestro_dist.data.converters.files import AnySource, SourceFile, SourceFiles, missing_text
from maestro_dist.data.converters.mimic_items import VARIABLES
from maestro_dist.data.converters.source import Conversion, Converter, as_recordings, counted
from maestro_dist.data.description import Description
from maestro_dist.data.parts import Remarks
from maestro_dist.data.recordings.raw import RawRecording
from maestro_dist.errors import ConfigError, DataError
from maestro_dist.types import Modality

TABLES = ("patients", "admissions", "icustays", "chartevents", "labevents")
CLASSES = ("survived", "died")
STATIC = "static"
LICENCE = "PhysioNet Credentialed Health Data License 1.5.0"
CITATION = (
    "Johnson A et al. MIMIC-III, a freely accessible critical care database. Scientific Data 2016;3:160035. "
    "Johnson A et al. MIMIC-IV, a freely accessible electronic health record dataset. Scientific Data 2023;10:1."
)
_ADULT = 18
_OLDEST = 90.0  # in MIMIC-III older people have a false date of birth, in MIMIC-IV the age 91
_YEAR_S = 365.25 * 24 * 3600
_STAYS = 10_000  # of a part, which reads the tables of events once: a grid of them is in memory
_TABLE = re.compile(rf"({'|'.join(TABLES)})\.csv(\.gz)?", re.IGNORECASE)


@dataclass(frozen=True)
class _IcuStay:
    """A stay. `start_s`: seconds since 1970; `age` in years; `male`: NaN if unknown."""

    stay: int
    person: int
    start_s: int
    age: float
    male: float
    died: int


@dataclass(frozen=True)
class _StayGroup:
    """Some stays, sorted by person and start, and the tables of their events. A cell has `cell_s` seconds."""

    name: str
    stays: tuple[_IcuStay, ...]
    chart: SourceFile
    lab: SourceFile
    steps: int
    cell_s: int

    def samples(self, remarks: Remarks) -> Iterator[RawRecording]:
        """See `Part.samples`."""
        shape = (len(self.stays), len(VARIABLES), self.steps)
        total, count = np.zeros(shape), np.zeros(shape, dtype=np.int32)
        find = _StayFinder.of(self.stays)
        for file, of_lab in ((self.chart, False), (self.lab, True)):
            self._add(file, find, of_lab, total.reshape(-1), count.reshape(-1), remarks)
        for row, stay in enumerate(self.stays):
            means = np.where(count[row] > 0, total[row] / np.maximum(count[row], 1), np.nan)
            observed = np.flatnonzero(count[row].any(axis=1)).tolist()
            values = {VARIABLES[column].name: means[column, :, None] for column in observed}
            values[STATIC] = np.array([[stay.age, stay.male]])
            remarks.count("stays without any event of the variables", int(not observed))
            length_s = float(self.steps * self.cell_s)
            yield RawRecording(str(stay.stay), values, stay.died, length_s=length_s, subject=str(stay.person))

    def _add(
        self, file: SourceFile, find: _StayFinder, of_lab: bool, total: np.ndarray, count: np.ndarray, remarks: Remarks
    ) -> None:
        items, columns, fahrenheit = _items(of_lab)
        low, high = (np.array([getattr(v, name) for v in VARIABLES], dtype=float) for name in ("low", "high"))
        needed = {"subject_id": "id", "itemid": "id", "charttime": "time", "valuenum": "number"}
        for block in csv_blocks(file, needed, {"error": "number"}):  # type: ignore[arg-type]
            place = np.minimum(np.searchsorted(items, block["itemid"]), len(items) - 1)
            known = np.flatnonzero((items[place] == block["itemid"]) & (block["charttime"] != NO_TIME))
            stay, after_s = find.stays(block["subject_id"][known], block["charttime"][known])
            inside = (stay >= 0) & (after_s < self.steps * self.cell_s)
            rows, stay, cell = known[inside], stay[inside], after_s[inside] // self.cell_s
            value, column = block["valuenum"][rows], columns[place[rows]]
            value = np.where(fahrenheit[place[rows]], (value - 32) / 1.8, value)
            given = np.isfinite(value)
            wrong = given & (block["error"][rows] == 1) if "error" in block else np.zeros(len(rows), dtype=bool)
            odd = given & ~wrong & ~((value >= low[column]) & (value <= high[column]))
            remarks.count("events without a number, left out", int((~given).sum()))
            remarks.count("events that are marked as errors, left out", int(wrong.sum()))
            remarks.count("events beyond what is possible for a patient, left out", int(odd.sum()))
            used = given & ~wrong & ~odd
            flat = (stay[used] * len(VARIABLES) + column[used]) * self.steps + cell[used]
            cells, where = np.unique(flat, return_inverse=True)
            total[cells] += np.bincount(where, weights=value[used], minlength=len(cells))
            count[cells] += np.bincount(where, minlength=len(cells)).astype(np.int32)


@dataclass(frozen=True)
class _StayFinder:
    """Finds the last stay of a person that began before a time."""

    people: np.ndarray
    keys: np.ndarray
    first_s: int
    span_s: int
    rank: np.ndarray
    start_s: np.ndarray

    @staticmethod
    def of(stays: Sequence[_IcuStay]) -> _StayFinder:
        """`stays` are sorted by person and start."""
        person, start = np.array([(stay.person, stay.start_s) for stay in stays], dtype=np.int64).T
        people, rank = np.unique(person, return_inverse=True)
        first, span = int(start.min()), int(start.max() - start.min()) + 1
        return _StayFinder(people, rank * span + start - first, first, span, rank, start)

    def stays(self, person: np.ndarray, time_s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The number of the stay of each event (-1: none), and seconds after its start."""
        rank = np.minimum(np.searchsorted(self.people, person), len(self.people) - 1)
        late = np.minimum(time_s - self.first_s, self.span_s - 1)
        found = np.searchsorted(self.keys, rank * self.span_s + late, side="right") - 1
        fits = (self.people[rank] == person) & (late >= 0) & (found >= 0) & (self.rank[found] == rank)
        return np.where(fits, found, -1), time_s - self.start_s[found]


def _items(of_lab: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sorted item numbers of a table, the variable of each, and whether it is in degrees Fahrenheit."""
    rows = sorted(
        (item, column, item in variable.fahrenheit)
        for column, variable in enumerate(VARIABLES)
        for item in (variable.lab if of_lab else (*variable.chart, *variable.fahrenheit))
    )
    item, column, fahrenheit = zip(*rows, strict=True)
    return np.array(item), np.array(column), np.array(fahrenheit)


class Mimic(Converter):
    """Stays in intensive care of adults: vital signs and laboratory values on a grid; survived or died in hospital."""

    name = "mimic"
    reads = "MIMIC-III or MIMIC-IV: tables of patients, admissions, stays, chart and laboratory events as CSV"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Options of the grid."""
        parser.add_argument(
            "--hours", type=float, default=48.0, metavar="H", help="first hours of a stay; shorter stays are left out"
        )
        parser.add_argument(
            "--grid_minutes", type=float, default=60.0, metavar="M", help="minutes of a cell (default 60)"
        )

    def from_arguments(self, source: AnySource, arguments: argparse.Namespace) -> Conversion:
        """See `Converter.from_arguments`."""
        if arguments.splits:
            raise ConfigError("--splits: a run divides people, such as data.split.by=subject data.split.test=0.1")
        steps = grid_steps(arguments.hours, arguments.grid_minutes, "--hours, --grid_minutes")
        cell_s = round(arguments.grid_minutes * 60)
        if cell_s != arguments.grid_minutes * 60:
            raise ConfigError(f"--grid_minutes {arguments.grid_minutes:g}: a whole number of seconds")
        files = SourceFiles(source)
        tables = files.find(_role)
        missing = [f"{name}.csv" for name in TABLES if name not in tables]
        if missing:
            raise files.error(
                f"{missing_text(missing)}; the source is the folder of MIMIC-III, or that of hosp and icu"
            )
        stays = _stays(tables, steps * cell_s, files.remarks)
        if not stays:
            raise files.error(f"no stay of an adult lasts {arguments.hours:g} hours")
        window_s = float(steps * cell_s)
        description = Description(
            name="mimic",
            licence=LICENCE,
            citation=CITATION,
            source="physionet.org, MIMIC clinical database",
            task="classification",
            classes=CLASSES,
            target="death in hospital",
            window_s=window_s,
            modalities=(
                *(Modality(variable.name, 1, 1 / cell_s, 0, variable.unit) for variable in VARIABLES),
                Modality(STATIC, 2, 1 / window_s, 1, "year, male", always=True),
            ),
        )
        parts = []
        for at in range(0, len(stays), _STAYS):
            group = tuple(stays[at : at + _STAYS])
            name = f"stays {at + 1:,} to {at + len(group):,}"
            parts.append(_StayGroup(name, group, tables["chartevents"], tables["labevents"], steps, cell_s))
        died = sum(stay.died for stay in stays)
        about = [f"{len(stays):,} stays, {died:,} died in hospital; ages above {_OLDEST:g} count as {_OLDEST:g}"]
        conversion = Conversion(
            description,
            parts,
            files.listing(),
            warnings=tuple(files.warnings()),
            notes=lambda counts: [*about, *counted(files.remarks.counts + Counter(counts))],
        )
        return as_recordings(conversion, WindowConfig(length_s=window_s, keep_empty=True))


def _role(path: PurePosixPath) -> str | None:
    match = _TABLE.fullmatch(path.name)
    return match[1].lower() if match else None


def _stays(tables: dict[str, SourceFile], least_s: int, remarks: Remarks) -> list[_IcuStay]:
    """The stays that are used, sorted by person and start; others are counted."""
    people = _people(tables["patients"])
    admissions = csv_table(tables["admissions"], {"hadm_id": "id", "hospital_expire_flag": "id"}, {"deathtime": "time"})
    died: dict[int, int] = {}
    for admission, flag in zip(
        admissions["hadm_id"].tolist(), admissions["hospital_expire_flag"].tolist(), strict=True
    ):
        if flag not in (0, 1) or admission in died:
            raise DataError(f"{tables['admissions'].name}: hadm_id {admission} is there twice, or its flag is {flag}")
        died[admission] = flag
    given = admissions.get("deathtime", np.full(len(died), NO_TIME))
    death = dict(zip(admissions["hadm_id"].tolist(), given.tolist(), strict=True))
    stays: list[_IcuStay] = []
    seen, seen_stays = set[int](), set[int]()
    for number, person, admission, start, end in _rows(tables["icustays"]):
        if number in seen_stays:
            raise DataError(f"{tables['icustays'].name}: stay {number} is there twice; fetch it again")
        seen_stays.add(number)
        if admission not in died or person not in people:
            raise DataError(f"{tables['icustays'].name}: stay {number} has an admission or person that is in no table")
        reason = _left_out(start, end, death[admission], least_s)
        age = people[person].age(start) if not reason else 0.0
        if admission in seen:
            reason = "later stays of an admission, left out"
        elif not reason and age < _ADULT:
            reason = f"stays of people below {_ADULT} years, left out"
        seen.add(admission)
        if reason:
            remarks.count(reason)
        else:
            stays.append(_IcuStay(number, person, start, min(age, _OLDEST), people[person].male, died[admission]))
    return sorted(stays, key=lambda stay: (stay.person, stay.start_s))


def _left_out(start: int, end: int, death: int, least_s: int) -> str:
    """Why a stay is not used; "" if it is."""
    if NO_TIME in (start, end):
        return "stays without a start or end, left out"
    if end - start < least_s:
        return "stays that are too short, left out"
    return "stays of people who died within these hours, left out" if NO_TIME != death < start + least_s else ""


def _rows(file: SourceFile) -> list[tuple[int, ...]]:
    """Stay, person, admission, start and end of each stay, by start."""
    columns = {"subject_id": "id", "hadm_id": "id", "intime": "time", "outtime": "time"}
    table = csv_table(file, columns, {"icustay_id": "id", "stay_id": "id"})  # type: ignore[arg-type]
    number = table.get("icustay_id", table.get("stay_id"))
    if number is None:
        raise DataError(f"{file.name}: no column icustay_id or stay_id")
    rows = zip(number.tolist(), *(table[name].tolist() for name in columns), strict=True)
    return sorted(rows, key=lambda row: (row[3], row[0]))


@dataclass(frozen=True)
class _MimicPerson:
    """A person: seconds of birth (MIMIC-III), or age in a year (MIMIC-IV)."""

    male: float
    birth_s: int | None
    anchor_age: float = 0.0
    anchor_year: float = 0.0

    def age(self, at_s: int) -> float:
        """Age in years."""
        if self.birth_s is not None:
            return (at_s - self.birth_s) / _YEAR_S
        year = int(np.datetime64(at_s, "s").astype("datetime64[Y]").astype(np.int64)) + 1970
        return self.anchor_age + year - self.anchor_year


def _people(file: SourceFile) -> dict[int, _MimicPerson]:
    optional = {"dob": "time", "anchor_age": "number", "anchor_year": "number"}
    table = csv_table(file, {"subject_id": "id", "gender": "text"}, optional)  # type: ignore[arg-type]
    male = [{"M": 1.0, "F": 0.0}.get(gender, np.nan) for gender in table["gender"].tolist()]
    ids = table["subject_id"].tolist()
    if len(set(ids)) < len(ids):
        raise DataError(f"{file.name}: a subject_id is there twice; fetch it again")
    if "dob" in table:
        if (table["dob"] == NO_TIME).any():
            raise DataError(f"{file.name}: a person without a date of birth (dob); fetch it again")
        return {p: _MimicPerson(m, born) for p, m, born in zip(ids, male, table["dob"].tolist(), strict=True)}
    if not {"anchor_age", "anchor_year"} <= table.keys():
        raise DataError(f"{file.name}: neither dob (MIMIC-III) nor anchor_age and anchor_year (MIMIC-IV)")
    ages, years = table["anchor_age"], table["anchor_year"]
    if not (np.isfinite(ages).all() and np.isfinite(years).all()):
        raise DataError(f"{file.name}: a person without anchor_age or anchor_year; fetch it again")
    return {p: _MimicPerson(m, None, a, y) for p, m, a, y in zip(ids, male, ages.tolist(), years.tolist(), strict=True)}
