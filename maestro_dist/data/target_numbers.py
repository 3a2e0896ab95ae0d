"""Several targets of a regression: their names, the numbers of a sample, and their statistics in a split.

A sample has one number for each target, in their order; NaN: it is unknown in this sample. At least one is known.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from maestro_dist.config.sections import NonNegativeInt
from maestro_dist.data.manifest_findings import Finite, ManifestEntry
from maestro_dist.data.moments import RunningMoments
from maestro_dist.data.plain_values import checked_list, finite_number, first_duplicate, python_number, short_repr
from maestro_dist.errors import DataError

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,39}")  # a part of the names of metrics
_BLOCK = 4096
"""Samples whose moments are counted together, by place in the split: the sums do not depend on shards or parts."""


class TargetStatistics(ManifestEntry):
    """One target in a split: how many samples have a known number, their mean and standard deviation (population)."""

    known: NonNegativeInt
    mean: Finite
    std: Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass
class TargetMoments:
    """Counts the `targets` numbers of the samples of a split, in their order, in pieces of any size."""

    targets: int
    _moments: RunningMoments = field(init=False)
    _waiting: list[np.ndarray] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._moments = RunningMoments(self.targets)

    def add(self, numbers: Sequence[Any] | np.ndarray) -> None:
        """Add samples, [n, K]."""
        if len(numbers):
            rows = np.ascontiguousarray(numbers, dtype=np.float64)  # numpy's sums depend on the order in memory
            self._waiting.append(rows.reshape(-1, self.targets))
        if sum(map(len, self._waiting)) >= _BLOCK:
            self._count()

    def statistics(self) -> list[TargetStatistics]:
        """One for each target; call it once, after all samples."""
        self._count(rest=True)
        return statistics_of(self._moments)

    def _count(self, *, rest: bool = False) -> None:
        waiting = np.ascontiguousarray(np.concatenate([np.empty((0, self.targets)), *self._waiting]))
        end = len(waiting) if rest else len(waiting) // _BLOCK * _BLOCK
        for start in range(0, end, _BLOCK):
            self._moments.add(waiting[start : min(start + _BLOCK, end)])
        self._waiting = [waiting[end:]]


def statistics_of(moments: RunningMoments) -> list[TargetStatistics]:
    """The moments of K targets, one entry for each."""
    columns = zip(moments.count.tolist(), moments.mean.tolist(), moments.std.tolist(), strict=True)
    return [TargetStatistics(known=known, mean=mean, std=std) for known, mean, std in columns]


def target_statistics(numbers: np.ndarray, targets: int) -> list[TargetStatistics] | None:
    """Statistics of the numbers [N, K] of a split; None for one target, which is counted otherwise."""
    if targets == 1:
        return None
    moments = TargetMoments(targets)
    moments.add(numbers)
    return moments.statistics()


def checked_targets(given: Any, task: str, where: str) -> tuple[str, ...]:
    """The names of the targets. Raises DataError if they are no names, or the task has no several targets."""
    names = checked_list(given, "targets", where)
    if not names:
        return ()
    if task != "regression":
        raise DataError(f"{where}: targets are given, but task is {task}; only a regression has several targets")
    for name in names:
        if not isinstance(name, str) or not _NAME.fullmatch(name) or "_missing_" in name:
            raise DataError(
                f"{where}: target {short_repr(name)}: a name begins with a letter and has up to 40 letters, digits, - "
                "or _, without '_missing_', because metrics are named by it"
            )
    # MLflow may keep metrics in files whose names do not tell capitals from small letters
    again = first_duplicate(name.lower() for name in names)
    if again is not None:
        raise DataError(f"{where}: two targets are named '{again}'")
    if len(names) == 1:
        raise DataError(f"{where}: targets names '{names[0]}' only; for one number say target='{names[0]}' instead")
    return tuple(str(name) for name in names)


def target_row(given: Any, targets: Sequence[str], where: str) -> tuple[float, ...]:
    """The numbers of a sample, given in the order of the targets or by their names.

    NaN, None, and a name without an entry make NaN: the target is unknown.

    Raises:
        DataError: it is something else, or no target is known; the message begins with `where`.
    """
    named = ", ".join(targets)
    if isinstance(given, Mapping):
        odd = next((name for name in given if name not in targets), None)
        if odd is not None:
            raise DataError(f"{where}: target {short_repr(odd)} is not one of {named}")
        values = [given.get(name) for name in targets]
    elif isinstance(given, str | bytes | set | frozenset) or not _is_row(given):
        raise DataError(
            f"{where}: label {short_repr(given)} is neither a list of {len(targets)} numbers ({named}) nor a "
            "dictionary by target"
        )
    else:
        values = list(given)
    if len(values) != len(targets):
        raise DataError(f"{where}: label {short_repr(given)} has {len(values)} numbers, not {len(targets)} ({named})")
    row = tuple(_number(value, name, where) for value, name in zip(values, targets, strict=True))
    if all(math.isnan(number) for number in row):
        raise DataError(f"{where}: none of the targets {named} is known; leave it out")
    return row


def is_known(numbers: np.ndarray) -> np.ndarray:
    """Which samples have a known number, bool [n]: of one target [n], or of any of several [n, K]."""
    known = ~np.isnan(numbers)
    return known if known.ndim == 1 else known.any(axis=1)


def plain_numbers(numbers: Iterable[float]) -> list[float | None]:
    """Numbers for JSON, which has no NaN."""
    return [None if math.isnan(number) else number for number in numbers]


def _is_row(given: Any) -> bool:
    return isinstance(given, Iterable) and getattr(given, "shape", None) != ()


def _number(value: Any, name: str, where: str) -> float:
    if value is None or value is np.ma.masked or type(value).__name__ in ("NAType", "NaTType"):
        return math.nan
    plain = python_number(value)
    if isinstance(plain, float) and math.isnan(plain):
        return math.nan
    number = int(plain) if isinstance(plain, bool) else finite_number(plain)
    if number is None:
        raise DataError(f"{where}: target {name} is {short_repr(value)}, not a number that float32 can hold")
    return float(number)
