"""PAM, made of PAMAP2 (UCI data set 231): 9 people, sensors at hand, chest and ankle, heart rate, 100 Hz.

Source: `Protocol/subject10X.dat` (12 activities) and `Optional/subject10X.dat` (6 more), 54 columns separated by
blanks: seconds, activity (0: none), heart rate (1/min, about 9 times a second), then 17 each for hand, chest and ankle:
temperature (degC), acceleration up to 16 g and up to 6 g (m/s^2), gyroscope (rad/s), magnetometer (uT), 3 each, and 4
of the orientation, which the authors call invalid. NaN is missing.

Published (Raindrop): the benchmark PAM, of 8 activities, the first 8 people and 17 sensors, in windows of 600 steps
that overlap by half, with a random split and 60 % of the values removed. The names of the activities are not published,
only that they have 500 windows or more: we take them to be EIGHT below, whose durations in PAMAP2 allow that. The 17
sensors are the first 17 columns of a table of 51: we take them to be those of the hand (`--sensors hand`).

Ours: all valid sensors but the acceleration up to 6 g, which clips, as 13 modalities; windows inside one activity (the
published ones may reach over two); a split by person, since windows that overlap must not be in two splits; nothing is
removed. So figures cannot be compared with published ones.

The data cannot be fetched by a program, so this was tested on generated files of the published layout only.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import PurePosixPath

import numpy as np

from maestro_dist.config.windows import WindowConfig
from maestro_dist.data.converters.files import AnySource, SourceFile, SourceFiles
from maestro_dist.data.converters.source import (
    Conversion,
    Converter,
    Splits,
    as_recordings,
    instead,
    parse_splits,
    split_of,
    table,
    warn_of_unknown_people,
)
from maestro_dist.data.description import Description
from maestro_dist.data.parts import Remarks
from maestro_dist.data.recordings.raw import RawRecording
from maestro_dist.errors import DataError
from maestro_dist.types import Modality

RATE_HZ, HEART_RATE_HZ = 100, 10
WINDOW = WindowConfig(length_s=6, stride_s=3, label="inside")
PEOPLE = range(101, 110)
SPLITS: Splits = {"validation": {105}, "test": {106}}
ACTIVITIES = {
    1: "lying",
    2: "sitting",
    3: "standing",
    4: "walking",
    5: "running",
    6: "cycling",
    7: "nordic_walking",
    9: "watching_tv",
    10: "computer_work",
    11: "car_driving",
    12: "ascending_stairs",
    13: "descending_stairs",
    16: "vacuum_cleaning",
    17: "ironing",
    18: "folding_laundry",
    19: "house_cleaning",
    20: "playing_soccer",
    24: "rope_jumping",
}
EIGHT = (1, 2, 3, 4, 6, 7, 16, 17)
PROTOCOL = (1, 2, 3, 4, 5, 6, 7, 12, 13, 16, 17, 24)
CHOICES = {"eight": EIGHT, "protocol": PROTOCOL, "all": tuple(ACTIVITIES)}
COLUMNS, HEART_RATE = 54, 2
PLACES = {"hand": 3, "chest": 20, "ankle": 37}
"""First column of each place."""
LICENCE = "CC BY 4.0"
CITATION = (
    "Reiss A, Stricker D. Introducing a New Benchmarked Dataset for Activity Monitoring. ISWC 2012. PAM: Zhang X, "
    "Zeman M, Tsiligkaridis T, Zitnik M. Graph-Guided Network for Irregularly Sampled Multivariate Time Series. ICLR "
    "2022."
)
_SENSORS = {"temp": (0, 1, "degC"), "acc": (1, 3, "m/s^2"), "gyro": (7, 3, "rad/s"), "mag": (10, 3, "uT")}
_COLUMN_NAMES = ("temp", *(f"{s}_{axis}" for s in ("acc16", "acc6", "gyro", "mag") for axis in "xyz"))
_COLUMN_UNITS = ("degC", *["m/s^2"] * 6, *["rad/s"] * 3, *["uT"] * 3, *["invalid"] * 4)
_OFF = 0.25
"""Allowed difference of a row's time from its place at 100 Hz, in steps."""


@dataclass(frozen=True)
class _PamSensor:
    """A modality and its columns in the file."""

    name: str
    first: int
    variates: int
    unit: str
    rate_hz: int = RATE_HZ


@dataclass(frozen=True)
class _PamPerson:
    """The recording of one file."""

    person: int
    optional: bool
    file: SourceFile
    sensors: tuple[_PamSensor, ...]
    activities: tuple[int, ...]
    splits: Splits

    @property
    def name(self) -> str:
        """Its name for messages."""
        return f"subject{self.person}{'-optional' if self.optional else ''}"

    def samples(self, remarks: Remarks) -> Iterator[RawRecording]:
        """See `Part.samples`."""
        name = self.file.name
        rows = table(name, self.file.read(remarks), COLUMNS, gaps=True)
        place = _places(name, rows[:, 0])
        labels = self._labels(place, rows[:, 1])
        if not labels:
            remarks.warn("recordings without any of the activities, left out", self.name)
            return
        length = int(place[-1]) + 1
        if length > len(rows):
            remarks.count("rows that the files leave out, kept as gaps", length - len(rows))
        values = {sensor.name: _stream(rows, place, sensor) for sensor in self.sensors}
        split = split_of(self.person, self.splits)
        yield RawRecording(
            self.name, values, labels, length_s=length / RATE_HZ, subject=f"subject{self.person}", split=split
        )

    def _labels(self, place: np.ndarray, activity: np.ndarray) -> list[tuple[float, float, int]]:
        """Start, end (s) and class of each run of one activity."""
        known = np.isin(activity, [0, *ACTIVITIES])
        if not known.all():
            row = int(np.argmin(known))
            raise DataError(
                f"{self.file.name}: row {row + 1} has the unknown activity {activity[row]:g}; fetch it again"
            )
        edges = [0, *(np.flatnonzero(np.diff(activity)) + 1).tolist(), len(activity)]
        return [
            (int(place[first]) / RATE_HZ, (int(place[end - 1]) + 1) / RATE_HZ, self.activities.index(activity[first]))
            for first, end in pairwise(edges)
            if activity[first] in self.activities
        ]


class Pam(Converter):
    """Motion sensors at hand, chest and ankle, and the heart rate: activities."""

    name = "pam"
    reads = "PAM (PAMAP2, UCI data set 231): Protocol/subject10X.dat; sensors at hand, chest and ankle, 8 activities"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Options of sensors and activities."""
        parser.add_argument(
            "--sensors",
            choices=("all", "hand"),
            default="all",
            help="all: heart rate, and 4 sensors at each place; hand: its 17 columns, one variate each (default all)",
        )
        parser.add_argument(
            "--activities",
            choices=tuple(CHOICES),
            default="eight",
            help="those of PAM, the 12 of the protocol, or all 18, with the files in Optional (default eight)",
        )

    def from_arguments(self, source: AnySource, arguments: argparse.Namespace) -> Conversion:
        """See `Converter.from_arguments`."""
        splits = parse_splits(arguments.splits) if arguments.splits else SPLITS
        files = SourceFiles(source)
        activities, sensors = CHOICES[arguments.activities], _sensors(arguments.sensors)
        parts = [
            _PamPerson(person, optional, file, sensors, activities, splits)
            for (person, optional), file in _found(files, arguments.activities == "all").items()
        ]
        description = Description(
            name=self.name,
            licence=LICENCE,
            citation=CITATION,
            source="UCI Machine Learning Repository, data set 231 (PAMAP2)",
            task="classification",
            classes=tuple(ACTIVITIES[number] for number in activities),
            target="activity",
            window_s=WINDOW.length_s,
            modalities=tuple(
                Modality(s.name, s.variates, float(s.rate_hz), round(s.rate_hz * WINDOW.length_s), s.unit)
                for s in sensors
            ),
        )
        people = frozenset(part.person for part in parts)
        conversion = Conversion(description, parts, files.listing(), people=people, warnings=tuple(files.warnings()))
        conversion = as_recordings(conversion, WINDOW)
        return warn_of_unknown_people(conversion, splits) if arguments.splits else conversion


def _sensors(choice: str) -> tuple[_PamSensor, ...]:
    if choice == "hand":
        names = (*_COLUMN_NAMES, *(f"orientation_{n}" for n in range(1, 5)))
        about = zip(names, _COLUMN_UNITS, strict=True)
        return tuple(_PamSensor(f"hand_{name}", PLACES["hand"] + n, 1, unit) for n, (name, unit) in enumerate(about))
    heart_rate = _PamSensor("heart_rate", HEART_RATE, 1, "1/min", HEART_RATE_HZ)
    placed = [
        _PamSensor(f"{place}_{name}", first + column, variates, unit)
        for place, first in PLACES.items()
        for name, (column, variates, unit) in _SENSORS.items()
    ]
    return (heart_rate, *placed)


def _role(path: PurePosixPath) -> tuple[int, bool] | None:
    """Person of a file, and whether it is an optional one."""
    match = re.fullmatch(r"subject(\d{3})\.dat", path.name, re.ASCII)
    return (int(match[1]), path.parent.name.lower() == "optional") if match else None


def _found(files: SourceFiles, optional: bool) -> dict[tuple[int, bool], SourceFile]:
    """The files by person; adds to the remarks of `files`."""
    found = files.find(lambda path: role if (role := _role(path)) and (optional or not role[1]) else None)
    if not any(not is_optional for _, is_optional in found):
        other = instead(files, "PAMAP2 (UCI data set 231)")
        raise files.error(f"no subject10X.dat; the source is the folder or archive of Protocol and Optional{other}")
    for person in PEOPLE:
        if (person, False) not in found:
            files.remarks.warn("files that are not in the source", f"Protocol/subject{person}.dat")
    if optional and not any(is_optional for _, is_optional in found):
        files.remarks.warn("no file of the six optional activities in the source", "Optional/subject10X.dat")
    for person in sorted({person for person, _ in found} - set(PEOPLE)):
        files.remarks.warn("people who are not among those published, used nevertheless", f"subject{person}")
    return dict(sorted(found.items()))


def _places(name: str, seconds: np.ndarray) -> np.ndarray:
    """The step of each row at 100 Hz, counted from the first row, int64 [rows], ascending.

    Raises:
        DataError: times are missing, do not ascend, are not at 100 Hz, or leave out more than they hold.
    """
    if np.isnan(seconds).any():
        raise DataError(f"{name}: row {int(np.argmax(np.isnan(seconds))) + 1} has no time; fetch it again")
    steps = (seconds - seconds[0]) * RATE_HZ
    if not np.abs(steps).max() < 1e12:
        raise DataError(f"{name}: its times reach {np.abs(seconds).max():g} s; fetch it again")
    place = np.rint(steps).astype(np.int64)
    back = np.diff(place) <= 0
    usual = float(np.median(np.diff(steps))) if len(steps) > 1 else 1.0
    if abs(usual - 1) > _OFF and usual > 0:
        raise DataError(f"{name}: its rows are {RATE_HZ / usual:.4g} times a second, not {RATE_HZ}; fetch it again")
    if back.any():
        raise DataError(f"{name}: row {int(np.argmax(back)) + 2} is not after the row before it; fetch it again")
    odd = np.abs(steps - place) > _OFF
    if odd.any():
        row = int(np.argmax(odd))
        raise DataError(f"{name}: row {row + 1} at {seconds[row]:g} s is not at a step of {RATE_HZ} Hz; fetch it again")
    if place[-1] >= 2 * len(place):
        raise DataError(
            f"{name}: it has {len(place):,} rows of {place[-1] + 1:,} steps, so most are left out; fetch it again"
        )
    return place


def _stream(rows: np.ndarray, place: np.ndarray, sensor: _PamSensor) -> np.ndarray:
    """The values of a modality at its rate, [steps, variates]; NaN where there is none. Of two values for one step (of
    the heart rate), the later counts."""
    given = rows[:, sensor.first : sensor.first + sensor.variates]
    every = RATE_HZ // sensor.rate_hz
    values = np.full((int(place[-1]) // every + 1, sensor.variates), np.nan)
    kept = slice(None) if every == 1 else ~np.isnan(given[:, 0])
    values[place[kept] // every] = given[kept]
    return values
