"""DSADS, Daily and Sports Activities (UCI data set 256): 8 people, 5 sensor units, 19 activities, 25 Hz.

Source: `data/aXX/pY/sZZ.txt`, activity 1 to 19, person 1 to 8, segment 1 to 60: 125 rows (5 s) of 45 numbers, separated
by commas. The columns are those of the units on torso, right arm, left arm, right leg and left leg in turn, each with
x, y, z of accelerometer (m/s^2), gyroscope (rad/s) and magnetometer (relative to the field of the earth).

The segments of an activity and person are 5 minutes cut into pieces: here they are one recording again, and by default
a run cuts it into these segments. Published: windows of 5 s. MAESTRO splits by person, but does not name the people.
The people of the splits below are our choice.

The data cannot be fetched by a program, so this was tested on generated files of the published layout only.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from maestro_dist.config.windows import WindowConfig
from maestro_dist.data.converters.files import AnySource, SourceFile, SourceFiles, missing_text
from maestro_dist.data.converters.source import (
    Conversion,
    Converter,
    Splits,
    as_recordings,
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

RATE_HZ, SEGMENT_S, ROWS, SEGMENTS = 25.0, 5, 125, 60
PEOPLE = range(1, 9)
UNITS = ("torso", "right_arm", "left_arm", "right_leg", "left_leg")
SENSORS = {"acc": "m/s^2", "gyro": "rad/s", "mag": "relative to the earth's field"}
SPLITS: Splits = {"validation": {6}, "test": {7, 8}}
CLASSES = (
    "sitting",
    "standing",
    "lying_on_back",
    "lying_on_right_side",
    "ascending_stairs",
    "descending_stairs",
    "standing_in_elevator",
    "moving_in_elevator",
    "walking_in_parking_lot",
    "walking_on_treadmill_flat",
    "walking_on_treadmill_inclined",
    "running_on_treadmill",
    "stepper",
    "cross_trainer",
    "cycling_horizontal",
    "cycling_vertical",
    "rowing",
    "jumping",
    "basketball",
)
LICENCE = "CC BY 4.0"
CITATION = (
    "Barshan B, Altun K. Daily and Sports Activities. UCI Machine Learning Repository 2010, doi 10.24432/C5C59F. Altun "
    "K, Barshan B, Tuncel O. Comparative study on classifying human activities with miniature inertial and magnetic "
    "sensors. Pattern Recognition 2010;43(10):3605-3620."
)

Role = tuple[int, int, int]
"""Activity, person and segment, each from 1."""


@dataclass(frozen=True)
class _DsadsRecording:
    """The recording of one activity of one person. `files`: its segments in turn."""

    activity: int
    person: int
    files: tuple[SourceFile, ...]
    modalities: str
    splits: Splits

    @property
    def name(self) -> str:
        """Its name for messages."""
        return f"a{self.activity:02d}-p{self.person}"

    def samples(self, remarks: Remarks) -> Iterator[RawRecording]:
        """See `Part.samples`."""
        rows = np.concatenate([_segment(file, remarks) for file in self.files])
        split = split_of(self.person, self.splits)
        values = {name: rows[:, columns] for name, columns, _ in _columns(self.modalities)}
        yield RawRecording(self.name, values, self.activity - 1, subject=f"p{self.person}", split=split)


class Dsads(Converter):
    """Five units with accelerometer, gyroscope and magnetometer: daily and sports activities."""

    name = "dsads"
    reads = "DSADS (UCI data set 256): data/aXX/pY/sZZ.txt; five motion sensors, 19 activities"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """The option of modalities."""
        parser.add_argument(
            "--modalities",
            choices=("units", "sensors"),
            default="units",
            help="five units of 9 variates (as MAESTRO does), or their 15 sensors of 3 (default units)",
        )

    def from_arguments(self, source: AnySource, arguments: argparse.Namespace) -> Conversion:
        """See `Converter.from_arguments`."""
        splits = parse_splits(arguments.splits) if arguments.splits else SPLITS
        files = SourceFiles(source)
        sessions = _sessions(files)
        parts = [
            _DsadsRecording(activity, person, segments, arguments.modalities, splits)
            for (activity, person), segments in sessions.items()
        ]
        people = frozenset(person for _, person in sessions)
        steps = round(RATE_HZ * SEGMENT_S)
        description = Description(
            name=self.name,
            licence=LICENCE,
            citation=CITATION,
            source="UCI Machine Learning Repository, data set 256 (Daily and Sports Activities)",
            task="classification",
            classes=CLASSES,
            target="activity",
            window_s=SEGMENT_S,
            modalities=tuple(
                Modality(name, columns.stop - columns.start, RATE_HZ, steps, unit)
                for name, columns, unit in _columns(arguments.modalities)
            ),
        )
        conversion = Conversion(description, parts, files.listing(), people=people, warnings=tuple(files.warnings()))
        conversion = as_recordings(conversion, WindowConfig(length_s=SEGMENT_S))
        return warn_of_unknown_people(conversion, splits) if arguments.splits else conversion


def _columns(modalities: str) -> list[tuple[str, slice, str]]:
    """Name, columns and unit of each modality."""
    if modalities == "units":
        unit = ", ".join(f"{name} {unit}" for name, unit in SENSORS.items())
        return [(name, slice(9 * n, 9 * n + 9), unit) for n, name in enumerate(UNITS)]
    return [
        (f"{place}_{sensor}", slice(9 * n + 3 * m, 9 * n + 3 * m + 3), unit)
        for n, place in enumerate(UNITS)
        for m, (sensor, unit) in enumerate(SENSORS.items())
    ]


def _role(path: PurePosixPath) -> Role | None:
    """Role of a file `aXX/pY/sZZ.txt`."""
    match = re.fullmatch(r"(?:.*/)?a(\d\d)/p(\d)/s(\d\d)\.txt", path.as_posix(), re.ASCII)
    return (int(match[1]), int(match[2]), int(match[3])) if match else None


def _sessions(files: SourceFiles) -> dict[tuple[int, int], tuple[SourceFile, ...]]:
    """The segments of each activity and person, in turn; adds to the remarks of `files`."""
    found = files.find(_role)
    if not found:
        raise files.error("no aXX/pY/sZZ.txt; the source is the folder or archive that holds the folders a01, a02, ...")
    for (activity, person, segment), file in found.items():
        if not (1 <= activity <= len(CLASSES) and person in PEOPLE and 1 <= segment <= SEGMENTS):
            raise DataError(
                f"{file.name}: the data set has a01 to a{len(CLASSES)}, p1 to p{PEOPLE[-1]} and s01 to s{SEGMENTS}; "
                "take it out of the source"
            )
    sessions = sorted({(activity, person) for activity, person, _ in found})
    missing = [
        _path(activity, person, segment)
        for activity, person in sessions
        for segment in range(1, SEGMENTS + 1)
        if (activity, person, segment) not in found
    ]
    if missing:
        raise files.error(f"{missing_text(missing)}, but other segments of it are there; fetch it again")
    whole = {(activity, person) for activity in range(1, len(CLASSES) + 1) for person in PEOPLE}
    for activity, person in sorted(whole - set(sessions)):
        files.remarks.warn(f"recordings that are not in the source, of {len(whole)}", f"a{activity:02d}/p{person}")
    return {
        (activity, person): tuple(found[activity, person, segment] for segment in range(1, SEGMENTS + 1))
        for activity, person in sessions
    }


def _path(activity: int, person: int, segment: int) -> str:
    return f"a{activity:02d}/p{person}/s{segment:02d}.txt"


def _segment(file: SourceFile, remarks: Remarks) -> np.ndarray:
    """The rows of one file, float64 [125, 45]."""
    rows = table(file.name, file.read(remarks), 9 * len(UNITS), delimiter=",")
    if len(rows) != ROWS:
        raise DataError(f"{file.name}: {len(rows)} rows instead of {ROWS} (5 s at 25 Hz); fetch it again")
    return rows
