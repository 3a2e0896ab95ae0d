"""The table of labels of recordings: a CSV file with the columns record, label and, for intervals, start_s and end_s.

It may also have the columns subject and split. Instead of `label` there may be none of the labels: then the table only
says whose recordings they are.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from maestro_dist.data.parts import join_names
from maestro_dist.data.storage import Storage, redact
from maestro_dist.errors import DataError, StorageError

_COLUMNS = ("record", "start_s", "end_s", "label", "subject", "split")
Interval = tuple[float, float, str]


@dataclass
class RecordLabels:
    """What a table says of one recording: one label or intervals, and the person and split if it has such columns."""

    whole: str | None = None
    intervals: list[Interval] = field(default_factory=list)
    subject: str | None = None
    split: str | None = None


@dataclass(frozen=True)
class LabelTable:
    """A table of labels. `digest` differs for another content."""

    name: str
    rows: Mapping[str, RecordLabels]
    digest: str

    def of_records(self, records: Sequence[str], wrapper: str = "") -> tuple[dict[str, RecordLabels], list[str]]:
        """The labels by recording, and warnings. The table has the path of a recording, or the last part of it.

        wrapper  the folder around all files of an archive, which the path need not begin with

        Raises:
            DataError: a name in the table fits several recordings, or none fits any.
        """
        by_last: dict[str, list[str]] = {}
        for record in records:
            by_last.setdefault(PurePosixPath(record).name, []).append(record)
        known, found, unknown = set(records), dict[str, RecordLabels](), []
        for name, labels in self.rows.items():
            plain = re.sub(r"\.(hea|edf|bdf)\Z", "", name, flags=re.IGNORECASE)
            whole = [path for path in (plain, f"{wrapper}/{plain}") if path in known][:1]
            fits = whole or by_last.get(plain, [])
            if len(fits) > 1 or (fits and fits[0] in found):
                raise DataError(f"{self.name}: record {name} is {join_names(fits, 4)}; write its path, and only once")
            if fits:
                found[fits[0]] = labels
            else:
                unknown.append(name)
        if not found:
            raise DataError(f"{self.name}: none of its records is in the source: {join_names(unknown, 5)}")
        warnings = []
        if unknown:
            warnings.append(
                f"{self.name}: records that are not in the source ({len(unknown):,}): {join_names(unknown)}"
            )
        absent = [record for record in records if record not in found]
        if absent:
            warnings.append(f"recordings without a row in {self.name} ({len(absent):,}): {join_names(absent)}")
        return found, warnings


def read_label_table(path: str) -> LabelTable:
    """The table at a path or URL.

    Raises:
        DataError: it is missing, or a row is wrong; the message names the line.
    """
    name = redact(path)
    try:
        content = Storage(path).read(expected=True)
    except StorageError as error:
        raise DataError(f"--labels {name}: cannot be read ({error})") from None
    try:
        reader = csv.DictReader(io.StringIO(content.decode("utf-8-sig")), strict=True)
        columns = [column.strip() for column in reader.fieldnames or ()]
        reader.fieldnames = columns
        unknown = [column for column in columns if column not in _COLUMNS]
        twice = len(set(columns)) < len(columns)
        if unknown or twice or "record" not in columns or ("start_s" in columns) != ("end_s" in columns):
            raise DataError(f"{name}, line 1: the columns are {', '.join(_COLUMNS)}; only record is always needed")
        rows: dict[str, RecordLabels] = {}
        for row in reader:
            _add(rows, row, f"{name}, line {reader.line_num}")
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{name}: not a CSV table in UTF-8 ({error})") from None
    if not rows:
        raise DataError(f"{name}: it has no rows")
    return LabelTable(name, rows, hashlib.sha256(content).hexdigest())


def _add(rows: dict[str, RecordLabels], row: dict[str, str | None], where: str) -> None:
    if None in row or None in row.values():  # csv's marks of too many and too few fields
        raise DataError(f"{where}: it has another number of fields than line 1")
    given = {column: (text or "").strip() for column, text in row.items()}
    if not given["record"]:
        raise DataError(f"{where}: no record")
    labels = rows.setdefault(given["record"].replace("\\", "/"), RecordLabels())
    for column in ("subject", "split"):
        before = getattr(labels, column)
        if column in given and before not in (None, given[column]):
            raise DataError(f"{where}: {column} {given[column]!r}, but {before!r} above; a recording has one")
        if column in given:
            setattr(labels, column, given[column])
    text = given.get("label", "")
    if not text:
        return
    times = [given.get(column, "") for column in ("start_s", "end_s")]
    if any(times):
        labels.intervals.append((*_seconds(times, where), text))
    elif labels.whole is not None:
        raise DataError(f"{where}: a second label of the whole recording {given['record']}")
    else:
        labels.whole = text
    if labels.whole is not None and labels.intervals:
        raise DataError(f"{where}: {given['record']} has a label for all of it and labels with times; keep one kind")


def _seconds(times: Sequence[str], where: str) -> tuple[float, float]:
    try:
        start, end = (float(text) for text in times)
    except ValueError:
        raise DataError(f"{where}: start_s and end_s are numbers of seconds, not {' and '.join(times)!r}") from None
    if not (math.isfinite(start) and math.isfinite(end) and start < end):
        raise DataError(f"{where}: the label lasts from {start:g} s to {end:g} s; its end must be after its start")
    return start, end
