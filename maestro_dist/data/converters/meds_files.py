"""The parquet files of MEDS: events, label rows and splits of people, read in pieces and checked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from maestro_dist.data.converters.event_grid import microseconds
from maestro_dist.data.converters.files import SourceFile
from maestro_dist.data.converters.folder_options import formats_package
from maestro_dist.data.parts import Remarks, join_names
from maestro_dist.errors import DataError

BIRTH = "MEDS_BIRTH"
LABELS = ("boolean_value", "integer_value", "float_value", "categorical_value")
SPLITS = {"train": "train", "tuning": "validation", "held_out": "test"}
"""The splits of MEDS that have a meaning, and ours. A data set may have others; their people are in no split here."""
_ROWS = 1 << 18  # that are read at a time


@dataclass(frozen=True)
class MedsShard:
    """One file of events. Counts are of the people of `counted` only.

    people   sorted numbers of its people
    zone     whether times have a zone; None: there are no rows
    numeric  events with a number and a time, by code
    static   events without a time, by code
    births   events with a date of birth
    """

    people: np.ndarray
    zone: bool | None
    numeric: Counter[str]
    static: Counter[str]
    births: int


@dataclass(frozen=True)
class ShardEvents:
    """Events of some codes and people, sorted by person and time; all [n] but `codes`.

    person, time_us   int64; `timed` is False for static events, which have no time
    column            which code of the list that was asked for
    value             float64; NaN: none
    """

    person: np.ndarray
    time_us: np.ndarray
    timed: np.ndarray
    column: np.ndarray
    value: np.ndarray


@dataclass(frozen=True)
class LabelRows:
    """Label rows sorted by person and time, [n] each; labels are numbers, or classes as text."""

    person: np.ndarray
    time_us: np.ndarray
    label: list[Any]
    kind: str
    zone: bool


@contextmanager
def _parquet(file: SourceFile, columns: Mapping[str, str]) -> Iterator[tuple[Any, list[str]]]:
    """The file, and which of `columns` it has. `columns`: name -> what it is; "" for one that may be missing."""
    pq, pa = formats_package("pyarrow.parquet"), formats_package("pyarrow")
    path = file.plain_path()
    try:
        with pq.ParquetFile(path if path is not None else pa.BufferReader(file.read_binary())) as opened:
            names = set(opened.schema_arrow.names)
            missing = [name for name, needed in columns.items() if needed and name not in names]
            if missing:
                raise DataError(f"{file.name}: no column {missing[0]} ({columns[missing[0]]}); is it a file of MEDS?")
            yield opened, [name for name in columns if name in names]
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        text = " ".join(str(error).split())[:200]
        raise DataError(f"{file.name}: not a readable parquet file ({text}); fetch it again") from error


_EVENTS = {"subject_id": "the person", "time": "when", "code": "what", "numeric_value": ""}
"""Columns of events, and what they are; MEDS allows to leave out the numbers."""


def _batches(file: SourceFile, columns: Sequence[str]) -> Iterator[Any]:
    """Tables of some rows, with people as int64."""
    with _parquet(file, {name: _EVENTS[name] for name in columns}) as (opened, found):
        yield from opened.iter_batches(_ROWS, columns=found)


def _people(column: Any, where: str) -> np.ndarray:
    pa = formats_package("pyarrow")
    if not pa.types.is_integer(column.type) or column.null_count:
        raise DataError(f"{where}: subject_id is {column.type} with {column.null_count} nulls, not whole numbers")
    try:
        return column.cast(pa.int64()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid as error:
        raise DataError(f"{where}: subject_id does not fit int64 ({error})") from None


def _codes(column: Any, where: str) -> Any:
    pa = formats_package("pyarrow")
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        raise DataError(f"{where}: code is {column.type}, not a string")
    return column.cast(pa.string())


def _numbers(batch: Any, where: str) -> np.ndarray:
    """float64, NaN where there is none."""
    pa = formats_package("pyarrow")
    if "numeric_value" not in batch.schema.names:
        return np.full(len(batch), np.nan)
    column = batch["numeric_value"]
    if not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type) or pa.types.is_null(column.type)):
        raise DataError(f"{where}: numeric_value is {column.type}, not a number")
    return column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False).astype(np.float64)


def shard_facts(file: SourceFile, counted: np.ndarray | None) -> MedsShard:
    """What planning needs; `counted`: the sorted people whose events are counted, None: all.

    Raises:
        DataError: the file is damaged, or no file of events.
    """
    pc = formats_package("pyarrow.compute")
    people, zones, births = [np.empty(0, dtype=np.int64)], set[bool](), 0
    counters = {True: Counter[str](), False: Counter[str]()}
    for batch in _batches(file, tuple(_EVENTS)):
        ids = _people(batch["subject_id"], file.name)
        people.append(np.unique(ids))
        _, timed, zone = microseconds(batch["time"], f"{file.name}: time", later=True)
        zones.add(zone)
        here = np.ones(len(ids), dtype=bool) if counted is None else np.isin(ids, counted)
        codes = _codes(batch["code"], file.name)
        births += pc.sum(pc.equal(codes.filter(_mask(here & timed)), BIRTH)).as_py() or 0
        with_number = np.isfinite(_numbers(batch, file.name))
        for kind, chosen in ((True, here & timed & with_number), (False, here & ~timed)):
            for row in pc.value_counts(codes.filter(_mask(chosen))).to_pylist():
                if row["values"] is not None:
                    counters[kind][row["values"]] += row["counts"]
    return MedsShard(
        np.unique(np.concatenate(people)), zones.pop() if zones else None, counters[True], counters[False], births
    )


def shard_events(file: SourceFile, codes: Sequence[str], people: np.ndarray) -> tuple[ShardEvents, dict[str, int]]:
    """The events of these codes and people (sorted), and counts of what is odd, by text.

    Raises:
        DataError: the file is damaged.
    """
    pa, pc = formats_package("pyarrow"), formats_package("pyarrow.compute")
    wanted = pa.array(list(codes), type=pa.string())
    rows: list[tuple[np.ndarray, ...]] = [tuple(np.empty(0, dtype=d) for d in ("i8", "i8", "?", "i8", "f8"))]
    odd: Counter[str] = Counter()
    for batch in _batches(file, tuple(_EVENTS)):
        ids = _people(batch["subject_id"], file.name)
        column = pc.fill_null(pc.index_in(_codes(batch["code"], file.name), value_set=wanted), -1)
        column = column.to_numpy(zero_copy_only=False).astype(np.int64)
        chosen = np.flatnonzero((column >= 0) & np.isin(ids, people))
        time_us, timed, _ = microseconds(batch["time"], f"{file.name}: time", later=True)
        values = _numbers(batch, file.name)[chosen]
        odd["infinite values, dropped"] += int(np.isinf(values).sum())
        values[np.isinf(values)] = np.nan
        rows.append((ids[chosen], time_us[chosen], timed[chosen], column[chosen], values))
    person, time_us, timed, column, values = (np.concatenate(part) for part in zip(*rows, strict=True))
    order = np.lexsort((time_us, timed, person))  # stable: what has one time stays in the order of the file
    if (np.diff(order) < 0).any():
        odd["files of events that were not sorted by person and time"] += 1
    return ShardEvents(person[order], time_us[order], timed[order], column[order], values[order]), dict(odd)


def _mask(chosen: np.ndarray) -> Any:
    return formats_package("pyarrow").array(chosen)


def read_people_splits(file: SourceFile, remarks: Remarks) -> dict[int, str]:
    """The split of each person, in our words; "" for a split with another name, which is remarked.

    Raises:
        DataError: the file is damaged, has none of the three splits, or a person in two.
    """
    splits: dict[int, str] = {}
    with _parquet(file, {"subject_id": "the person", "split": "its split"}) as (opened, found):
        body = opened.read(found)
        ids, names = _people(body["subject_id"].combine_chunks(), file.name), body["split"].to_pylist()
    if not SPLITS.keys() & set(names):
        others = join_names([repr(name) for name in dict.fromkeys(names)], 4)
        raise DataError(f"{file.name}: splits {others}; those of MEDS are {', '.join(SPLITS)}")
    for person, name in zip(ids.tolist(), names, strict=True):
        if splits.setdefault(person, SPLITS.get(name, "")) != SPLITS.get(name, ""):
            raise DataError(f"{file.name}: person {person} is in two splits")
    for name in sorted({str(name) for name in names} - SPLITS.keys()):
        remarks.warn("splits other than train, tuning and held_out, whose people are in none", name)
    return splits


def read_labels(files: Sequence[SourceFile]) -> tuple[LabelRows, dict[str, int]]:
    """All label rows, and counts of what is odd.

    Raises:
        DataError: a file is damaged, labels are of several kinds, or two of a person at one time differ.
    """
    found: list[tuple[int, int, Any]] = []
    kinds, zones, odd = set[str](), set[bool](), Counter[str]()
    for file in files:
        columns = {"subject_id": "the person", "prediction_time": "when", **dict.fromkeys(LABELS, "")}
        with _parquet(file, columns) as (opened, names):
            body = opened.read(names).combine_chunks()
        ids = _people(body["subject_id"].combine_chunks(), file.name)
        times, known, zone = microseconds(
            body["prediction_time"].combine_chunks(), f"{file.name}: prediction_time", later=False
        )
        if not known.all():
            raise DataError(f"{file.name}: row {int(np.argmin(known)) + 1} has no prediction_time")
        given = {name: body[name].to_pylist() for name in names if name in LABELS and body[name].null_count < len(body)}
        kinds |= given.keys()
        if len(kinds) > 1:
            raise DataError(f"{file.name}: labels in {' and '.join(sorted(kinds))}; keep one of these columns")
        zones.add(zone)
        for values in given.values():
            odd["label rows without a label, left out"] += sum(value is None for value in values)
            found += [row for row in zip(ids.tolist(), times.tolist(), values, strict=True) if row[2] is not None]
    if not found:
        raise DataError(f"{files[0].name}: no label in any of {', '.join(LABELS)}")
    if len(zones) > 1:
        raise DataError(f"{files[0].name}: prediction times with a zone and without one; give all in UTC")
    labels: dict[tuple[int, int], Any] = {}
    for person, time, label in found:
        if labels.setdefault((person, time), label) != label:
            raise DataError(f"{files[0].name}: person {person} has two labels at one prediction_time; keep one of them")
    odd["label rows that are repeated, left out"] += len(found) - len(labels)
    rows = sorted(labels)
    where = np.array(rows, dtype=np.int64).reshape(-1, 2)
    return LabelRows(where[:, 0], where[:, 1], [labels[row] for row in rows], kinds.pop(), zones.pop()), dict(odd)
