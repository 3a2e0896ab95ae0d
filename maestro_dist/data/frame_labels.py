"""Labels of arrays and pandas frames: the task they make, and the labels of a recording as in `RawRecording`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from maestro_dist.data.description import Kind
from maestro_dist.data.frame_times import Clock, check_one_clock, frame_times, order_of
from maestro_dist.data.plain_values import plain_scalar, short_repr, type_name
from maestro_dist.data.tables.labels import intervals_of_rows
from maestro_dist.data.tables.layout import label_text
from maestro_dist.data.tables.times import SECOND
from maestro_dist.data.target_numbers import plain_numbers
from maestro_dist.errors import DataError

_MOST_CLASSES = 50


@dataclass(frozen=True)
class RecordingTime:
    """The time of one recording: its name, its second 0 in ns, and what its times are counted by; None: it has
    arrays only, which begin at second 0."""

    key: str
    zero: int
    clock: Clock | None

    def seconds(self, given: Any, where: str) -> tuple[np.ndarray, np.ndarray | None]:
        """The times of rows of labels, int64 ns in order, and their order. Raises DataError."""
        times, clock = self.times(given, where)
        order = order_of(times, clock, where)
        return times if order is None else times[order], order

    def times(self, given: Any, where: str) -> tuple[np.ndarray, Clock]:
        """The times of labels, int64 ns. Raises DataError if they are counted by another clock than the recording."""
        times, clock = frame_times(given, where)
        if len(times):
            check_one_clock({"its modalities": self.clock or "seconds", "its labels": clock}, self.key)
        return times, clock


def labels_of(label: Any, time: RecordingTime, task: Kind, targets: Sequence[str], names: Sequence[str]) -> Any:
    """The labels of a recording, with times in seconds; None: it has none.

    label    as in `pack_frames`
    targets  names of the numbers to predict, if there are several
    names    the classes

    Raises:
        DataError: they do not fit; the message names the recording.
    """
    label = plain_scalar(label)
    if task == "none" or _is_missing(label):
        return None
    where = f"the labels of recording {time.key}"
    if targets:
        found = _target_label(label, time, where, targets)
    elif task == "multilabel":
        found = _several_labels(label, time, where, names)
    else:
        found = _label(label, time, where, task)
    if isinstance(found, _Intervals):
        return [((a - time.zero) / SECOND, (b - time.zero) / SECOND, value) for a, b, value in found]
    return found


class _Intervals(list[tuple[int, int, Any]]):
    """Start and end in ns, and the label."""


def _label(label: Any, time: RecordingTime, where: str, task: Kind) -> Any:
    def plain(value: Any) -> Any:
        return label_text(value) if task == "classification" else value

    if isinstance(label, pd.DataFrame):
        lacks = [column for column in ("start", "end", "label") if column not in label.columns]
        if lacks:
            raise DataError(
                f"{where}: a DataFrame has columns start, end, label; there is no {lacks[0]}. Several numbers are "
                "columns that FramesAbout(targets=[...]) names"
            )
        found = zip(*_spans(label, time, where), label["label"], strict=True)
        return _Intervals((a, b, plain(value)) for a, b, value in found if not _is_missing(value))
    if isinstance(label, pd.Series):
        times, order = time.seconds(label.index, where)
        ordered = label if order is None else label.iloc[order]
        rows = [None if _is_missing(value) else plain(value) for value in ordered]
        return _Intervals(intervals_of_rows(times, rows))
    return plain(_single(label, where))


def _target_label(label: Any, time: RecordingTime, where: str, targets: Sequence[str]) -> Any:
    """The label of several targets."""
    if not isinstance(label, pd.Series | pd.DataFrame):
        return label
    if isinstance(label, pd.Series):
        if not set(label.index) <= set(targets):
            raise DataError(f"{where}: a Series has one number at a time; use a DataFrame with {', '.join(targets)}")
        return label.to_dict()
    lacks = [name for name in targets if name not in label.columns]
    if lacks:
        raise DataError(f"{where}: there is no column {lacks[0]}")
    odd = [name for name in targets if not pd.api.types.is_numeric_dtype(label[name])]
    if odd:
        raise DataError(f"{where}: column {odd[0]} has values of type {label[odd[0]].dtype}, not numbers")
    numbers = label[list(targets)].to_numpy(dtype=np.float64, na_value=np.nan)
    rows = [None if np.isnan(row).all() else tuple(plain_numbers(row.tolist())) for row in numbers]
    if {"start", "end"} <= set(label.columns):
        found = zip(*_spans(label, time, where), rows, strict=True)
        return _Intervals((a, b, row) for a, b, row in found if row is not None)
    times, order = time.seconds(label.index, where)
    return _Intervals(intervals_of_rows(times, rows if order is None else [rows[place] for place in order.tolist()]))


def _several_labels(label: Any, time: RecordingTime, where: str, names: Sequence[str]) -> Any:
    """Labels that may hold at the same time."""
    if isinstance(label, pd.Series):
        raise DataError(f"{where}: a Series has one label at a time; use a DataFrame with {', '.join(names)}")
    if not isinstance(label, pd.DataFrame):
        return [label] if isinstance(label, str) or not isinstance(label, Iterable) else list(label)
    if {"start", "end"} <= set(label.columns):
        return _label(label, time, where, "multilabel")
    lacks = [name for name in names if name not in label.columns]
    if lacks:
        raise DataError(f"{where}: there is no column {lacks[0]}")
    times, order = time.seconds(label.index, where)
    frame = label if order is None else label.iloc[order]
    found = _Intervals()
    for name in names:
        odd = next((value for value in frame[name] if not _is_missing(value) and value not in (0, 1)), None)
        if odd is not None:
            raise DataError(f"{where}: column {name} has {short_repr(odd)}, not true or false")
        found += intervals_of_rows(times, [name if not _is_missing(value) and value else None for value in frame[name]])
    return found


def _spans(label: pd.DataFrame, time: RecordingTime, where: str) -> tuple[list[int], list[int]]:
    """The columns start and end, in ns."""
    start, end = (time.times(label[column], f"{where}, column {column}")[0].tolist() for column in ("start", "end"))
    return start, end


def task_of(
    labels: Mapping[str, Any], classes: Sequence[str], targets: Sequence[str], several: Sequence[str]
) -> tuple[Kind, list[str]]:
    """The task, and the classes in their order. `labels`: by recording; the rest as in `FramesAbout`.

    Raises:
        DataError: two kinds of labels are named, or there are none.
    """
    given = [name for name, of in {"classes": classes, "targets": targets, "several": several}.items() if of]
    if len(given) > 1:
        raise DataError(f"pack_frames: {' and '.join(given)} are given; labels are of one kind")
    if not labels:
        return "none", []
    if targets:
        return "regression", []
    if several:
        return "multilabel", list(map(str, several))
    if classes:
        return "classification", list(map(label_text, classes))
    values = [value for key, label in labels.items() for value in _values(label, f"the labels of recording {key}")]
    if not values:
        raise DataError("pack_frames: labels has no label of any recording; leave it out, or correct it")
    numbers = [value for value in values if not isinstance(value, str | bool | np.bool_)]
    whole = all(float(value).is_integer() for value in numbers)
    texts = {label_text(value) for value in values}
    if len(numbers) == len(values) and (not whole or len(texts) > _MOST_CLASSES):
        return "regression", []
    return "classification", sorted(
        texts, key=lambda text: (0, float(text), text) if _is_number(text) else (1, 0.0, text)
    )


def _values(label: Any, where: str) -> list[Any]:
    """The different values that the labels of a recording have."""
    label = plain_scalar(label)
    if _is_missing(label):
        return []
    if not isinstance(label, pd.Series | pd.DataFrame):
        return [_single(label, where)]
    if isinstance(label, pd.DataFrame) and "label" not in label.columns:
        return []  # which `labels_of` refuses
    column = label["label"] if isinstance(label, pd.DataFrame) else label
    return list(dict.fromkeys(_single(value, where) for value in column.dropna().tolist()))


def _single(value: Any, where: str) -> Any:
    """A text or a number. Raises DataError for anything else, and for an empty text."""
    if isinstance(value, str):
        if not value.strip():
            raise DataError(f"{where}: a label is empty text; use None where there is no label")
        return value
    try:
        float(value)
    except (TypeError, ValueError, OverflowError):
        raise DataError(
            f"{where}: {short_repr(value)} is {type_name(value)}; a label is text or a number. Labels over time are a "
            "Series with the label at each time, or a DataFrame with columns start, end, label"
        ) from None
    return value


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _is_missing(value: Any) -> bool:
    return value is None or (pd.api.types.is_scalar(value) and bool(pd.isna(value)))
