"""Recordings as they are given for packing, checked and in their stored form."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from maestro_dist.data.description import Description, check_split, is_static
from maestro_dist.data.label_sets import label_set, without_overlaps
from maestro_dist.data.moments import prefix_moments
from maestro_dist.data.plain_values import (
    finite_number,
    float32_array,
    id_text,
    plain_scalar,
    python_number,
    short_repr,
    type_name,
    whole_number,
)
from maestro_dist.data.recordings.gaps import gaps_of
from maestro_dist.data.recordings.label_track import LabelTrack, track_intervals
from maestro_dist.data.recordings.table import RecordingFacts, RecordingTable, StreamFacts
from maestro_dist.data.sample_checks import CheckedSample
from maestro_dist.data.target_numbers import plain_numbers, target_row
from maestro_dist.errors import DataError
from maestro_dist.types import MULTILABEL, Modality

SPLIT = "recordings"
"""The one split of a packed data set of recordings; those of a run are made when it starts."""

_KEY_LETTERS = 40
_SAME_S = 1e-6


@dataclass(frozen=True)
class RawRecording:
    """One recording to pack.

    key       its name, unique in the data set: up to 40 letters, digits, - or _
    values    real numbers [T_j, D_j] by modality, at the rate of the modality; NaN (or masked) is a gap. An absent
              modality has no entry, or None. A modality without time (`always`, one step) has one row
    start_s   time of the first step, in seconds after the recording's time 0, for all modalities or by modality.
              Windows start at time 0; earlier steps only count in the statistics of the recording
    length_s  the end of the recording, seconds after time 0; by default the end of the longest modality
    labels    one label for the whole recording, intervals (start_s, end_s, label) that do not overlap, or a
              `LabelTrack` at a rate of its own. A label is a number, or the name of a class. With task multilabel: a
              list of labels for the whole recording; or intervals, each with one label or a list, which may overlap:
              outside of them no label holds; where the label is None, it is not known which ones hold. Of several
              targets a label is a list of numbers or a dictionary by target (a list for the whole recording has plain
              numbers); NaN is an unknown one
    subject   the person; "" if unknown
    group     what else may divide the data, such as the hospital or the device
    split     the split that the publishers chose; "" if none
    """

    key: str
    values: Mapping[str, Any]
    labels: Any = None
    start_s: float | Mapping[str, float] = 0.0
    length_s: float | None = None
    subject: str = ""
    group: str = ""
    split: str = ""


@dataclass(frozen=True)
class CheckedRecording(CheckedSample):
    """A recording in its stored form.

    further  arrays that are stored with it, by the name of their member without `.npy`
    facts    its row of the table
    """

    further: dict[str, np.ndarray]
    facts: bytes


@dataclass(frozen=True)
class RecordingChecker:
    """Checks recordings against a description (a checked one)."""

    description: Description
    _modalities: dict[str, Modality] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._modalities.update({m.name: m for m in sorted(self.description.modalities, key=lambda m: m.name)})

    def checked(self, recording: Any, place: str) -> CheckedRecording:
        """The recording in its stored form. `place` is its number in the input, from 0, as text for messages.

        Raises:
            DataError: it does not fit the description; the message names the recording and the field.
        """
        name = self.description.name
        if not isinstance(recording, RawRecording):
            raise DataError(f"{name}: recording number {place} is {type_name(recording)}, not a RawRecording")
        key = id_text(recording.key, "key", f"{name}, recording number {place}")
        if not (0 < len(key) <= _KEY_LETTERS and all(c.isascii() and (c.isalnum() or c in "-_") for c in key)):
            raise DataError(f"{name}, recording {key}: a key has up to {_KEY_LETTERS} letters, digits, - or _")
        where = f"{name}, recording {key}"
        arrays = self._arrays(recording.values, where)
        starts = self._starts(recording.start_s, arrays, where)
        length = self._length(recording.length_s, arrays, starts, where)
        whole, intervals = self._labels(recording.labels, length, where)
        ids = {n: id_text(getattr(recording, n), n, where) for n in ("subject", "group", "split")}
        check_split(ids["split"], where)
        streams = tuple(
            StreamFacts(len(arrays[n]), starts[n], gaps_of(arrays[n]))
            if n in arrays
            else StreamFacts(0, 0.0, np.empty((0, 2), dtype=np.int64))
            for n in self._modalities
        )
        facts = RecordingFacts(key, **ids, length_s=length, whole=whole, intervals=intervals, streams=streams)
        meta = {
            **ids,
            "length_s": length,
            "label": self._plain_label(whole),
            "labels": [plain_numbers(row) for row in intervals.tolist()],
            "start_s": {n: starts[n] for n in arrays},
        }
        body = json.dumps(meta, separators=(",", ":"), allow_nan=False).encode()
        further = {}
        if self.description.recording:
            moments = {n: prefix_moments(array) for n, array in arrays.items()}
            further = {moments_name(n): found for n, found in moments.items() if len(found)}
        row = RecordingTable.of([facts]).to_bytes()
        return CheckedRecording(SPLIT, key, 0, ids["subject"], arrays, body, further, row)

    def _arrays(self, given: Any, where: str) -> dict[str, np.ndarray]:
        if not isinstance(given, Mapping):
            raise DataError(f"{where}: values is {type_name(given)}, not a dictionary by modality")
        arrays = {}
        for name, value in given.items():
            modality = self._modality(name, where)
            if value is None:
                continue
            array = float32_array(value, f"{where}: {name}")
            rows = "one row" if is_static(modality) else "any number of steps"
            if array.ndim != 2 or array.shape[1] != modality.variates or (is_static(modality) and len(array) != 1):
                wanted = f"{rows} x {modality.variates} variates"
                raise DataError(f"{where}: {name} has shape {array.shape}, not {wanted}")
            if not np.isnan(array).all():  # nothing observed: absent
                arrays[modality.name] = array
        if not arrays:
            raise DataError(f"{where}: nothing was observed in any modality; leave it out")
        return arrays

    def _modality(self, name: Any, where: str) -> Modality:
        modality = self._modalities.get(name) if isinstance(name, str) else None
        if modality is None:
            raise DataError(
                f"{where}: modality {short_repr(name)} is not in the description; it has {', '.join(self._modalities)}"
            )
        return modality

    def _starts(self, given: Any, arrays: Mapping[str, np.ndarray], where: str) -> dict[str, float]:
        if isinstance(given, Mapping):
            for name in given:
                self._modality(name, where)
        starts = {}
        for name in arrays:
            value = given.get(name, 0.0) if isinstance(given, Mapping) else given
            starts[name] = self._seconds(value, f"start_s of {name}", where)
        return starts

    def _length(self, given: Any, arrays: Mapping[str, np.ndarray], starts: Mapping[str, float], where: str) -> float:
        ends = [
            starts[name] + len(array) / self._modalities[name].rate_hz
            for name, array in arrays.items()
            if not is_static(self._modalities[name])
        ]
        if given is None and not ends:
            raise DataError(f"{where}: it has no sensor with a time, so its length is not known; give length_s")
        length = max(ends) if given is None else self._seconds(given, "length_s", where)
        if length <= 0:
            raise DataError(f"{where}: it ends {-length:g} s before its time 0; correct start_s or length_s")
        return length

    def _plain_label(self, whole: float | np.ndarray) -> Any:
        if np.isnan(whole).all():
            return None
        return plain_numbers(whole.tolist()) if isinstance(whole, np.ndarray) else whole

    def _labels(self, given: Any, length: float, where: str) -> tuple[float | np.ndarray, np.ndarray]:
        """The label of the whole recording (NaN: none), and the intervals, [L, 3] or [L, 2 + K]."""
        targets = self.description.targets
        unknown: float | np.ndarray = np.full(len(targets), np.nan) if targets else math.nan
        none = np.empty((0, 2 + (len(targets) or 1)))
        if self.description.task == "none" or given is None:
            return unknown, none
        if isinstance(given, LabelTrack):
            found = track_intervals(given, self.description, lambda label: self._label(label, where), where)
            return unknown, found
        given = plain_scalar(given)
        if targets and isinstance(given, Iterator):
            given = list(given)
        if targets and _is_whole(given):
            return np.array(target_row(given, targets, where)), none
        if isinstance(given, str) or not isinstance(given, Iterable):
            return self._label(given, where), none
        if self.description.task == MULTILABEL:
            given = list(given)
            if all(isinstance(one, str) or whole_number(one) is not None for one in given) and given:
                return self._label(given, where), none
        rows, unknown_s = [], []
        for interval in given:
            try:
                start, end, label = interval
            except (TypeError, ValueError):
                text = f"{where}: labels has {short_repr(interval)}, not (start_s, end_s, label)"
                raise DataError(text) from None
            begin, stop = (self._seconds(value, "a label's time", where) for value in (start, end))
            if not begin < stop:
                raise DataError(
                    f"{where}: a label lasts from {begin:g} s to {stop:g} s; its end must be after its start"
                )
            if label is None and self.description.task == MULTILABEL:
                unknown_s.append((begin, stop))
                continue
            rows.append((begin, stop, *self._numbers(label, f"{where}, {begin:g} s to {stop:g} s", where)))
        if self.description.task == MULTILABEL:
            sets = [(a, b, int(labels)) for a, b, labels in rows]
            return math.nan, without_overlaps(sets, length, unknown_s)
        rows.sort(key=lambda row: row if not targets else row[:2])  # NaN has no order
        for before, after in pairwise(rows):
            if after[0] < before[1] - _SAME_S:
                several = "; if several may hold at once, use task: multilabel" if self.description.classes else ""
                raise DataError(
                    f"{where}: two labels overlap from {after[0]:g} s to {min(before[1], after[1]):g} s{several}"
                )
        return unknown, np.array(rows, dtype=np.float64).reshape(-1, none.shape[1])

    def _numbers(self, given: Any, interval: str, where: str) -> tuple[float, ...]:
        """The label of an interval, or the numbers of several targets; NaN: unknown."""
        if self.description.targets:
            return target_row(given, self.description.targets, interval)
        return (self._label(given, where),)

    def _label(self, given: Any, where: str) -> float:
        classes = self.description.classes
        plain = python_number(given)
        if isinstance(plain, bool) and self.description.task != MULTILABEL:  # as of packed windows
            given = int(plain)
        if self.description.task == "regression":
            target = finite_number(given)
            if target is None:
                raise DataError(f"{where}: target {short_repr(given)} is not a finite number that float32 can hold")
            return float(target)
        if self.description.task == MULTILABEL:
            one = isinstance(given, str) or not isinstance(given, Iterable)
            return float(label_set([given] if one else given, classes, where))
        if isinstance(given, str):
            if given not in classes:
                raise DataError(f"{where}: label {short_repr(given)} is no class; they are {', '.join(classes)}")
            return float(classes.index(given))
        label = whole_number(given)
        if label is None or not 0 <= label < len(classes):
            raise DataError(f"{where}: label {short_repr(given)} is not one of 0..{len(classes) - 1}")
        return float(label)

    def _seconds(self, given: Any, what: str, where: str) -> float:
        seconds = finite_number(given)
        if seconds is None:
            raise DataError(f"{where}: {what} {short_repr(given)} is not a finite number of seconds")
        return float(seconds)


def _is_whole(given: Any) -> bool:
    """Whether a label of several targets is one for the whole recording: numbers, not intervals."""
    if isinstance(given, str | Mapping) or not isinstance(given, Collection) or getattr(given, "shape", None) == ():
        return True
    first = next(iter(given), ())
    return not isinstance(first, Iterable) or getattr(first, "shape", None) == ()


def moments_name(modality: str) -> str:
    """The member, without `.npy`, that holds the `prefix_moments` of a modality."""
    return f"{modality}.moments"
