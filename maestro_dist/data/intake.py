"""Samples on their way into a shard: checked one by one, and made plain."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from maestro_dist.data.description import Description
from maestro_dist.data.plain import identity, kind_of, number, real, shown, whole, windowed
from maestro_dist.errors import DataError
from maestro_dist.types import Modality

_KEY = re.compile(r"[A-Za-z0-9_-]{1,50}")  # no dots: webdataset splits there; short: a plain tar header holds 100 bytes


@dataclass(frozen=True)
class RawSample:
    """One sample on its way into a shard.

    label        number of the class, or the target; not looked at where the task is none
    subject      whose sample it is; "" where that is not known. A number and its text (0 and "0") are one person
    values       real numbers [T_j, D_j] by modality, NaN (or masked) = gap; an absent modality has no entry, or None
    statistics   float [D_j, 2] by modality: mean and std of the recording up to the window's end
    start_s      start of the window in its recording, in seconds (for people; never given to a model)
    """

    split: str
    key: str
    label: int | float
    subject: str
    recording: str
    start_s: float
    duration_s: float
    values: dict[str, np.ndarray]
    statistics: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Checked:
    """A sample as it is stored: `arrays` float32 [T_j, D_j], without modalities that have no observed step; `meta` its
    json."""

    split: str
    key: str
    label: int | float
    subject: str
    arrays: dict[str, np.ndarray]
    meta: bytes


class Intake:
    """What a description, in plain values, asks of each sample."""

    def __init__(self, description: Description, splits: list[str]) -> None:
        self.description, self.splits = description, splits
        self.modalities = {modality.name: modality for modality in description.modalities}

    def checked(self, sample: RawSample, place: int) -> Checked:
        """A sample, the `place`-th (from 0), as it is stored.

        Raises:
            DataError: it does not fit the description; the message names it and the field.
        """
        name = self.description.name
        if not isinstance(sample, RawSample):
            raise DataError(f"{name}: sample number {place} is {kind_of(sample)}, not a RawSample")
        key = identity(sample.key, "key", f"{name}, sample number {place}")
        if not _KEY.fullmatch(key):
            raise DataError(f"{name}, sample {key}: a key has up to 50 letters, digits, - or _, and nothing else")
        if not isinstance(sample.split, str) or sample.split not in self.splits:
            known = ", ".join(self.splits)
            raise DataError(f"{name}, sample {key}: split {shown(sample.split)} is not one of {known}")
        where = f"{name}, {sample.split}, sample {key}"
        label = self._label(sample.label, where)
        arrays = self._arrays(sample.values, where)
        subject = identity(sample.subject, "subject", where)
        meta: dict[str, Any] = {
            "label": label,
            "subject": subject,
            "recording": identity(sample.recording, "recording", where),
            "start_s": self._seconds(sample.start_s, "start_s", where),
            "duration_s": self._seconds(sample.duration_s, "duration_s", where, least=0.0),
        }
        if self.description.recording:
            statistics = self._statistics(sample.statistics, arrays, where)
            for column, part in enumerate(("recording_mean", "recording_std")):
                meta[part] = {n: [_nine_digits(x) for x in pair[:, column]] for n, pair in statistics.items()}
        body = json.dumps(meta, separators=(",", ":"), allow_nan=False).encode()
        there = {n: array for n, array in arrays.items() if not np.isnan(array).all()}  # nothing observed: absent
        return Checked(str(sample.split), key, label, subject, there, body)

    def _label(self, given: Any, where: str) -> int | float:
        classes = self.description.classes
        if self.description.task == "none":
            return 0
        if self.description.task == "regression":
            target = number(given)
            target = int(target) if isinstance(target, bool) else real(target)
            if target is None:
                raise DataError(f"{where}: target {shown(given)} is not finite, or no number that float32 holds")
            return float(target)
        if isinstance(given, str) and given in classes:
            raise DataError(
                f"{where}: label {shown(given)} is the name of a class; give its number, {classes.index(given)}"
            )
        found = number(given)
        label = int(found) if isinstance(found, bool) else whole(found)
        if label is None or not 0 <= label < len(classes):
            raise DataError(f"{where}: label {shown(given)} is not one of 0..{len(classes) - 1}")
        return label

    def _seconds(self, given: Any, key: str, where: str, least: float = -math.inf) -> int | float:
        seconds = real(given)
        if seconds is None or seconds < least:
            wanted = "a finite number of seconds" if least < 0 else "a number of seconds from 0"
            raise DataError(f"{where}: {key} {shown(given)} is not {wanted}")
        return seconds

    def _modality(self, name: Any, where: str) -> Modality:
        modality = self.modalities.get(name) if isinstance(name, str) else None
        if modality is None:
            raise DataError(
                f"{where}: modality {shown(name)} is not in the description; it has {', '.join(self.modalities)}"
            )
        return modality

    def _arrays(self, given: Any, where: str) -> dict[str, np.ndarray]:
        arrays = {}
        for name, value in _mapped(given, "values", where).items():
            modality = self._modality(name, where)
            if value is None:
                continue
            array = windowed(value, f"{where}: {name}")
            if array.shape != (modality.steps, modality.variates):
                wanted = f"{modality.steps} steps x {modality.variates} variates"
                raise DataError(f"{where}: {name} has shape {array.shape}, not {wanted}")
            arrays[modality.name] = array
        return arrays

    def _statistics(self, given: Any, arrays: dict[str, np.ndarray], where: str) -> dict[str, np.ndarray]:
        """Recording statistics [D_j, 2] of at least the modalities that are there."""
        statistics = {}
        for name, value in _mapped(given, "statistics", where).items():
            modality = self._modality(name, where)
            what = f"{where}: the recording's mean and std of {name}"
            rounded = windowed(value, what)
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


def _nine_digits(value: Any) -> float:
    """They tell any two float32 numbers apart."""
    return float(f"{value:.9g}")


def _mapped(given: Any, key: str, where: str) -> Mapping[Any, Any]:
    if not isinstance(given, Mapping):
        raise DataError(f"{where}: {key} is {kind_of(given)}, not a dictionary by modality")
    return given
