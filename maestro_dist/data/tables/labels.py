"""Labels of tables: texts as classes or numbers, and rows of labels as intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from maestro_dist.data.parts import Remarks
from maestro_dist.data.plain_values import short_repr
from maestro_dist.data.tables.layout import TableLayout, parted_texts
from maestro_dist.data.tables.times import SECOND
from maestro_dist.errors import DataError

Label = str | float | tuple[float, ...]
Interval = tuple[int, int, Label]
"""Start and end in ns, and the label; of several targets their numbers, NaN where one is unknown."""

OPEN = 2**62
"""The end of an interval that lasts to the end of its recording."""
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

    def label(self, text: str | None, where: str) -> Label | None:
        """The class or number; None: no label.

        Raises:
            DataError: it is no known class, or not a number.
        """
        if text is None or text in self.layout.ignore or self.layout.task == "none":
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
        read = [(begin, end, self.label(text, where)) for begin, end, text in rows]
        return [(begin, end, label) for begin, end, label in read if label is not None]

    def of_intervals(
        self, starts: np.ndarray, ends: np.ndarray | None, texts: Sequence[str | None], where: str, remarks: Remarks
    ) -> list[Interval]:
        """Intervals of a table. Without `ends` each lasts until the next starts, and the last one is `OPEN`."""
        order = np.argsort(starts, kind="stable")
        if ends is None:
            ends = np.full_like(starts, OPEN)
            ends[order[:-1]] = starts[order[1:]]
        found = []
        for row in order.tolist():
            label = self.label(texts[row], f"{where}, row {row + 1:,}")
            if label is None:
                continue
            if ends[row] < starts[row]:
                raise DataError(f"{where}: the label of row {row + 1:,} ends before it starts; correct it")
            if ends[row] == starts[row]:
                remarks.warn("labels without length, left out, in", where)
                continue
            found.append((int(starts[row]), int(ends[row]), label))
        return found


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
