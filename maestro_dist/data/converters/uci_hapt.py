"""UCI HAPT (data set 341): accelerometer and gyroscope of a phone at the waist, 30 people, 12 activities, 50 Hz.

Source: `RawData/acc_expEE_userUU.txt`, `gyro_expEE_userUU.txt` (3 columns: g, rad/s) and `RawData/labels.txt` with rows
(experiment, user, activity 1..12, first row, last row), rows counted from 0 and inclusive.
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
    add_form,
    as_recordings,
    parse_splits,
    split_of,
    table,
    warn_of_unknown_people,
)
from maestro_dist.data.description import Description
from maestro_dist.data.moments import causal_statistics
from maestro_dist.data.parts import Remarks
from maestro_dist.data.recordings.raw import RawRecording
from maestro_dist.data.sample_checks import RawSample
from maestro_dist.errors import ConfigError, DataError
from maestro_dist.types import Modality

RATE_HZ = 50.0
UNITS = {"acc": "g", "gyro": "rad/s"}
CLASSES = (
    "walking",
    "walking_upstairs",
    "walking_downstairs",
    "sitting",
    "standing",
    "laying",
    "stand_to_sit",
    "sit_to_stand",
    "sit_to_lie",
    "lie_to_sit",
    "stand_to_lie",
    "lie_to_stand",
)
SPLITS: Splits = {"validation": {1, 3, 5}, "test": {2, 4, 9, 10, 12, 13, 18, 20, 24}}
LICENCE = "CC BY 4.0"
CITATION = (
    "Reyes-Ortiz J-L, Oneto L, Sama A, Parra X, Anguita D. Transition-Aware Human Activity Recognition Using "
    "Smartphones. Neurocomputing 2016;171:754-767."
)
NOTICE = (
    'The original authors\' notice on the parent data set says "any commercial use is prohibited": use it for research.'
)

_STREAM = re.compile(r"(acc|gyro)_exp(\d+)_user(\d+)\.txt", re.ASCII)
_LABELS = "labels", 0  # the role of labels.txt; other files have (sensor, experiment)


@dataclass(frozen=True)
class _LabelledSegment:
    """Rows `start` <= row < `end` of an experiment, with one label; all numbers from 0. `row`: its row in labels.txt,
    from 1."""

    row: int
    user: int
    label: int
    start: int
    end: int


@dataclass(frozen=True)
class _HaptWindows:
    """How windows are cut; see `UciHapt.convert`."""

    modalities: str
    window: int
    stride: int
    splits: Splits
    form: str


@dataclass(frozen=True)
class _Experiment:
    """The windows of one experiment, in the order of their starts. `source`, `labels`: names for messages."""

    number: int
    files: dict[str, SourceFile]
    segments: tuple[_LabelledSegment, ...]
    windows: _HaptWindows
    source: str
    labels: str

    @property
    def name(self) -> str:
        """Its name for messages."""
        return f"exp{self.number:02d}"

    def samples(self, remarks: Remarks) -> Iterator[RawSample | RawRecording]:
        """See `Part.samples`."""
        streams = {sensor: table(file.name, file.read(remarks), 3) for sensor, file in self.files.items()}
        self._check(streams)
        if self.windows.form == "recordings":
            yield self._recording(streams)
            return
        window, stride = self.windows.window, self.windows.stride
        spans = [(s, start) for s in self.segments for start in range(s.start, s.end - window + 1, stride)]
        spans.sort(key=lambda span: span[1])
        ends = np.array([start + window for _, start in spans], dtype=np.int64)
        statistics = {sensor: causal_statistics(stream, ends) for sensor, stream in streams.items()}
        for row, (segment, start) in enumerate(spans):
            values, recording_statistics = {}, {}
            for sensor, stream in streams.items():
                names = _names(sensor, self.windows.modalities)
                width = 3 // len(names)
                for axis, name in enumerate(names):
                    columns = slice(axis * width, (axis + 1) * width)
                    values[name] = stream[start : start + window, columns]
                    recording_statistics[name] = statistics[sensor][row, columns]
            yield RawSample(
                split=split_of(segment.user, self.windows.splits),
                key=f"{self.name}-user{segment.user:02d}-{start:06d}",
                label=segment.label,
                subject=f"user{segment.user:02d}",
                recording=self.name,
                start_s=start / RATE_HZ,
                duration_s=window / RATE_HZ,
                values=values,
                statistics=recording_statistics,
            )

    def _recording(self, streams: dict[str, np.ndarray]) -> RawRecording:
        values = {}
        for sensor, stream in streams.items():
            names = _names(sensor, self.windows.modalities)
            for name, columns in zip(names, np.split(stream, len(names), axis=1), strict=True):
                values[name] = columns
        (user,) = {segment.user for segment in self.segments}
        labels = [(segment.start / RATE_HZ, segment.end / RATE_HZ, segment.label) for segment in self.segments]
        split = split_of(user, self.windows.splits)
        return RawRecording(self.name, values, labels, subject=f"user{user:02d}", split=split)

    def _check(self, streams: dict[str, np.ndarray]) -> None:
        steps = {len(stream) for stream in streams.values()}
        if len(steps) > 1:
            raise DataError(
                f"{self.source}: acc and gyro of experiment {self.number} differ in length; fetch them again"
            )
        for segment in self.segments:
            if segment.end > min(steps):
                raise _misfit(self.labels, segment.row, self.number)


class UciHapt(Converter):
    """Accelerometer and gyroscope of a phone at the waist: activities and the changes between postures."""

    name = "uci_hapt"
    reads = "UCI HAPT (data set 341): RawData; accelerometer and gyroscope of a phone, 12 activities"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Options of windows and modalities."""
        parser.add_argument(
            "--modalities", choices=("sensors", "axes"), default="sensors", help="acc, gyro; or six axes"
        )
        add_form(parser)
        parser.add_argument("--window", type=int, default=128, metavar="STEPS", help="steps per window (default 128)")
        parser.add_argument(
            "--stride", "--shift", type=int, default=64, metavar="N", help="steps between windows (default 64)"
        )

    def from_arguments(self, source: AnySource, arguments: argparse.Namespace) -> Conversion:
        """See `Converter.from_arguments`."""
        splits = parse_splits(arguments.splits) if arguments.splits else SPLITS
        conversion = self.convert(
            source,
            modalities=arguments.modalities,
            window=arguments.window,
            stride=arguments.stride,
            splits=splits,
            form=arguments.form,
        )
        return warn_of_unknown_people(conversion, splits) if arguments.splits else conversion

    def convert(
        self,
        source: AnySource,
        *,
        modalities: str = "sensors",
        window: int = 128,
        stride: int = 64,
        splits: Splits = SPLITS,
        form: str = "windows",
    ) -> Conversion:
        """Windows of `window` steps every `stride` steps inside each labelled segment; a window has one label.

        `modalities`: "sensors" (acc, gyro; 3 variates each) or "axes" (acc_x ... gyro_z; one variate each). The
        recording of a window is its experiment, from the first row on, labelled or not. `form`: one of `FORMS`.

        Raises:
            ConfigError: a window or stride below 1.
            DataError: a file is missing, or does not fit the others.
        """
        if window < 1 or stride < 1:
            raise ConfigError(f"--window {window} --stride {stride}: both are 1 or more steps")
        files = SourceFiles(source)
        parts = _experiments(files, _HaptWindows(modalities, window, stride, splits, form))
        names = [name for sensor in UNITS for name in _names(sensor, modalities)]
        description = Description(
            name="uci_hapt",
            licence=LICENCE,
            citation=CITATION,
            source="UCI Machine Learning Repository, data set 341 (HAPT), RawData",
            task="classification",
            classes=CLASSES,
            target="activity or postural transition",
            window_s=window / RATE_HZ,
            modalities=tuple(
                Modality(name, 3 if modalities == "sensors" else 1, RATE_HZ, window, UNITS[name.partition("_")[0]])
                for name in names
            ),
            recording=True,
            notice=NOTICE,
        )
        conversion = Conversion(
            description,
            parts,
            files.listing(),
            people=frozenset(segment.user for part in parts for segment in part.segments if _fits(segment, window)),
            warnings=tuple(files.warnings()),
        )
        if form == "windows":
            return conversion
        cut = WindowConfig(length_s=window / RATE_HZ, stride_s=stride / RATE_HZ, label="inside")
        return as_recordings(conversion, cut)


def _fits(segment: _LabelledSegment, window: int) -> bool:
    return segment.end - segment.start >= window


def _names(sensor: str, modalities: str) -> list[str]:
    return [sensor] if modalities == "sensors" else [f"{sensor}_{axis}" for axis in "xyz"]


def _role(path: PurePosixPath) -> tuple[str, int] | None:
    """Role of a file: the labels, or (sensor, experiment)."""
    if path.name == "labels.txt":
        return _LABELS
    match = _STREAM.fullmatch(path.name)
    return (match[1], int(match[2])) if match else None


def _experiments(files: SourceFiles, windows: _HaptWindows) -> list[_Experiment]:
    """The experiments with labels, in the order of their numbers; adds to the remarks of `files`."""
    found = files.find(_role)
    if _LABELS not in found:
        raise files.error("no labels.txt; the source is the folder or archive that holds RawData")
    users: dict[int, tuple[int, str]] = {}
    for role, file in found.items():
        if role != _LABELS:
            number = int(_stream_of(file.name)[3])
            user, other = users.setdefault(role[1], (number, file.name))
            if user != number:
                raise DataError(
                    f"{file.name}: {other} says that experiment {role[1]} is of user {user}; keep one of them"
                )
    labels = found[_LABELS]
    rows = table(labels.name, labels.read(files.remarks), 5)
    if (rows % 1).any():
        raise DataError(
            f"{labels.name}: row {int(np.argmax((rows % 1).any(axis=1))) + 1} has a number that is not whole"
        )
    labelled = rows.astype(np.int64).tolist()
    missing = [
        f"{sensor}_exp{experiment:02d}_user{user:02d}.txt"
        for experiment, user in sorted({(row[0], row[1]) for row in labelled})
        for sensor in UNITS
        if (sensor, experiment) not in found
    ]
    if missing:
        raise files.error(f"{missing_text(missing)}, but labels.txt has rows of it; fetch it again")
    segments: dict[int, list[_LabelledSegment]] = {}
    for number, (experiment, user, activity, first, last) in enumerate(labelled, start=1):
        if not (0 <= first <= last and 1 <= activity <= len(CLASSES) and users[experiment][0] == user):
            raise _misfit(labels.name, number, experiment)
        segment = _LabelledSegment(number, user, activity - 1, first, last + 1)
        segments.setdefault(experiment, []).append(segment)
    for experiment in sorted(users.keys() - segments.keys()):
        who = f"exp{experiment:02d} (user{users[experiment][0]:02d})"
        files.remarks.warn("experiments without a row in labels.txt, left out", who)
    return [
        _Experiment(
            experiment,
            {sensor: found[sensor, experiment] for sensor in UNITS},
            tuple(segments[experiment]),
            windows,
            files.path,
            labels.name,
        )
        for experiment in sorted(segments)
    ]


def _misfit(labels: str, row: int, experiment: int) -> DataError:
    return DataError(f"{labels}: row {row} does not fit experiment {experiment} (user, activity or rows)")


def _stream_of(name: str) -> re.Match[str]:
    match = _STREAM.fullmatch(re.split(r"[/:\\]", name)[-1])
    assert match is not None
    return match
