"""Arrays and pandas frames as a data set of recordings, in one call."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_args

import numpy as np
import pandas as pd

from maestro_dist.config.windows import WindowConfig
from maestro_dist.data.frame_labels import RecordingTime, labels_of, task_of
from maestro_dist.data.frame_times import Clock, check_one_clock, frame_times, order_of
from maestro_dist.data.manifest import Manifest
from maestro_dist.data.pack import Description, RawRecording, pack_recordings
from maestro_dist.data.plain_values import (
    finite_number,
    first_duplicate,
    python_number,
    short_repr,
    type_name,
    whole_number,
)
from maestro_dist.data.tables.grid import Steps, on_grid
from maestro_dist.data.tables.layout import Grid
from maestro_dist.data.tables.look_modalities import modalities_of
from maestro_dist.data.tables.look_times import guess_rate
from maestro_dist.data.tables.recordings import key_of, split_of
from maestro_dist.data.tables.times import SECOND
from maestro_dist.errors import DataError
from maestro_dist.types import Modality

_SEEN = 20  # recordings whose times are looked at to find rates


@dataclass(frozen=True)
class FramesAbout:
    """What may be said about recordings that are packed with `pack_frames`.

    rates_hz   steps a second by modality; that of frames is found if it is left out
    units      by modality
    grid       how rows of frames are put on steps, as in a layout of tables: auto, nearest, linear, mean, last
    stride_s   seconds between the windows of a run, if it does not say otherwise; by default they do not overlap
    subjects, groups, splits  by name of the recording: the person, what else may divide the data, the split (train,
               validation or test)
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
    if about.grid not in get_args(Grid):
        raise DataError(f"pack_frames: grid {short_repr(about.grid)} is not one of {', '.join(get_args(Grid))}")
    given = {key: _modalities(recording, key) for key, recording in _by_name(recordings, "recordings").items()}
    if not given:
        raise DataError("pack_frames: there are no recordings")
    read = {key: {m: _read(v, f"recording {key}: {m}") for m, v in of.items()} for key, of in given.items()}
    order = list(dict.fromkeys(modality for of in read.values() for modality in of))
    options = {what: _by_name(getattr(about, what), what) for what in ("rates_hz", "units")}
    _check_known(options, set(order), "modality")
    rates = _rates(read, options["rates_hz"])
    named = {what: _by_name(getattr(about, f"{what}s"), f"{what}s") for what in ("subject", "group", "split")}
    every = _by_name(labels, "labels")
    _check_known({"labels": every, **named}, set(given), "recording")
    targets = tuple(map(str, about.targets))
    task, classes = task_of(every, about.classes, targets, about.several)
    description = Description(
        about.name or os.fspath(url).rstrip("/").rpartition("/")[2], about.licence, about.citation, about.source,
        task=task, classes=tuple(classes), target=about.target if task != "none" else "", window_s=window_s,
        modalities=tuple(_modality(m, read, rates, window_s, options["units"].get(m, "")) for m in order),
        window=_window(window_s, about.stride_s), targets=targets,
    )  # fmt: skip

    def made() -> Iterator[RawRecording]:
        for key, modalities in read.items():
            texts = {what: _id(of.get(key)) for what, of in named.items()}
            time = _time_of(key, modalities)
            label = labels_of(every.get(key), time, task, targets, classes)
            yield _recording(time, modalities, Steps(0.0, about.grid, time.zero), rates, label, texts)

    return pack_recordings(url, description, made(), overwrite=overwrite)


def _by_name(given: Any, what: str) -> dict[str, Any]:
    """What is given by name, with names as text: 1 and "1" name the same thing."""
    if given is None:
        return {}
    if isinstance(given, pd.Series):
        given = dict(zip(given.index, given, strict=True))
    if not isinstance(given, Mapping):
        raise DataError(f"pack_frames: {what} is {type_name(given)}, not a dictionary by name")
    names = [str(name) for name in given]
    again = first_duplicate(names)
    if again is not None:
        raise DataError(f"pack_frames: {what} has {short_repr(again)} twice, as text and as another type; rename one")
    return dict(zip(names, given.values(), strict=True))


def _id(given: Any) -> str:
    """A name as text: 1, 1.0 and "1" are the same; "" if it is missing, as in a column of a table."""
    if given is None or (pd.api.types.is_scalar(given) and pd.isna(given)):
        return ""
    number = None if isinstance(given, str) else whole_number(given)
    return str(given if number is None else number)


def _check_known(named: Mapping[str, Mapping[str, Any]], known: set[str], kind: str) -> None:
    """Raise DataError if something is given for a name that is not there."""
    for what, of in named.items():
        unknown = sorted(set(of) - known)
        if unknown:
            raise DataError(f"pack_frames: {what} has {short_repr(unknown[0])}, which is no {kind}")


def _window(window_s: float, stride_s: float | None) -> WindowConfig:
    for name, value in (("window_s", window_s), ("stride_s", stride_s)):
        number = finite_number(value)
        if not (name == "stride_s" and value is None) and (number is None or number <= 0):
            raise DataError(f"pack_frames: {name} {short_repr(value)} is not a positive number (of seconds)")
    return WindowConfig(length_s=float(window_s), stride_s=None if stride_s is None else float(stride_s))


@dataclass(frozen=True)
class _Given:
    """Values [rows, variates]. times: int64 ns [rows], None: rows follow each other; clock: what they are counted by;
    always: one value without time."""

    values: np.ndarray
    times: np.ndarray | None = None
    clock: Clock | None = None
    always: bool = False


def _modalities(recording: Any, key: str) -> dict[str, Any]:
    if isinstance(recording, pd.DataFrame):
        columns = [str(column) for column in recording.columns]
        again = first_duplicate(columns)
        if again is not None:
            raise DataError(f"recording {key}: two columns are named {short_repr(again)}; rename one")
        guesses = modalities_of(columns, "signals", prefix=False)
        named = recording.set_axis(columns, axis=1)
        return {guess.name: named[list(guess.columns)] for guess in guesses}
    if not isinstance(recording, Mapping):
        raise DataError(f"recording {key}: {type_name(recording)}, not a pandas DataFrame or a dictionary by modality")
    return _by_name(recording, f"recording {key}")


def _read(value: Any, where: str) -> _Given | None:
    """What is given of a modality; None: nothing."""
    if isinstance(value, pd.Series | pd.DataFrame):
        return _read_frame(value.to_frame() if isinstance(value, pd.Series) else value, where)
    if hasattr(value, "to_pandas") and (hasattr(value, "column_names") or hasattr(value, "columns")):
        raise DataError(f"{where}: {type_name(value)}; use its to_pandas(), with the times as its index")
    if value is None or (pd.api.types.is_scalar(value) and not isinstance(value, str) and pd.isna(value)):
        return None
    number = python_number(value)
    if number is not None:
        if finite_number(float(number)) is None:
            raise DataError(f"{where}: {short_repr(value)} is not a finite number that float32 can hold")
        return _Given(np.array([[float(number)]]), always=True)
    array = _numbers(value, where)
    if array.ndim not in (1, 2):
        raise DataError(f"{where}: {type_name(value)} of shape {array.shape}, not numbers [steps] or [steps, variates]")
    _check_range(array, where)
    return _Given(array if array.ndim == 2 else array[:, None]) if array.size else None


def _numbers(value: Any, where: str) -> np.ndarray:
    """An array of floats, NaN where a value is masked or None."""
    if isinstance(value, np.ma.MaskedArray) and value.dtype.kind in "fiub":
        return np.asarray(np.ma.filled(value.astype(np.float64), np.nan))
    try:
        array = np.asarray(value)
        if array.dtype == object and array.ndim in (1, 2):  # a list with None, or numbers of Python
            frame = pd.DataFrame(array)
            array = frame.where(frame.notna(), np.nan).to_numpy(dtype=np.float64)
    except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: of a tensor with a gradient
        raise DataError(f"{where}: {type_name(value)}, not an array of numbers ({_one_line(error)})") from None
    if array.dtype.kind not in "fiub":
        raise DataError(f"{where}: {type_name(value)} of shape {array.shape}, not numbers [steps] or [steps, variates]")
    return array if array.dtype.kind == "f" else array.astype(np.float64)


def _check_range(values: np.ndarray, where: str) -> None:
    """Raise DataError if float32 cannot hold a value, before steps are made of it: between two steps it spreads."""
    bad = np.abs(values) > np.finfo(np.float32).max
    if bad.any():
        row = int(np.argmax(bad.any(axis=tuple(range(1, bad.ndim)))))
        raise DataError(
            f"{where}: row {row + 1:,} has {values[bad].flat[0]:g}, which float32 cannot hold; give NaN where there is "
            "no value"
        )


def _read_frame(frame: pd.DataFrame, where: str) -> _Given | None:
    if not len(frame):
        return None
    for column, kind in zip(frame.columns, frame.dtypes, strict=True):
        if isinstance(kind, pd.CategoricalDtype):
            kind = kind.categories.dtype
        if getattr(kind, "kind", "O") in "mMc" or isinstance(kind, pd.PeriodDtype | pd.IntervalDtype):
            hint = "; the times of rows are the index: frame.set_index(...)" if kind.kind == "M" else ""
            raise DataError(f"{where}: column {short_repr(column)} has values of type {kind}, not numbers{hint}")
    if "O" in {getattr(kind, "kind", "O") for kind in frame.dtypes}:  # pandas does not convert pd.NA there
        frame = frame.where(frame.notna(), np.nan)
    try:
        values = frame.to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: not a table of numbers ({_one_line(error)})") from None
    _check_range(values, where)
    times, clock = frame_times(frame.index, where)
    order = order_of(times, clock, where)
    return _Given(values, times, clock) if order is None else _Given(values[order], times[order], clock)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


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


def _time_of(key: str, modalities: Mapping[str, _Given | None]) -> RecordingTime:
    """The time of a recording: its second 0 is its first row. Raises DataError if its times have several clocks."""
    timed = {name: of for name, of in modalities.items() if of is not None and of.times is not None}
    clocks = {name: of.clock for name, of in timed.items() if of.clock is not None}
    check_one_clock(clocks, key)
    zero = min((int(of.times[0]) for of in timed.values() if of.times is not None), default=0)
    return RecordingTime(key, zero, next(iter(clocks.values()), None))


def _recording(
    time: RecordingTime,
    modalities: Mapping[str, _Given | None],
    steps: Steps,
    rates: Mapping[str, float],
    label: Any,
    texts: Mapping[str, Any],
) -> RawRecording:
    values: dict[str, np.ndarray] = {}
    starts: dict[str, float] = {}
    for name, given in modalities.items():
        if given is None:
            continue
        if given.times is None:
            values[name] = given.values
            continue
        where = f"recording {time.key}: {name}"
        stream = on_grid(given.times, given.values, replace(steps, rate_hz=rates[name]), where, Counter())
        if stream is not None:
            values[name], starts[name] = stream.values, (stream.start - time.zero) / SECOND
    return RawRecording(
        key_of(time.key), values, label, starts,
        subject=texts["subject"], group=texts["group"], split=split_of(texts["split"]),
    )  # fmt: skip
