"""Labels that come at a rate of their own, such as a hypnogram or a heart rate: stored as intervals of equal labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from maestro_dist.data.description import Description
from maestro_dist.data.plain_values import finite_number, short_repr, type_name
from maestro_dist.errors import DataError
from maestro_dist.types import MULTILABEL


@dataclass(frozen=True)
class LabelTrack:
    """A label for each step of a recording, in `RawRecording.labels`.

    values   [n] classes, by name or number, or numbers; with task multilabel true or false for each class, [n, C]; of
             several targets [n, K]. NaN, None or masked: the label is unknown
    rate_hz  steps a second; step k lasts from start_s + k / rate_hz to start_s + (k + 1) / rate_hz
    start_s  when the first step begins, in seconds after the recording's time 0
    """

    values: Any
    rate_hz: float
    start_s: float = 0.0


def track_intervals(
    track: LabelTrack, description: Description, number_of: Callable[[Any], float], where: str
) -> np.ndarray:
    """The intervals of equal labels of a track: start and end in seconds, and the label, float64 [L, 3] or [L, 2 + K].

    `number_of` gives the number of a class, or raises DataError. `where` begins the messages.

    Raises:
        DataError: a value is no label, or the shape or the rate is wrong.
    """
    rate, start = finite_number(track.rate_hz), finite_number(track.start_s)
    if rate is None or rate <= 0:
        raise DataError(
            f"{where}: the rate of its labels, {short_repr(track.rate_hz)}, is not a positive number (of Hz)"
        )
    if start is None:
        raise DataError(f"{where}: start_s of its labels, {short_repr(track.start_s)}, is not a number of seconds")
    values = track.values
    if isinstance(values, np.ma.MaskedArray):
        masked, values = np.ma.getmaskarray(values), values.data
        if masked.any():
            values = values.astype(object)
            values[masked] = None
    try:
        values = np.asarray(values)
    except ValueError as error:  # rows of different lengths
        raise DataError(f"{where}: its labels are no array ({error})") from None
    columns = len(description.targets) or (len(description.classes) if description.task == MULTILABEL else 0)
    shape = (len(values) if values.ndim else 0, *([columns] if columns else []))
    if values.shape != shape:
        wanted = f"[steps, {columns}]" if columns else "[steps]"
        raise DataError(f"{where}: its labels have shape {list(values.shape)}, not {wanted}")
    if description.task == "classification":
        rows = _classes(values, number_of, where)[:, None]
    else:
        rows = _numbers(values, where).reshape(len(values), max(1, columns))
        if description.task == MULTILABEL:
            rows = _sets(rows, where)
    return _runs(rows, float(rate), float(start))


def _classes(values: np.ndarray, number_of: Callable[[Any], float], where: str) -> np.ndarray:
    """Numbers of classes, float64 [n]; NaN: unknown."""
    listed = values.tolist()
    try:
        different = dict.fromkeys(listed)
    except TypeError:
        raise DataError(f"{where}: a label of a step is {type_name(listed[0])}, not a class") from None
    known = {value: np.nan if value is None or value != value else number_of(value) for value in different}
    return np.array([known[value] for value in listed], dtype=np.float64)


def _numbers(values: np.ndarray, where: str) -> np.ndarray:
    """Numbers that float32 can hold, or NaN."""
    if values.dtype.kind == "O":
        plain = [np.nan if value is None else value for value in values.reshape(-1).tolist()]
        values = np.array(plain).reshape(values.shape)
    if values.dtype.kind not in "biuf" and values.size:
        raise DataError(f"{where}: its labels are of type {values.dtype}, not numbers")
    numbers = values.astype(np.float64)
    far = np.abs(numbers) > np.finfo(np.float32).max
    if far.any():
        raise DataError(f"{where}: label {numbers[far][0]:g} is not a finite number that float32 can hold")
    return numbers


def _sets(rows: np.ndarray, where: str) -> np.ndarray:
    """Sets of labels as numbers, float64 [n, 1], from 0 and 1 by class; unknown if one of them is."""
    odd = ~(np.isnan(rows) | (rows == 0) | (rows == 1))
    if odd.any():
        raise DataError(f"{where}: label {rows[odd][0]:g} of a step is not true or false (1 or 0) for a class")
    numbers = rows @ (2.0 ** np.arange(rows.shape[1]))
    return numbers[:, None]


def _runs(rows: np.ndarray, rate_hz: float, start_s: float) -> np.ndarray:
    """Intervals of equal rows; those without anything known are left out."""
    before, after = rows[:-1], rows[1:]
    changes = ((before != after) & ~(np.isnan(before) & np.isnan(after))).any(axis=1)
    first = np.concatenate([[0] if len(rows) else [], np.flatnonzero(changes) + 1]).astype(np.int64)
    edges = start_s + np.append(first, len(rows)) / rate_hz
    intervals = np.column_stack([edges[:-1], edges[1:], rows[first]])
    found: np.ndarray = intervals[~np.isnan(rows[first]).all(axis=1)]
    return found
