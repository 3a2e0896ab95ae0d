"""`SX.pkl` of WESAD and PPG-DaLiA: a RespiBAN at the chest and an Empatica E4 at the wrist, synchronised.

A dictionary of Python 2: `signal` -> `chest` and `wrist` -> an array [steps, variates] for each sensor, all from the
same time on, and `subject`. It is read by `restricted_pickle.py`: no code of the file is run.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from maestro_dist.data.converters.files import SourceFile, SourceFiles
from maestro_dist.data.converters.restricted_pickle import read_plain_data
from maestro_dist.data.parts import Remarks
from maestro_dist.errors import DataError
from maestro_dist.types import Modality

APART_S, APART = 1.0, 0.1
"""By how much streams and labels may differ in length: in seconds; with a warning, as a share of the usual length."""
_E4_UNITS = 64  # of 1 g
_STILL = 0.5, 2.0
"""The median length of the acceleration, in g, is in this range: most of the time it is gravity alone."""


@dataclass(frozen=True)
class BodySensor:
    """A modality: its place in the file (`device` and `key`), its rate, variates and unit."""

    device: str
    key: str
    rate_hz: int
    variates: int
    unit: str


SENSORS = {
    "chest_acc": BodySensor("chest", "ACC", 700, 3, "g"),
    "chest_ecg": BodySensor("chest", "ECG", 700, 1, "mV"),
    "chest_eda": BodySensor("chest", "EDA", 700, 1, "uS"),
    "chest_emg": BodySensor("chest", "EMG", 700, 1, "mV"),
    "chest_resp": BodySensor("chest", "Resp", 700, 1, "%"),
    "chest_temp": BodySensor("chest", "Temp", 700, 1, "degC"),
    "wrist_acc": BodySensor("wrist", "ACC", 32, 3, "g"),
    "wrist_bvp": BodySensor("wrist", "BVP", 64, 1, "device unit"),
    "wrist_eda": BodySensor("wrist", "EDA", 4, 1, "uS"),
    "wrist_temp": BodySensor("wrist", "TEMP", 4, 1, "degC"),
}


@dataclass(frozen=True)
class Body:
    """What was read of one person.

    streams   float64 [steps, variates] by modality, all from time 0 on
    length_s  the usual end of the streams (median)
    content   the whole dictionary
    name      of the file, for messages
    """

    streams: dict[str, np.ndarray]
    length_s: float
    content: Mapping[Any, Any]
    name: str

    def labels(self, key: str, rate_hz: float, most: int, remarks: Remarks) -> np.ndarray:
        """Numbers 0 to `most` at a fixed rate, as int64 [n], from time 0 to the end.

        Raises:
            DataError: they are missing, are other numbers, or end at another time than the streams.
        """
        values = numbers(self.name, self.content, key, 1)[:, 0]
        if not np.isin(values, np.arange(most + 1)).all():
            odd = values[~np.isin(values, np.arange(most + 1))][0]
            raise DataError(f"{self.name}: {key} has {odd:g}; its values are 0 to {most}; fetch it again")
        check_length(self.name, f"{key} ({rate_hz:g} Hz)", len(values) / rate_hz, self.length_s, remarks)
        return values.astype(np.int64)


def modalities(names: Sequence[str], window_s: float) -> tuple[Modality, ...]:
    """The modalities with these names, for windows of `window_s` seconds."""
    about = [(name, SENSORS[name]) for name in names]
    return tuple(Modality(n, s.variates, float(s.rate_hz), round(s.rate_hz * window_s), s.unit) for n, s in about)


def find_people(files: SourceFiles, published: Collection[int]) -> dict[int, SourceFile]:
    """`SX.pkl` by number of the person, in their order; adds to the remarks of `files`.

    Raises:
        DataError: there is none.
    """
    found = files.find(_person_of)
    if not found:
        raise files.error("no SX/SX.pkl; the source is the folder or archive that holds the folders S1, S2, ...")
    for number in sorted(set(published) - found.keys()):
        files.remarks.warn("files that are not in the source", f"S{number}/S{number}.pkl")
    for number in sorted(found.keys() - set(published)):
        files.remarks.warn("people who are not among those published, used nevertheless", found[number].name)
    return dict(sorted(found.items()))


def read_body(file: SourceFile, person: int, names: Sequence[str], remarks: Remarks) -> Body:
    """The streams with these names of one person.

    Raises:
        DataError: the file is damaged, lacks a stream, is of another person, or its streams do not fit each other.
    """
    content = read_plain_data(file.name, file.read_binary())
    if not isinstance(content, Mapping) or not isinstance(content.get("signal"), Mapping):
        raise DataError(f"{file.name}: it has no 'signal'; it is no SX.pkl of the data set")
    subject = content.get("subject")
    if not isinstance(subject, str) or subject.strip().upper() != f"S{person}":
        is_of = subject[:20] if isinstance(subject, str) else type(subject).__name__
        raise DataError(f"{file.name}: its subject is {is_of!r}, not S{person}; rename it, or fetch it again")
    streams = {}
    for name in names:
        about = SENSORS[name]
        device = content["signal"].get(about.device)
        if not isinstance(device, Mapping):
            raise DataError(f"{file.name}: signal has no '{about.device}'; fetch it again")
        streams[name] = numbers(f"{file.name}: {about.device}", device, about.key, about.variates)
    if "wrist_acc" in streams:
        streams["wrist_acc"] = _in_g(file.name, streams["wrist_acc"], remarks)
    ends = {name: len(values) / SENSORS[name].rate_hz for name, values in streams.items()}
    length_s = float(np.median(list(ends.values())))
    for name, end in ends.items():
        check_length(file.name, f"{name} ({SENSORS[name].rate_hz} Hz)", end, length_s, remarks)
    return Body(streams, length_s, content, file.name)


def check_length(name: str, what: str, lasts_s: float, usual_s: float, remarks: Remarks) -> None:
    """Compare the length of a stream or of labels with the usual one, in seconds.

    Raises:
        DataError: they differ by so much that the rate is another one, or much is missing.
    """
    apart = abs(lasts_s - usual_s)
    if apart > max(APART_S, APART * usual_s):
        raise DataError(
            f"{name}: {what} lasts {lasts_s:,.1f} s, the signals {usual_s:,.1f} s: it is incomplete or has another "
            "rate; fetch it again"
        )
    if apart > APART_S:
        remarks.warn(
            "signals and labels that end at another time than the others of the person",
            f"{what} of {name} ({lasts_s - usual_s:+.1f} s)",
        )


def numbers(name: str, content: Mapping[Any, Any], key: str, variates: int) -> np.ndarray:
    """The array `key` of a dictionary, float64 [steps, variates]; [steps] is read as one variate.

    Raises:
        DataError: it is missing, is no such array, or holds an infinite number.
    """
    array = content.get(key)
    if not isinstance(array, np.ndarray) or not array.size:
        raise DataError(f"{name} has no numbers in '{key}'; fetch it again")
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2 or array.shape[1] != variates:
        raise DataError(f"{name}: {key} has shape {array.shape} instead of (steps, {variates}); fetch it again")
    values = array.astype(np.float64)
    if np.isinf(values).any():
        raise DataError(f"{name}: {key} has an infinite number in row {int(np.argmax(np.isinf(values).any(axis=1)))}")
    return values


def runs_of(values: np.ndarray) -> list[tuple[int, int, int]]:
    """(first, end, value) of each run of equal values; `end` is the place after the last one."""
    edges = [0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), len(values)]
    return [(first, end, int(values[first])) for first, end in pairwise(edges)]


def _in_g(name: str, values: np.ndarray, remarks: Remarks) -> np.ndarray:
    """Acceleration of the wrist in g. WESAD has it in 1/64 g, PPG-DaLiA in g: gravity says which."""
    length = float(np.nanmedian(np.linalg.norm(values, axis=1))) if np.isfinite(values).any() else np.nan
    low, high = _STILL
    if low <= length <= high:
        remarks.count("people whose wrist acceleration is stored in g")
        return values
    if low <= length / _E4_UNITS <= high:
        remarks.count("people whose wrist acceleration is stored in 1/64 g; it was converted to g")
        return values / _E4_UNITS
    raise DataError(
        f"{name}: the median length of the wrist's acceleration is {length:.3g}: neither about 1 (g) nor about 64 "
        "(1/64 g); fetch it again"
    )


def _person_of(path: PurePosixPath) -> int | None:
    match = re.fullmatch(r"S(\d{1,4})\.pkl", path.name, re.ASCII)
    return int(match[1]) if match else None
