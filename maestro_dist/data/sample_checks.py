"""Checks of each sample that is packed, and its conversion to the bytes that are stored."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from maestro_dist.data.description import Description, is_static
from maestro_dist.data.label_sets import label_set
from maestro_dist.data.plain_values import (
    finite_number,
    float32_array,
    id_text,
    python_number,
    short_repr,
    type_name,
    whole_number,
)
from maestro_dist.data.target_numbers import plain_numbers, target_row
from maestro_dist.errors import DataError
from maestro_dist.types import MULTILABEL, Modality

Label = int | float | Sequence[float]
"""The stored label of a sample: a class, a set of labels, a target, or the numbers of several targets."""

_KEY = re.compile(r"[A-Za-z0-9_-]{1,50}")  # webdataset splits at dots; a plain tar header holds 100 bytes


@dataclass(frozen=True)
class RawSample:
    """One sample to pack.

    key          name of the sample, unique in its split
    label        number of the class, or the target; a list of labels (multilabel); of several targets a list of
                 numbers, or a dictionary by target, NaN where one is unknown, at least one known; ignored if
                 the task is none
    subject      the person; "" if unknown. A number and its text (0 and "0") are the same person
    recording    name of the recording that the window was cut from
    start_s      start of the window in its recording, in seconds; the model does not see it
    duration_s   length of the window, in seconds. A sample may be shorter than the windows of the description: then its
                 arrays have fewer steps
    values       real numbers [T_j, D_j] by modality; NaN (or masked) is a gap. An absent modality has no entry, or None
    statistics   float [D_j, 2] by modality: mean and std of the recording up to the end of the window
    """

    split: str
    key: str
    label: Any
    subject: str
    recording: str
    start_s: float
    duration_s: float
    values: dict[str, np.ndarray]
    statistics: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class CheckedSample:
    """A sample in its stored form.

    arrays  float32 [T_j, D_j] by modality; a modality without any observed step is left out
    meta    content of its json member
    """

    split: str
    key: str
    label: Label
    subject: str
    arrays: dict[str, np.ndarray]
    meta: bytes


class SampleChecker:
    """Checks samples against a description (a checked one)."""

    def __init__(self, description: Description, splits: list[str]) -> None:
        self.description, self.splits = description, splits
        self.modalities = {modality.name: modality for modality in description.modalities}

    def checked(self, sample: Any, place: str) -> CheckedSample:
        """The sample in its stored form. `place` is its number in the input, from 0, as text for messages.

        Raises:
            DataError: it does not fit the description; the message names the sample and the field.
        """
        name = self.description.name
        if not isinstance(sample, RawSample):
            raise DataError(f"{name}: sample number {place} is {type_name(sample)}, not a RawSample")
        key = id_text(sample.key, "key", f"{name}, sample number {place}")
        if not _KEY.fullmatch(key):
            raise DataError(f"{name}, sample {key}: a key has up to 50 letters, digits, - or _, and nothing else")
        if not isinstance(sample.split, str) or sample.split not in self.splits:
            known = ", ".join(self.splits)
            raise DataError(f"{name}, sample {key}: split {short_repr(sample.split)} is not one of {known}")
        where = f"{name}, {sample.split}, sample {key}"
        label = self._label(sample.label, where)
        duration = self._seconds(sample.duration_s, "duration_s", where, least=0.0)
        arrays = self._arrays(sample.values, duration, where)
        subject = id_text(sample.subject, "subject", where)
        meta: dict[str, Any] = {
            "label": label if isinstance(label, int | float) else plain_numbers(label),
            "subject": subject,
            "recording": id_text(sample.recording, "recording", where),
            "start_s": self._seconds(sample.start_s, "start_s", where),
            "duration_s": duration,
        }
        if self.description.recording:
            statistics = self._statistics(sample.statistics, arrays, where)
            for column, part in enumerate(("recording_mean", "recording_std")):
                meta[part] = {n: [_short(x) for x in pair[:, column]] for n, pair in statistics.items()}
        body = json.dumps(meta, separators=(",", ":"), allow_nan=False).encode()
        observed = {n: array for n, array in arrays.items() if not np.isnan(array).all()}  # nothing observed: absent
        return CheckedSample(str(sample.split), key, label, subject, observed, body)

    def _label(self, given: Any, where: str) -> Label:
        classes = self.description.classes
        if self.description.task == "none":
            return 0
        if self.description.targets:
            return target_row(given, self.description.targets, where)
        if self.description.task == "regression":
            target = python_number(given)
            target = int(target) if isinstance(target, bool) else finite_number(target)
            if target is None:
                raise DataError(f"{where}: target {short_repr(given)} is not a finite number that float32 can hold")
            return float(target)
        if isinstance(given, str) and given in classes and self.description.task != MULTILABEL:
            raise DataError(
                f"{where}: label {short_repr(given)} is the name of a class; give its number, {classes.index(given)}"
            )
        if self.description.task == MULTILABEL:
            return label_set(given, classes, where)
        number = python_number(given)
        label = int(number) if isinstance(number, bool) else whole_number(number)
        if label is None or not 0 <= label < len(classes):
            raise DataError(f"{where}: label {short_repr(given)} is not one of 0..{len(classes) - 1}")
        return label

    def _seconds(self, given: Any, key: str, where: str, least: float = -math.inf) -> int | float:
        seconds = finite_number(given)
        if seconds is None or seconds < least:
            wanted = "a finite number of seconds" if least < 0 else "a number of seconds from 0"
            raise DataError(f"{where}: {key} {short_repr(given)} is not {wanted}")
        return seconds

    def _modality(self, name: Any, where: str) -> Modality:
        modality = self.modalities.get(name) if isinstance(name, str) else None
        if modality is None:
            raise DataError(
                f"{where}: modality {short_repr(name)} is not in the description; it has {', '.join(self.modalities)}"
            )
        return modality

    def _arrays(self, given: Any, duration_s: float, where: str) -> dict[str, np.ndarray]:
        """The arrays of a sample. Of one that is shorter than the windows, the rest is not observed."""
        arrays, window_s = {}, self.description.window_s
        for name, value in _mapped(given, "values", where).items():
            modality = self._modality(name, where)
            if value is None:
                continue
            array = float32_array(value, f"{where}: {name}")
            steps = modality.steps
            if duration_s < window_s and not is_static(modality):
                steps = min(steps, round(duration_s * modality.rate_hz))
            if array.shape not in ((steps, modality.variates), (modality.steps, modality.variates)):
                wanted = f"{steps} steps x {modality.variates} variates"
                raise DataError(f"{where}: {name} has shape {array.shape}, not {wanted}")
            rest = modality.steps - len(array)
            arrays[modality.name] = np.pad(array, ((0, rest), (0, 0)), constant_values=np.nan) if rest else array
        return arrays

    def _statistics(self, given: Any, arrays: dict[str, np.ndarray], where: str) -> dict[str, np.ndarray]:
        """Recording statistics [D_j, 2] of at least the modalities that the sample has."""
        statistics = {}
        for name, value in _mapped(given, "statistics", where).items():
            modality = self._modality(name, where)
            what = f"{where}: the recording's mean and std of {name}"
            rounded = float32_array(value, what)
            if rounded.shape != (modality.variates, 2):
                raise DataError(f"{what} have shape {rounded.shape}, not ({modality.variates}, 2)")
            if np.isnan(rounded).any() or (rounded[:, 1] < 0).any():
                raise DataError(f"{what} must be finite, and the std not negative")
            statistics[modality.name] = np.asarray(value)
        for name in arrays:
            if name not in statistics:
                raise DataError(
                    f"{where}: {name} has no recording statistics; give statistics[{name!r}] of shape "
                    f"({self.modalities[name].variates}, 2), mean and std, or describe the data with recording=False"
                )
        return statistics


def _short(value: Any) -> float:
    """The shortest decimal number that is this float32 number."""
    return float(str(np.float32(value)))


def _mapped(given: Any, key: str, where: str) -> Mapping[Any, Any]:
    if not isinstance(given, Mapping):
        raise DataError(f"{where}: {key} is {type_name(given)}, not a dictionary by modality")
    return given
