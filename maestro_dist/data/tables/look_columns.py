"""What the columns of a table may mean: time, label, person, or a measured value. Part of `--infer`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from maestro_dist.data.parts import join_names
from maestro_dist.data.tables.layout import LongColumns
from maestro_dist.data.tables.look_files import Looked
from maestro_dist.data.tables.look_names import (
    GROUP,
    ITEM,
    LABEL,
    RECORDING,
    SPLIT,
    SUBJECT,
    TIME,
    UNIT,
    VALUE,
    may_be_label,
    plain_name,
)
from maestro_dist.data.tables.look_sets import is_named_after_labels, may_hold_together
from maestro_dist.data.tables.look_times import TIME_UNITS, are_dates, in_epoch, is_clock, is_day, is_elapsed

_START = {
    "start", "begin", "onset", "from", "begins", "starts", "start_time", "begin_time", "starttime", "time_start",
    "start_date", "startdate", "date_start", "start_datetime", "beginn",
}  # fmt: skip
_END = {
    "end", "stop", "offset", "to", "until", "finish", "ends", "end_time", "stop_time", "endtime", "time_end",
    "end_date", "enddate", "date_end", "end_datetime", "ende",
}  # fmt: skip
_DURATION = {"duration", "length", "dur", "lasts"}
_INDEX = re.compile(
    r"(unnamed_*\d*|index|(row|sample|frame|packet|line)_?(id|index|number|num|no|count|counter)?|seq|sequence|counter|no|nr"
    r"|index_level_\d+|package_?num(ber)?)"
)
_IDENTIFIER = re.compile(r"(.*_)?(id|ids|uuid|guid|serial|serial_number)")
_MOST_ITEMS = 300
_MOST_SENSORS = 50
_LEAST_ROWS_OF_ITEM = 3


@dataclass
class Roles:
    """What the columns of one kind of file mean.

    clock      the time of day, where `time` is a day
    labels     columns that say yes or no, if these are the labels: several may hold at once
    separator  between several labels in a cell
    alone      `recording` names a recording without `subject`
    apart      a column that tells apart the rows of one time, and its texts: each is a sensor
    restarts   another recording starts where time goes back
    long       the columns with names and values; then `numbers` are such names, and `unit` the column of their units
    left_out   (column, reason)
    doubts     what a person should check
    """

    time: str | None = None
    clock: str | None = None
    start: str | None = None
    end: str | None = None
    duration: str | None = None
    label: str | None = None
    labels: list[str] = field(default_factory=list)
    separator: str | None = None
    subject: str | None = None
    recording: str | None = None
    alone: bool = False
    group: str | None = None
    split: str | None = None
    apart: tuple[str, list[str]] | None = None
    restarts: bool = False
    long: LongColumns | None = None
    unit: str | None = None
    numbers: list[str] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)

    @property
    def times(self) -> list[str]:
        """The columns that make the time, none if there is no time."""
        return [column for column in (self.time, self.clock) if column]

    @property
    def is_intervals(self) -> bool:
        """Whether the rows are labels over time."""
        labelled = self.label is not None or bool(self.labels)
        return self.start is not None and (self.end or self.duration) is not None and labelled

    @property
    def label_columns(self) -> list[str]:
        """The columns with the labels, none if there are no labels."""
        return self.labels or [column for column in (self.label,) if column]


def roles_of(files: Sequence[Looked], *, facts: bool) -> Roles:
    """The meaning of the columns of files of one kind. `facts`: a table of recordings or people."""
    first = files[0]
    roles = Roles()
    names = {column: plain_name(column)[0] for column in first.columns}
    numeric = {column for column in first.columns if any(file.numbers(column) is not None for file in files)}

    def take(known: set[str], among: Sequence[str] | None = None) -> str | None:
        free = [c for c in (first.columns if among is None else among) if c not in _used(roles)]
        return next((c for c in free if names[c] in known), None)

    roles.start, roles.end, roles.duration = take(_START), take(_END), take(_DURATION)
    roles.label = take(LABEL) or next((c for c in first.columns if may_be_label(names[c])), None)
    named = [c for c in first.columns if may_be_label(names[c])]
    if may_hold_together(files, named):
        _take_labels(roles, named)
    roles.subject, roles.recording = take(SUBJECT), take(RECORDING)
    roles.group, roles.split = take(GROUP), take(SPLIT)
    of_times = roles.start is not None and (roles.end or roles.duration) is not None
    if of_times and not roles.label_columns:
        _find_labels(files, roles, names)
    if not roles.is_intervals:
        roles.start = roles.end = roles.duration = None
    if not roles.is_intervals and not facts:
        _find_time(files, roles, names)
        if roles.time is not None:
            _find_long(files, roles, names)
        if roles.long is None and not roles.label_columns and all(map(is_named_after_labels, files)):
            _find_labels(files, roles, names)
    for column in first.columns:
        if column in _used(roles):
            continue
        if may_be_label(names[column]):
            roles.left_out.append((column, "it may be a label too"))
            roles.doubts.append(f"column {column!r} may be a label too, and is left out")
        elif column in numeric and roles.long is None and not roles.is_intervals:
            reason = _no_value(files, column, names[column], facts=facts)
            if reason:
                roles.left_out.append((column, reason))
            else:
                roles.numbers.append(column)
        else:
            empty = all(file.table.column(column).null_count == file.rows for file in files)
            reason = "it is empty" if empty else "it does not hold numbers"
            roles.left_out.append((column, "rows are divided by name" if roles.long and column in numeric else reason))
    if roles.time is not None and roles.long is None and not facts and roles.numbers:
        _find_sensors(files, roles)
    if first.dialect.start_and_rate:
        roles.time, roles.clock, roles.numbers = None, None, list(first.columns)
    return roles


def _take_labels(roles: Roles, columns: list[str]) -> None:
    roles.label, roles.labels = None, columns
    roles.doubts.append(f"columns {join_names(columns, 8)} say yes or no: labels that may hold together?")


def _find_labels(files: Sequence[Looked], roles: Roles, names: dict[str, str]) -> None:
    """Take all columns that are left as labels, if they say yes or no."""
    free = [c for c in files[0].columns if c not in _used(roles) and not _INDEX.fullmatch(names[c] or "index")]
    if may_hold_together(files, free):
        _take_labels(roles, free)


def _find_time(files: Sequence[Looked], roles: Roles, names: dict[str, str]) -> None:
    """The column with the time, and the one with the time of day if that is another one."""
    first = files[0]
    free = [c for c in first.columns if c not in _used(roles)]
    named = [c for c in free if names[c] in TIME] + [c for c in free if names[c] in _START]
    named += [c for c in free if c not in named and _is_time_name(names[c])]
    dates = [c for c in free if are_dates(files, c) or is_elapsed(files, c)]
    usable = [c for c in named if c in dates or first.numbers(c) is not None]
    roles.time = next(iter([*usable, *dates, *named]), None) or _steady(first, free, names)
    if roles.time is None and not first.dialect.header:
        roles.time = next((c for c in free if in_epoch(files, c)), None)
    days, clocks = ([c for c in free if test(files, c)] for test in (is_day, is_clock))
    if days and clocks and roles.time in (*days, *clocks):
        roles.time = roles.time if roles.time in days else days[0]
        roles.clock = clocks[0]


def _find_long(files: Sequence[Looked], roles: Roles, names: dict[str, str]) -> None:
    """Whether rows have one value each, and its name."""
    free = [c for c in files[0].columns if c not in _used(roles)]
    item = next((c for c in free if names[c] in ITEM), None)
    values = [c for c in free if names[c] in VALUE and c != item]
    value = next((c for c in values if any(file.numbers(c) is not None for file in files)), next(iter(values), None))
    if item is None or value is None:
        return
    texts = [text for file in files for text in pc.unique(file.table.column(item)).cast(pa.string()).to_pylist()]
    found = dict.fromkeys(text.strip() for text in texts if text is not None and text.strip())
    rows = sum(file.rows for file in files)
    if not 2 <= len(found) <= _MOST_ITEMS or rows < _LEAST_ROWS_OF_ITEM * len(found):
        return
    roles.long = LongColumns(name=item, value=value)
    roles.unit = next((c for c in free if names[c] in UNIT), None)
    for file in files:
        file.long = roles.long
    roles.numbers = [name for name in found if any(file.numbers(name) is not None for file in files)]
    roles.left_out += [(name, "its values are not numbers") for name in found if name not in roles.numbers]
    roles.doubts.append(f"column {item!r} names what column {value!r} has: {len(roles.numbers)} modalities")


def _find_sensors(files: Sequence[Looked], roles: Roles) -> None:
    """A column that tells apart the rows of one time, such as the number of a sensor."""
    if sum(pc.count_distinct(f.table.column(c)).as_py() for f in files for c in roles.times[:1]) > 0.7 * sum(
        f.rows for f in files
    ):
        return  # a short cut: most rows have a time of their own
    keys = [zip(*(f.table.texts(c) for c in [*roles.times, *_divided_by(roles)]), strict=True) for f in files]
    moments = [list(key) for key in keys]
    same = sum(one == other for of in moments for one, other in pairwise(of))
    if same < 0.3 * sum(file.rows for file in files):
        return  # where a block of rows has the times of another, these are recordings
    for column in files[0].columns:
        name = plain_name(column)[0]
        if column in _used(roles) or roles.numbers == [column] or _INDEX.fullmatch(name or "index"):
            continue
        if name in TIME or _is_time_name(name):
            continue
        texts = [file.labels(column) for file in files]
        counts = Counter(text for of in texts for text in of)
        each = all(len(set(zip(a, b, strict=True))) == len(a) for a, b in zip(moments, texts, strict=True))
        if each and None not in counts and 2 <= len(counts) <= _MOST_SENSORS and min(counts.values()) >= 3:
            names = sorted(str(text) for text in counts)
            roles.apart = column, names
            roles.numbers = [name for name in roles.numbers if name != column]
            roles.left_out = [(name, why) for name, why in roles.left_out if name != column]
            roles.doubts.append(
                f"column {column!r} tells apart the rows of one time: is each ({join_names(names, 5)}) a sensor?"
            )
            return


def _divided_by(roles: Roles) -> list[str]:
    return [column for column in (roles.subject, roles.recording) if column]


def unit_of_item(files: Sequence[Looked], roles: Roles, item: str) -> str:
    """The unit that most rows of a name have in the column of units, or an empty text."""
    if roles.long is None or roles.unit is None:
        return ""
    units: Counter[str] = Counter()
    for file in files:
        of_item = pc.equal(pc.utf8_trim_whitespace(file.table.column(roles.long.name).cast(pa.string())), item)
        column = file.table.column(roles.unit).filter(pc.fill_null(of_item, False))
        for pair in pc.value_counts(column.cast(pa.string())).to_pylist():
            if pair["values"] is not None and pair["values"].strip():
                units[pair["values"].strip()] += pair["counts"]
    if len(units) > 1:
        roles.doubts.append(f"{item!r} has several units: {', '.join(sorted(units))}")
    return units.most_common(1)[0][0] if units else ""


def _no_value(files: Sequence[Looked], column: str, name: str, *, facts: bool) -> str:
    """Why a column of numbers is not measured; empty if it is."""
    counts = all(file.counts_rows(column) for file in files)
    if _INDEX.fullmatch(name or "index") and (name or counts):
        return "a row number"
    found = [values[~np.isnan(values)] for file in files if (values := file.numbers(column)) is not None]
    if _IDENTIFIER.fullmatch(name) and all(np.equal(np.mod(values, 1), 0).all() for values in found):
        return "an identifier"
    if facts:
        return ""
    if counts and files[0].rows > 20:
        return "a row number"
    steps = np.concatenate([np.diff(values) for values in found])
    timely = name in TIME or name.rpartition("_")[2] in _START | _END or _is_time_name(name) or in_epoch(files, column)
    return "another time" if timely and len(steps) and (steps < 0).mean() <= 0.01 else ""


def _used(roles: Roles) -> set[str | None]:
    return {
        roles.time, roles.start, roles.end, roles.duration, roles.label, roles.subject, roles.recording, roles.group,
        roles.split, *(roles.apart[:1] if roles.apart else ()), roles.clock, roles.unit, *roles.labels,
        *((roles.long.name, roles.long.value) if roles.long else ()),
    }  # fmt: skip


def _is_time_name(name: str) -> bool:
    words = name.split("_")
    return bool({"time", "timestamp", "datetime", "date", "datum", "zeit"} & set(words)) or (
        name in TIME_UNITS and len(name) > 2
    )


def _steady(file: Looked, columns: Sequence[str], names: dict[str, str]) -> str | None:
    """A first column without such a name whose values rise steadily, but are no row numbers."""
    for column in columns[:1]:
        values = file.numbers(column)
        if values is None or len(values) < 20 or _INDEX.fullmatch(names[column] or "index"):
            return None
        steps = np.diff(values)
        if (steps > 0).all() and not file.counts_rows(column) and steps.max() < 100 * np.median(steps):
            return column
    return None
