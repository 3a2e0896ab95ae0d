"""Arrays and pandas frames as a data set of recordings, in one call."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from maestro_dist.config.windows import WindowConfig
from maestro_dist.data.description import Kind
from maestro_dist.data.manifest import Manifest
from maestro_dist.data.pack import Description, RawRecording, pack_recordings
from maestro_dist.data.plain_values import finite_number, short_repr, type_name
from maestro_dist.data.tables.grid import Steps, on_grid
from maestro_dist.data.tables.labels import intervals_of_rows
from maestro_dist.data.tables.layout import label_text
from maestro_dist.data.tables.look_modalities import modalities_of
from maestro_dist.data.tables.look_times import guess_rate
from maestro_dist.data.tables.recordings import key_of
from maestro_dist.data.tables.times import SECOND, in_order
from maestro_dist.data.target_numbers import plain_numbers
from maestro_dist.errors import DataError
from maestro_dist.types import Modality

_MOST_CLASSES = 50
_SEEN = 20  # recordings whose times are looked at to find rates


@dataclass(frozen=True)
class FramesAbout:
    """What may be said about recordings that are packed with `pack_frames`.

    rates_hz   steps a second by modality; that of frames is found if it is left out
    units      by modality
    grid       how rows of frames are put on steps, as in a layout of tables: auto, nearest, linear, mean, last
    stride_s   seconds between the windows of a run, if it does not say otherwise; by default they do not overlap
    subjects, groups, splits  by name of the recording: the person, what else may divide the data, the split
    classes    the classes in their order; by default all labels, sorted
    targets    names of several numbers to predict: columns of the labels
    several    names of the labels, if several may hold at the same time
    name       of the data set; by default the last part of its URL
    target, licence, citation, source  as in `Description`
    """

    rates_hz: Mapping[str, float] = field(default_factory=dict)
    units: Mapping[str, str] = field(default_factory=dict)
    grid: str = "auto"
    stride_s: float | None = None
    subjects: Mapping[str, str] = field(default_factory=dict)
    groups: Mapping[str, str] = field(default_factory=dict)
    splits: Mapping[str, str] = field(default_factory=dict)
    classes: Sequence[str] = ()
    targets: Sequence[str] = ()
    several: Sequence[str] = ()
    name: str = ""
    target: str = "label"
    licence: str = ""
    citation: str = ""
    source: str = ""


def pack_frames(
    url: str | os.PathLike[str],
    recordings: Mapping[str, Any],
    labels: Mapping[str, Any] | None = None,
    *,
    window_s: float,
    about: FramesAbout | None = None,
    overwrite: bool = False,
) -> Manifest:
    """Pack recordings below `url`, a folder or an fsspec URL, and return the manifest. All of them are in memory; more
    are packed one by one with `pack_recordings`.

    recordings  by name: the modalities of each, by name. A modality is an array [steps] or [steps, variates] with a
                rate in `about`, beginning at second 0; a pandas Series or DataFrame, whose index has the time of each
                row (dates, timedeltas, or seconds); or one number that is always known, such as the age. A recording
                may also be one DataFrame: columns such as acc_x, acc_y, acc_z then are one modality. NaN is a gap
    labels      by name of the recording: one label; a Series with the label at each time; or a DataFrame with columns
                start, end, label. Text and whole numbers are classes, other numbers make a regression; none: a data
                set without labels. With `targets` a label has a number for each of them: a list or a dictionary for the
                recording; or a DataFrame with columns of these names, and a time index, or columns start and end. With
                `several`, any of these labels may hold at a time: a list of names for the recording; a DataFrame with
                start, end, label, whose intervals may overlap; or one with a time index and a column of each, true or
                false
    window_s    length of the windows that a run cuts, if it does not say otherwise; in seconds

    Raises:
        DataError: what is given does not fit; the message names the recording and the modality.
        StorageError: a file cannot be written.
    """
    about = about or FramesAbout()
    given = {str(key): _modalities(recording, str(key)) for key, recording in recordings.items()}
    if not given:
        raise DataError("pack_frames: there are no recordings")
    read = {key: {m: _read(v, f"recording {key}: {m}") for m, v in of.items()} for key, of in given.items()}
    rates = _rates(read, dict(about.rates_hz))
    targets = tuple(map(str, about.targets))
    task, classes = _task_of(about, labels)
    order = list(dict.fromkeys(modality for of in read.values() for modality in of))
    description = Description(
        about.name or os.fspath(url).rstrip("/").rpartition("/")[2], about.licence, about.citation, about.source,
        task=task, classes=tuple(classes), target=about.target if task != "none" else "", window_s=window_s,
        modalities=tuple(_modality(m, read, rates, window_s, about.units.get(m, "")) for m in order),
        window=WindowConfig(length_s=window_s, stride_s=about.stride_s), targets=targets,
    )  # fmt: skip
    named = {"subject": about.subjects, "group": about.groups, "split": about.splits}
    for what, of in {"labels": labels or {}, **named}.items():
        unknown = sorted(set(map(str, of)) - set(given))
        if unknown:
            raise DataError(f"pack_frames: {what} has {short_repr(unknown[0])}, which is no recording")

    def made() -> Iterator[RawRecording]:
        for key, modalities in read.items():
            texts = {what: str(of.get(key, "")) for what, of in named.items()}
            label = (labels or {}).get(key)
            read_label = partial(_label, task=task)
            if targets:
                read_label = partial(_target_label, targets=targets)
            elif task == "multilabel":
                read_label = partial(_several_labels, names=classes)
            yield _recording(key, modalities, rates, about.grid, partial(read_label, label, key), texts)

    return pack_recordings(url, description, made(), overwrite=overwrite)


@dataclass(frozen=True)
class _Given:
    """Values [rows, variates]. times: int64 ns [rows], None: rows follow each other; always: one value without time."""

    values: np.ndarray
    times: np.ndarray | None = None
    always: bool = False


def _modalities(recording: Any, key: str) -> dict[str, Any]:
    if isinstance(recording, pd.DataFrame):
        guesses = modalities_of([str(column) for column in recording.columns], "signals", prefix=False)
        named = recording.set_axis([str(column) for column in recording.columns], axis=1)
        return {guess.name: named[list(guess.columns)] for guess in guesses}
    if not isinstance(recording, Mapping):
        raise DataError(f"recording {key}: {type_name(recording)}, not a DataFrame or a dictionary by modality")
    return dict(recording)


def _read(value: Any, where: str) -> _Given | None:
    if value is None:
        return None
    if isinstance(value, pd.Series | pd.DataFrame):
        frame = value.to_frame() if isinstance(value, pd.Series) else value
        try:
            values = frame.to_numpy(dtype=np.float64, na_value=np.nan)
        except (TypeError, ValueError) as error:
            raise DataError(f"{where}: not a table of numbers ({' '.join(str(error).split())[:200]})") from None
        times = _times(frame.index, where)
        order = in_order(times, where)
        return _Given(values, times) if order is None else _Given(values[order], times[order])
    number = finite_number(value)
    if number is not None:
        return _Given(np.array([[float(number)]]), always=True)
    array = (
        np.ma.filled(value.astype(np.float64), np.nan) if isinstance(value, np.ma.MaskedArray) else np.asarray(value)
    )
    if array.dtype.kind not in "fiub" or array.ndim not in (1, 2):
        raise DataError(f"{where}: {type_name(value)} of shape {array.shape}, not numbers [steps] or [steps, variates]")
    numbers = array if array.dtype.kind == "f" else array.astype(np.float64)
    return _Given(numbers.reshape(len(array), -1))


def _times(index: pd.Index, where: str) -> np.ndarray:
    """The times of an index, int64 ns."""
    if index.hasnans:
        raise DataError(f"{where}: row {int(np.argmax(index.isna())) + 1:,} has no time")
    if isinstance(index, pd.DatetimeIndex):
        moments = index if index.tz is None else index.tz_convert("UTC").tz_localize(None)
        return np.asarray(moments.as_unit("ns").asi8)
    if isinstance(index, pd.TimedeltaIndex):
        return np.asarray(index.as_unit("ns").asi8)
    if not pd.api.types.is_numeric_dtype(index) or pd.api.types.is_bool_dtype(index):
        kind = "text" if isinstance(index[0], str) else f"values of type {index.dtype}"
        raise DataError(f"{where}: its index has {kind}; use dates, timedeltas or seconds")
    return np.round(index.to_numpy(dtype=np.float64) * SECOND).astype(np.int64)


def _rates(read: Mapping[str, Mapping[str, _Given | None]], rates: dict[str, float]) -> dict[str, float]:
    for modality in dict.fromkeys(m for of in read.values() for m in of):
        found = [given for of in read.values() if (given := of.get(modality)) is not None]
        if modality in rates or not found or found[0].always:
            continue
        times = [given.times for given in found[:_SEEN] if given.times is not None]
        if not times:
            raise DataError(
                f"pack_frames: {modality} is an array; give its rate: FramesAbout(rates_hz={{{modality!r}: ...}})"
            )
        rates[modality] = guess_rate(times).rate_hz
    return rates


def _modality(
    name: str, read: Mapping[str, Mapping[str, _Given | None]], rates: Mapping[str, float], window_s: float, unit: str
) -> Modality:
    widths = {given.values.shape[1]: key for key, of in read.items() if (given := of.get(name)) is not None}
    kinds = {given.always for of in read.values() if (given := of.get(name)) is not None}
    if len(widths) > 1 or len(kinds) > 1:
        some = " and ".join(f"{width} in {key}" for width, key in list(widths.items())[:2])
        raise DataError(f"pack_frames: {name} has another number of variates ({some})" if len(widths) > 1 else
                        f"pack_frames: {name} is one number in some recordings, and has steps in others")  # fmt: skip
    if not widths:
        raise DataError(f"pack_frames: {name} has no values in any recording")
    if kinds == {True}:
        return Modality(name, 1, 1 / window_s, 1, unit, always=True)
    return Modality(name, next(iter(widths)), rates[name], 0, unit)


def _recording(
    key: str,
    modalities: Mapping[str, _Given | None],
    rates: Mapping[str, float],
    grid: str,
    label_from: Callable[[int], Any],
    texts: Mapping[str, str],
) -> RawRecording:
    values: dict[str, np.ndarray] = {}
    there = {name: given for name, given in modalities.items() if given is not None}
    zero = min((int(of.times[0]) for of in there.values() if of.times is not None and len(of.times)), default=0)
    starts: dict[str, float] = {}
    for name, given in there.items():
        if given.times is None:
            values[name] = given.values
            continue
        where = f"recording {key}: {name}"
        stream = on_grid(given.times, given.values, Steps(rates[name], grid, zero), where, Counter())
        if stream is not None:
            values[name], starts[name] = stream.values, (stream.start - zero) / SECOND
    return RawRecording(
        key_of(key), values, label_from(zero), starts,
        subject=texts["subject"], group=texts["group"], split=texts["split"],
    )  # fmt: skip


def _label(label: Any, key: str, zero: int, task: Kind) -> Any:
    """One label, or intervals in seconds from `zero` (ns)."""

    def plain(value: Any) -> Any:
        return label_text(value) if task == "classification" else value

    where = f"the labels of recording {key}"
    if task == "none" or _is_missing(label):
        return None
    if isinstance(label, pd.DataFrame):
        lacks = [column for column in ("start", "end", "label") if column not in label.columns]
        if lacks:
            raise DataError(
                f"{where}: a DataFrame has columns start, end, label; there is no {lacks[0]}. Several numbers are "
                "columns that FramesAbout(targets=[...]) names"
            )
        start, end = (_times(pd.Index(label[column]), where) for column in ("start", "end"))
        found = zip(start.tolist(), end.tolist(), label["label"], strict=True)
        intervals = [(a, b, plain(value)) for a, b, value in found if not _is_missing(value)]
    elif isinstance(label, pd.Series):
        times = _times(label.index, where)
        order = in_order(times, where)
        ordered = label if order is None else label.iloc[order]
        times = times if order is None else times[order]
        rows = [None if _is_missing(value) else plain(value) for value in ordered]
        intervals = intervals_of_rows(times, rows)
    else:
        return plain(label)
    return [((a - zero) / SECOND, (b - zero) / SECOND, value) for a, b, value in intervals]


def _target_label(label: Any, key: str, zero: int, targets: Sequence[str]) -> Any:
    """The label of several targets, or intervals in seconds from `zero` (ns)."""
    where = f"the labels of recording {key}"
    if not isinstance(label, pd.Series | pd.DataFrame):
        return None if label is pd.NA or (isinstance(label, float) and math.isnan(label)) else label
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
        start, end = (_times(pd.Index(label[column]), where).tolist() for column in ("start", "end"))
        found = [(a, b, row) for a, b, row in zip(start, end, rows, strict=True) if row is not None]
    else:
        times = _times(label.index, where)
        order = in_order(times, where)
        rows = rows if order is None else [rows[place] for place in order.tolist()]
        found = intervals_of_rows(times if order is None else times[order], rows)
    return [((a - zero) / SECOND, (b - zero) / SECOND, row) for a, b, row in found]


def _several_labels(label: Any, key: str, zero: int, names: Sequence[str]) -> Any:
    """Labels of which several may hold at the same time: a list, or intervals in seconds from `zero` (ns)."""
    where = f"the labels of recording {key}"
    if isinstance(label, pd.Series):
        raise DataError(f"{where}: a Series has one label at a time; use a DataFrame with {', '.join(names)}")
    if not isinstance(label, pd.DataFrame):
        single = isinstance(label, str) or not isinstance(label, Iterable)
        return None if single and _is_missing(label) else [label] if single else list(label)
    if {"start", "end"} <= set(label.columns):
        return _label(label, key, zero, "multilabel")
    lacks = [name for name in names if name not in label.columns]
    if lacks:
        raise DataError(f"{where}: there is no column {lacks[0]}")
    times = _times(label.index, where)
    order = in_order(times, where)
    frame = label if order is None else label.iloc[order]
    found: list[tuple[float, float, str]] = []
    for name in names:
        odd = next((value for value in frame[name] if not _is_missing(value) and value not in (0, 1)), None)
        if odd is not None:
            raise DataError(f"{where}: column {name} has {short_repr(odd)}, not true or false")
        holds = [name if not _is_missing(value) and value else None for value in frame[name]]
        own = intervals_of_rows(times if order is None else times[order], holds)
        found += [((a - zero) / SECOND, (b - zero) / SECOND, name) for a, b, _ in own]
    return found


def _task_of(about: FramesAbout, labels: Mapping[str, Any] | None) -> tuple[Kind, list[str]]:
    """The task, and the classes in their order. Raises DataError if two kinds of labels are named."""
    given = [name for name in ("classes", "targets", "several") if getattr(about, name)]
    if len(given) > 1:
        raise DataError(f"pack_frames: {' and '.join(given)} are given; labels are of one kind")
    if about.targets and labels:
        return "regression", []
    if about.several and labels:
        return "multilabel", list(map(str, about.several))
    return _task(labels, about.classes)


def _task(labels: Mapping[str, Any] | None, classes: Sequence[str]) -> tuple[Kind, list[str]]:
    """The task, and the classes in their order."""
    if not labels:
        return "none", []
    values: list[Any] = []
    for label in labels.values():
        if isinstance(label, pd.DataFrame):
            values += label["label"].dropna().unique().tolist() if "label" in label.columns else []
        elif isinstance(label, pd.Series):
            values += label.dropna().unique().tolist()
        elif not _is_missing(label):
            values.append(label)
    if classes:
        return "classification", list(map(label_text, classes))
    numbers = [value for value in values if not isinstance(value, str | bool | np.bool_)]
    whole = all(float(value).is_integer() for value in numbers)
    texts = {label_text(value) for value in values}
    if len(numbers) == len(values) and (not whole or len(texts) > _MOST_CLASSES):
        return "regression", []
    return "classification", sorted(
        texts, key=lambda text: (0, float(text), text) if _is_number(text) else (1, 0.0, text)
    )


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _is_missing(value: Any) -> bool:
    return value is None or (pd.api.types.is_scalar(value) and bool(pd.isna(value)))
