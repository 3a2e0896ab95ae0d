"""Labels of tables: texts as classes or numbers, and rows of labels as intervals."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from maestro_dist.data.parts import Remarks
from maestro_dist.data.plain_values import short_repr
from maestro_dist.data.tables.layout import (
    TableFile,
    TableLayout,
    label_text,
    names_as_text,
    names_of_text,
    parted_texts,
)
from maestro_dist.data.tables.reading import MISSING, Table
from maestro_dist.data.tables.times import SECOND
from maestro_dist.errors import DataError
from maestro_dist.types import MULTILABEL

Label = str | float | tuple[float, ...] | tuple[str, ...]
Interval = tuple[int, int, Label | None]
"""Start and end in ns, and the label; of several targets their numbers, NaN where one is unknown. Where several labels
may hold, the names of those that do; None: it is not known which ones do."""

OPEN = 2**62
"""The end of an interval that lasts to the end of its recording."""
YES, NO = frozenset({"1", "true", "yes", "y"}), frozenset({"0", "false", "no", "n"})
"""What columns of several labels say, in small letters."""
_JOINED = re.compile(r"[;|,+/&]")
_PAUSE = 10
"""A label of rows does not last through a pause of more than this many usual steps."""


@dataclass(frozen=True)
class LabelReader:
    """The meaning of the labels of a layout."""

    layout: TableLayout
    _classes: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, texts in self.layout.classes.items():
            self._classes.update(dict.fromkeys(texts, name))

    def texts(self, table: Table, about: TableFile, remarks: Remarks) -> list[str | None]:
        """The label of each row as text, None where it is not known; several labels as `names_as_text`.

        Raises:
            DataError: a cell of several label columns does not say yes or no.
        """
        if self.layout.task != MULTILABEL:
            return table.labels(about.label_columns)
        if isinstance(about.label, list):
            return self._from_marks(table, about, remarks)
        empty = "" if "" in about.marks else None
        cells = table.texts(about.label_columns[0])
        plain: dict[str | None, str | None] = {None: empty}
        for cell in set(cells) - {None}:
            names = str(cell).split(about.separator) if about.separator else [str(cell)]
            plain[cell] = names_as_text(sorted({label_text(name) for name in names if name.strip()}))
        return [plain[cell] for cell in cells]

    def _from_marks(self, table: Table, about: TableFile, remarks: Remarks) -> list[str | None]:
        """Labels of columns that say yes or no."""
        held = np.zeros((len(table), len(about.label_columns)), dtype=bool)
        unknown = np.zeros_like(held)
        for place, column in enumerate(about.label_columns):
            cells = table.texts(column)
            means = {cell: self._mark(cell, about) for cell in set(cells)}
            odd = next((row for row, cell in enumerate(cells) if cell not in MISSING and means[cell] is None), None)
            if odd is not None and cells[odd] is not None:
                raise DataError(
                    f"{table.name}: column {column!r} has {short_repr(cells[odd])} in row {odd + 1:,}, which is "
                    "neither yes nor no; correct it, or say what it means (marks: {TEXT: true})"
                )
            held[:, place] = [means[cell] is True for cell in cells]
            unknown[:, place] = [means[cell] is None for cell in cells]
        partly = int((unknown.any(axis=1) & ~unknown.all(axis=1)).sum())
        if partly:
            remarks.count("rows with a label that is not known, which count as rows without labels", partly)
        sets, which = np.unique(held, axis=0, return_inverse=True)
        names = np.array([label_text(column) for column in about.label_columns])
        texts = [names_as_text(names[one].tolist()) for one in sets]
        found: list[str | None] = [texts[number] for number in which.reshape(-1).tolist()]
        for row in np.flatnonzero(unknown.any(axis=1)).tolist():
            found[row] = None
        return found

    def _mark(self, cell: str | None, about: TableFile) -> bool | None:
        """Whether a cell says yes or no; None: neither."""
        text = "" if cell is None else label_text(cell)
        if text in about.marks:
            return about.marks[text]
        text = text.lower()
        return True if text in YES else False if text in NO else None

    def label(self, text: str | None, where: str) -> Label | None:
        """The class or number; the names of several classes, maybe of none; None: no label.

        Raises:
            DataError: it is no known class, or not a number.
        """
        if text is None or self.layout.task == "none":
            return None
        if self.layout.task == MULTILABEL:
            return self._names(text, where)
        if text in self.layout.ignore:
            return None
        if self.layout.task == "classification":
            found = self._classes.get(text)
            if found is None:
                known = ", ".join(list(self._classes)[:10])
                raise DataError(
                    f"{where}: label {short_repr(text)} is not in the layout ({known}); add it to classes, or to ignore"
                )
            return found
        if self.layout.targets:
            return self._numbers(text, where)
        return self._number(text, "label", where)

    def _names(self, text: str, where: str) -> tuple[str, ...]:
        """The classes of a set of labels, in their order."""
        found = set()
        for name in names_of_text(text):
            if name not in self._classes and name not in self.layout.ignore:
                known = ", ".join(list(self._classes)[:10])
                raise DataError(
                    f"{where}: label {short_repr(name)} is not in the layout ({known}); add it to classes, or to ignore"
                    + ("; several labels in one cell need a separator" if _JOINED.search(name) else "")
                )
            found.add(self._classes.get(name))
        return tuple(name for name in self.layout.classes if name in found)

    def _numbers(self, text: str, where: str) -> tuple[float, ...] | None:
        """The number of each target; None if all are unknown."""
        parts = parted_texts(text)
        if len(parts) != len(self.layout.targets):
            raise DataError(f"{where}: label {short_repr(text)} is not {len(self.layout.targets)} numbers; correct it")
        named = zip(parts, self.layout.targets, strict=True)
        known = [(None if part in self.layout.ignore else part, name) for part, name in named]
        numbers = tuple(math.nan if part is None else self._number(part, name, where) for part, name in known)
        return None if all(map(math.isnan, numbers)) else numbers

    def _number(self, text: str, what: str, where: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise DataError(f"{where}: {what} {short_repr(text)} is not a number; correct it, or add it to ignore")
        return number

    def of_rows(self, times: np.ndarray, texts: Sequence[str | None], where: str) -> list[Interval]:
        """Intervals of equal labels. Each row's label lasts until the next row; `times`: int64 ns [rows], in order."""
        rows = intervals_of_rows(times, texts)
        read: list[Interval] = [(begin, end, self.label(text, where)) for begin, end, text in rows]
        if self.layout.task == MULTILABEL:
            return _with_unknown(read)
        return [interval for interval in read if interval[2] is not None]

    def of_intervals(
        self,
        starts: np.ndarray,
        ends: np.ndarray | None,
        rows: Sequence[tuple[int, str | None]],
        where: str,
        remarks: Remarks,
    ) -> list[Interval]:
        """Intervals of a table. `rows`: the number of each row in its file, from 0, and its label.

        Without `ends` each lasts until the next starts, and the last one is `OPEN`. Of labels that may hold together,
        those with one start last until the next later one.
        """
        order = np.argsort(starts, kind="stable")
        if ends is None:
            ends = np.full_like(starts, OPEN)
            ends[order[:-1]] = starts[order[1:]]
            if self.layout.task == MULTILABEL:
                moments = np.append(np.unique(starts), OPEN)
                ends = moments[np.searchsorted(moments, starts, side="right")]
        found = []
        for row in order.tolist():
            number, text = rows[row]
            label = self.label(text, f"{where}, row {number + 1:,}")
            if label is None and self.layout.task != MULTILABEL:
                continue
            if ends[row] < starts[row]:
                raise DataError(
                    f"{where}: the label of row {number + 1:,} ends before it starts; correct it, or name the column "
                    "with the date too, if these are times of day"
                )
            if ends[row] == starts[row]:
                remarks.warn("labels without length, left out, in", where)
                continue
            found.append((int(starts[row]), int(ends[row]), label))
        return found


def _with_unknown(known: list[Interval]) -> list[Interval]:
    """Intervals in order, and what is between, before and after them as intervals of unknown labels."""
    edges = [-OPEN, *(edge for begin, end, _ in known for edge in (begin, end)), OPEN]
    gaps: list[Interval] = [(a, b, None) for a, b in zip(edges[::2], edges[1::2], strict=True) if b > a]
    return known + gaps if known else []


def intervals_of_rows(times: np.ndarray, labels: Sequence[Any]) -> list[tuple[int, int, Any]]:
    """Intervals (start, end, label) of equal labels, in ns, without those of None.

    Each row's label lasts until the next row, but not through a pause. `times`: int64 ns [rows], in order.
    """
    if not len(times):
        return []
    known = {label: number for number, label in enumerate(dict.fromkeys(labels))}
    codes = np.array([known[label] for label in labels])
    steps = np.diff(times)
    usual = int(np.median(steps[steps > 0])) if (steps > 0).any() else SECOND
    pause = steps > _PAUSE * usual
    edges = np.flatnonzero((np.diff(codes) != 0) | pause) + 1
    first = np.concatenate([[0], edges])
    last = np.concatenate([edges, [len(times)]]) - 1
    ends = np.append(times[1:], times[-1] + usual)[last]
    ends = np.where(np.append(pause, False)[last], times[last] + usual, ends)
    return [
        (begin, end, labels[row])
        for begin, end, row in zip(times[first].tolist(), ends.tolist(), first.tolist(), strict=True)
        if labels[row] is not None and end > begin
    ]
