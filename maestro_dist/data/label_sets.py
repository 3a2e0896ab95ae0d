"""Labels as whole numbers: one of several classes, or a set of them.

A set of labels is stored as one number: label k adds 2^k. So it has a place wherever one class has, also in a float64.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from maestro_dist.data.plain_values import python_number, short_repr, whole_number
from maestro_dist.errors import DataError

MOST_LABELS = 52
"""Sets of more labels have no exact float64."""


@dataclass(frozen=True)
class ClassCounter:
    """How many samples have each class.

    classes  number of classes; 0: labels are numbers, which are not counted
    several  a sample has a set of them
    targets  numbers of a sample, if it has no class
    """

    classes: int = 0
    several: bool = False
    targets: int = 1

    def counts(self, labels: np.ndarray) -> list[int]:
        """How often each class occurs in `labels`, [N] or [N, S]; empty without classes. Other numbers do not count."""
        if not self.classes:
            return []
        numbers = self.numbers(labels).reshape(-1)
        numbers = numbers[numbers >= 0]
        if self.several:
            return [int(np.count_nonzero(numbers >> label & 1)) for label in range(self.classes)]
        return np.bincount(numbers, minlength=self.classes).tolist()

    def numbers(self, labels: np.ndarray) -> np.ndarray:
        """Labels [N] as whole numbers, int64 [N]: a class, or a set of them; -1 for a number that is no label."""
        given = np.asarray(labels, dtype=np.float64)
        limit = 1 << self.classes if self.several else self.classes
        right = (given >= 0) & (given < limit) & (given == np.floor(given))
        return np.where(right, given, -1.0).astype(np.int64)


def label_set(given: Any, classes: Sequence[str], where: str) -> int:
    """A set of labels as a number. Each one is the name or the number of a class.

    Raises:
        DataError: it is not a list or set, or has something that is no class.
    """
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        raise DataError(
            f"{where}: label {short_repr(given)} is not a list; a sample may have several labels: [{given!r}]"
        )
    found = 0
    for one in given:
        if isinstance(one, str):
            number = classes.index(one) if one in classes else None
        else:
            plain = python_number(one)
            number = None if isinstance(plain, bool) else whole_number(plain)
        if number is None or not 0 <= number < len(classes):
            raise DataError(f"{where}: label {short_repr(one)} is none of {', '.join(classes[:10])}")
        found |= 1 << number
    return found


def without_overlaps(
    intervals: Sequence[tuple[float, float, int]], length_s: float, unknown: Sequence[tuple[float, float]] = ()
) -> np.ndarray:
    """Sets of labels over time, float64 [L, 3]: start, end and set, ascending, without overlaps.

    `intervals`: (start, end, set) in any order; they may overlap. From the first moment to `length_s`, what no interval
    covers has no label at all, which is known of it. There are gaps only where labels are `unknown`: (start, end),
    whatever intervals say there.
    """
    given = [*((start, end) for start, end, _ in intervals), *unknown]
    edges = np.unique([0.0, length_s, *(t for interval in given for t in interval)])
    total = np.zeros(len(edges) - 1, dtype=np.int64)
    for start, end, labels in intervals:
        total[np.searchsorted(edges, start) : np.searchsorted(edges, end)] |= labels
    for start, end in unknown:
        total[np.searchsorted(edges, start) : np.searchsorted(edges, end)] = -1
    changes = np.concatenate([[True], total[1:] != total[:-1]])
    first = np.flatnonzero(changes)
    ends = np.concatenate([edges[first[1:]], edges[-1:]])
    return np.stack([edges[first], ends, total[first].astype(np.float64)], axis=1)[total[first] >= 0]
