"""The rows of one part of a folder of tables, gathered by recording."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from maestro_dist.data.converters.source_file import SourceFile
from maestro_dist.data.parts import Remarks
from maestro_dist.data.tables.labels import Interval, LabelReader
from maestro_dist.data.tables.layout import TableFile
from maestro_dist.data.tables.paths import PathPattern
from maestro_dist.data.tables.reading import Table, read_table
from maestro_dist.data.tables.times import SECOND, UNITS, check_clock_changes, in_order, nanoseconds
from maestro_dist.errors import DataError

FACTS = ("subject", "group", "split")


@dataclass(frozen=True)
class Named:
    """A file of the layout: its entry, and what the names of its path stand for."""

    about: TableFile
    file: SourceFile
    names: dict[str, str]

    @property
    def path_id(self) -> str:
        """The recording, as far as the path names it."""
        return "-".join(self.names.values())


@dataclass
class Rows:
    """Rows of signals of one recording and one entry of the layout, file by file."""

    about: TableFile
    where: str
    times: list[np.ndarray] = field(default_factory=list)
    values: list[np.ndarray] = field(default_factory=list)
    labels: list[str | None] = field(default_factory=list)

    def sorted(self) -> tuple[np.ndarray, np.ndarray, list[str | None]]:
        """Times (int64 ns [rows]) in order, values [rows, columns of all modalities], labels."""
        times, values = np.concatenate(self.times), np.concatenate(self.values)
        order = in_order(times, self.where)
        if order is not None:
            times, values = times[order], values[order]
            self.labels = [self.labels[row] for row in order.tolist()] if self.labels else []
        time = self.about.time
        if time is not None and time.unit == "date" and time.zone is None:
            check_clock_changes(times, self.where)
        return times, values, self.labels


@dataclass
class Facts:
    """What is known of a recording beside its rows. `label`: its text; `values` of modalities without time."""

    texts: dict[str, str] = field(default_factory=dict)
    label: str | None = None
    values: dict[str, np.ndarray] = field(default_factory=dict)

    def add(self, name: str, text: str | None, where: str) -> None:
        """Raises `DataError` if it is known otherwise."""
        if text is None:
            return
        known = self.label if name == "label" else self.texts.get(name)
        if known is not None and known != text:
            raise DataError(f"{where}: its {name} is {known!r} and {text!r}; one recording has one {name}")
        if name == "label":
            self.label = text
        else:
            self.texts[name] = text

    def of(self, subject: str | None) -> Facts:
        """The same facts, with the name that other files give this person."""
        return self if subject is None else replace(self, texts={**self.texts, "subject": subject})

    def merge(self, other: Facts, where: str) -> None:
        """Add what the other one knows."""
        for name, text in other.texts.items():
            self.add(name, text, where)
        self.add("label", other.label, where)
        self.values.update(other.values)


@dataclass
class Gathered:
    """One recording: rows by entry of the layout, labels over time, labels of its person at any time, facts."""

    rows: dict[int, Rows] = field(default_factory=dict)
    intervals: list[Interval] = field(default_factory=list)
    of_person: list[Interval] = field(default_factory=list)
    facts: Facts = field(default_factory=Facts)


def gather_signals(files: Iterable[tuple[int, Named]], reader: LabelReader, remarks: Remarks) -> dict[str, Gathered]:
    """The recordings of files with signals, by id. `files`: (number of the entry, file).

    Raises:
        DataError: a file is damaged, or lacks a column.
        StorageError: it cannot be read at present.
    """
    found: dict[str, Gathered] = {}
    for number, named in files:
        about = named.about
        columns = [column for modality in about.modalities.values() for column in modality.columns]
        table = _read(named, {*columns, *(about.time.columns if about.time else [])}, remarks)
        if table is None:
            continue
        values = table.numbers(columns, remarks)
        _leave_rows(table, values, about, remarks)
        times = _times(table, about)
        labels = reader.texts(table, about, remarks) if about.label_columns else None
        for name, own in _by_recording(table, named, times):
            recording = found.setdefault(name, Gathered())
            where = named.file.name if own is None else f"{named.file.name}, recording {name}"
            rows = recording.rows.setdefault(number, Rows(about, where))
            mine = slice(None) if own is None else own
            shift = sum(map(len, rows.times)) if times is None else 0
            rows.times.append(_counted(len(values[mine]), shift, about) if times is None else times[mine])
            rows.values.append(values[mine])
            if labels is not None:
                rows.labels += labels if own is None else [labels[row] for row in own.tolist()]
            _add_facts(recording.facts, table, named, own, where)
    return found


def _leave_rows(table: Table, values: np.ndarray, about: TableFile, remarks: Remarks) -> None:
    """Set values of modalities to NaN in rows that are not theirs. `values`: [rows, columns of all modalities]."""
    if not any(modality.rows for modality in about.modalities.values()):
        return
    place, taken = 0, np.zeros(len(table), dtype=bool)
    texts = {name: np.array(table.labels([name]), dtype=object) for m in about.modalities.values() for name in m.rows}
    for modality in about.modalities.values():
        own = np.ones(len(table), dtype=bool)
        for name, text in modality.rows.items():
            own &= texts[name] == text
        values[~own, place : place + len(modality.columns)] = np.nan
        place, taken = place + len(modality.columns), taken | own
    if not taken.all():
        remarks.count("rows that are of no modality in the layout (see rows), left out", int((~taken).sum()))


def gather_intervals(named: Named, reader: LabelReader, remarks: Remarks) -> dict[str, list[Interval]]:
    """The labels of a file with intervals, by the id of the recording."""
    about = named.about
    spec = about.intervals
    assert spec is not None
    wanted = {name for name in (spec.start, spec.end, spec.duration) if name}
    table = _read(named, wanted, remarks)
    if table is None:
        return {}
    where = named.file.name

    def moments(column: str) -> np.ndarray:
        return nanoseconds(table.column(column), spec.unit, spec.format, spec.zone, f"{where}: column {column!r}")

    starts = moments(spec.start)
    ends = moments(spec.end) if spec.end else None
    if spec.duration:
        lasts = table.numbers([spec.duration], remarks)[:, 0]
        ends = starts + np.round(np.nan_to_num(lasts) * UNITS.get(str(spec.unit), SECOND)).astype(np.int64)
    texts = reader.texts(table, about, remarks)
    found = {}
    for name, own in _by_recording(table, named):
        rows = np.arange(len(table)) if own is None else own
        mine = [(row, texts[row]) for row in rows.tolist()]
        found[name] = reader.of_intervals(starts[rows], None if ends is None else ends[rows], mine, where, remarks)
    return found


def gather_facts(named: Named, reader: LabelReader, remarks: Remarks) -> dict[str, Facts]:
    """The facts of a table with one row a recording or a person, by its id."""
    about = named.about
    columns = [column for modality in about.modalities.values() for column in modality.columns]
    table = _read(named, set(columns), remarks)
    if table is None:
        return {}
    values = table.numbers(columns, remarks) if columns else np.empty((len(table), 0))
    by = about.recording_columns or ([about.subject] if about.subject else [])
    ids = _ids(table, by) if by else [named.path_id] * len(table)
    found: dict[str, Facts] = {}
    label = reader.texts(table, about, remarks) if about.label_columns else [None] * len(table)
    texts = {name: table.texts(column) for name in FACTS if (column := getattr(about, name))}
    for row, name in enumerate(ids):
        if name is None:
            raise DataError(f"{named.file.name}: row {row + 1:,} names no recording; correct it")
        facts = found.setdefault(name, Facts())
        where = f"{named.file.name}, {name}"
        facts.add("label", label[row], where)
        for key, column in texts.items():
            facts.add(key, column[row], where)
        place = 0
        for modality, spec in about.modalities.items():
            own = values[row : row + 1, place : place + len(spec.columns)]
            place += len(spec.columns)
            if modality in facts.values and not np.array_equal(facts.values[modality], own, equal_nan=True):
                raise DataError(f"{where}: two rows have other values of {modality}; keep one of them")
            facts.values[modality] = own
    return found


def _read(named: Named, columns: set[str], remarks: Remarks) -> Table | None:
    """The columns of a file; None if it has no rows, which is remarked."""
    about = named.about
    table = read_table(named.file, about, {*columns, *about.text_columns}, remarks)
    if table is None or not len(table):
        remarks.warn("files without any row", named.file.name)
        return None
    return table


def _times(table: Table, about: TableFile) -> np.ndarray | None:
    time = about.time
    if table.clock is not None:
        start, rate = table.clock
        return round(start * SECOND) + np.round(np.arange(len(table)) * (SECOND / rate)).astype(np.int64)
    if time is None:
        return None
    where = f"{table.name}: column {' '.join(time.columns)!r}"
    return nanoseconds(table.joined(time.columns), time.unit, time.format, time.zone, where)


def _counted(rows: int, first: int, about: TableFile) -> np.ndarray:
    """Times of rows that follow each other."""
    rates = {modality.rate_hz for modality in about.modalities.values()}
    if len(rates) != 1:
        raise DataError(f"{about.path}: without a time, all modalities of a file have one rate_hz")
    return np.round(np.arange(first, first + rows) * (SECOND / rates.pop())).astype(np.int64)


def _by_recording(table: Table, named: Named, times: np.ndarray | None = None) -> list[tuple[str, np.ndarray | None]]:
    """(recording, its rows; None: all) in the order of their first rows. `times`: to see where time goes back."""
    found = _by_names(table, named)
    return found if times is None or not named.about.restarts else [run for one in found for run in _runs(one, times)]


def _runs(recording: tuple[str, np.ndarray | None], times: np.ndarray) -> list[tuple[str, np.ndarray | None]]:
    """A recording divided where time goes back, with a number behind its name."""
    name, own = recording
    rows = np.arange(len(times)) if own is None else own
    cuts = np.flatnonzero(np.diff(times[rows]) < 0) + 1
    front = f"{name}-" if name else ""
    return [(f"{front}{number}", run) for number, run in enumerate(np.split(rows, cuts), 1)]


def _by_names(table: Table, named: Named) -> list[tuple[str, np.ndarray | None]]:
    columns = named.about.recording_columns
    if not columns:
        return [(named.path_id, None)]
    ids = _ids(table, columns)
    empty = next((row for row, name in enumerate(ids) if name is None), None)
    if empty is not None:
        raise DataError(f"{table.name}: row {empty + 1:,} names no recording ({', '.join(columns)}); correct it")
    known = {name: number for number, name in enumerate(dict.fromkeys(ids))}
    codes = np.fromiter((known[name] for name in ids), dtype=np.int64, count=len(ids))
    order = np.argsort(codes, kind="stable")
    bounds = np.searchsorted(codes[order], np.arange(len(known) + 1))
    front = f"{named.path_id}-" if named.path_id else ""
    return [(f"{front}{name}", order[bounds[n] : bounds[n + 1]]) for name, n in known.items()]


def _ids(table: Table, columns: Sequence[str]) -> list[str | None]:
    parts = [table.texts(column) for column in columns]
    return [None if None in row else "-".join(map(str, row)) for row in zip(*parts, strict=True)]


def _add_facts(facts: Facts, table: Table, named: Named, own: np.ndarray | None, where: str) -> None:
    for name in FACTS:
        column = getattr(named.about, name)
        if column:
            texts = table.texts(column)
            for text in {texts[row] for row in own.tolist()} if own is not None else set(texts):
                facts.add(name, text, where)


def names_of(about: TableFile) -> tuple[str, ...]:
    """The names in the path of an entry."""
    return PathPattern.of(about.path).names
