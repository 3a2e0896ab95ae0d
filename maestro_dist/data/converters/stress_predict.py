"""Stress-Predict: 35 people with an Empatica E4 at the wrist, stress or not by the second.

Source: `Raw_data/SXX/{ACC,BVP,EDA,TEMP,HR}.csv` (row 1 start in unix seconds, row 2 rate in Hz, then samples) and
`Processed_data/Improved_All_Combined_hr_rsp_binary.csv` (Participant, HR, respr, Time(sec), Label). The tags of some
people are wrong (12-hour clock), so only that file's labels count; S01 has none and is left out.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
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
from maestro_dist.data.parts import Remarks, join_names
from maestro_dist.data.recordings.raw import RawRecording
from maestro_dist.data.sample_checks import RawSample
from maestro_dist.errors import ConfigError, DataError
from maestro_dist.types import Modality

LABELS = "Improved_All_Combined_hr_rsp_binary.csv"
_LABELS = -1, ""  # the role of that file; others have (subject, modality)
SUBJECTS = range(2, 36)
UNLABELLED = 1
"""The only person without published labels."""
FOLDS = 5
APART_S = 60
"""Allowed difference of starts and of ends, in seconds. In the published data starts differ by at most 10 s."""
SPLITS: Splits = {"validation": range(24, 28), "test": range(28, 36)}
CLASSES = ("no_stress", "stress")
LICENCE = "MIT"
CITATION = (
    "Iqbal T. et al. Stress Monitoring Using Wearable Sensors: A Pilot Study and Stress-Predict Dataset. "
    "Sensors 2022;22(21):8135, doi 10.3390/s22218135."
)


@dataclass(frozen=True)
class _Kind:
    """A modality: rate, columns and unit. Values of the file are multiplied by `scale`."""

    rate_hz: int
    variates: int
    unit: str
    scale: float = 1.0


KINDS = {
    "acc": _Kind(32, 3, "g", 1 / 64),
    "bvp": _Kind(64, 1, "device unit"),
    "eda": _Kind(4, 1, "uS"),
    "hr": _Kind(1, 1, "1/min"),
    "temp": _Kind(4, 1, "degC"),
}


@dataclass(frozen=True)
class _Stream:
    """Values [T, D] of one modality from `start` on, in unix seconds."""

    start: float
    values: np.ndarray

    def end(self, rate_hz: int) -> float:
        """End of the last step, in unix seconds."""
        return self.start + len(self.values) / rate_hz


@dataclass(frozen=True)
class _Session:
    """One person: streams by modality, and a label for each second from `first` on."""

    subject: int
    streams: dict[str, _Stream]
    first: int
    labels: np.ndarray

    def span(self) -> tuple[int, int]:
        """First unix second with labels and all streams, and the second after the last (first >= end: none)."""
        begin = max(self.first, *(math.ceil(stream.start) for stream in self.streams.values()))
        ends = [stream.end(KINDS[name].rate_hz) for name, stream in self.streams.items()]
        return begin, min(self.first + len(self.labels), *(math.floor(end) for end in ends))

    def window_starts(self, window: int, stride: int) -> range:
        """Starts of the windows, in unix seconds."""
        begin, end = self.span()
        return range(begin, end - window + 1, stride)


@dataclass(frozen=True)
class _StressWindows:
    """How windows are cut; see `StressPredict.convert`."""

    window_s: int
    stride_s: int
    splits: Splits
    form: str


@dataclass(frozen=True)
class _Person:
    """The windows of one person: files by modality, and a label for each second from `first` on."""

    subject: int
    files: dict[str, SourceFile]
    first: int
    labels: np.ndarray
    windows: _StressWindows

    @property
    def name(self) -> str:
        """Its name for messages."""
        return _name(self.subject)

    def samples(self, remarks: Remarks) -> Iterator[RawSample | RawRecording]:
        """See `Part.samples`."""
        streams = {kind: _read_stream(file.name, file.read(remarks), kind) for kind, file in self.files.items()}
        session = _Session(self.subject, streams, self.first, self.labels)
        _check_together(session, {kind: file.name for kind, file in self.files.items()})
        begin, end = session.span()
        uncovered = len(session.labels) - max(0, end - begin)
        if uncovered > APART_S:
            remarks.warn("people with labels beyond their data, which are left out", f"{self.name} ({uncovered:,} s)")
        starts = session.window_starts(self.windows.window_s, self.windows.stride_s)
        if not starts:
            text = f"people with less than {self.windows.window_s} s of labelled data, left out"
            remarks.warn(text, self.name)
        if self.windows.form == "recordings":
            return iter([_recording(session, self.windows.splits)] if starts else [])
        return _samples(session, starts, self.windows)


class StressPredict(Converter):
    """Signals of a wristband: stress in most of the seconds of a window, or not."""

    name = "stress_predict"
    reads = "Stress-Predict: Raw_data and Processed_data; a wristband, stress or not"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Options of windows and folds."""
        add_form(parser)
        parser.add_argument("--window", type=int, default=32, metavar="SECONDS", help="length of a window (default 32)")
        parser.add_argument(
            "--stride", "--shift", type=int, default=16, metavar="S", help="seconds between windows (default 16)"
        )
        parser.add_argument(
            "--fold",
            type=int,
            metavar="K",
            help="split by subject: fold K (from 0) is the test, the next one validation",
        )
        parser.add_argument("--folds", type=int, metavar="N", help="number of folds (default 5); goes with --fold")

    def from_arguments(self, source: AnySource, arguments: argparse.Namespace) -> Conversion:
        """See `Converter.from_arguments`."""
        splits = SPLITS
        if arguments.splits:
            splits = parse_splits(arguments.splits)
        if arguments.folds is not None or arguments.fold is not None:
            if arguments.splits or arguments.fold is None:
                raise ConfigError("--folds N goes together with --fold K, and --fold K without --splits")
            splits = fold_splits(FOLDS if arguments.folds is None else arguments.folds, arguments.fold)
        conversion = self.convert(
            source, window_s=arguments.window, stride_s=arguments.stride, splits=splits, form=arguments.form
        )
        return warn_of_unknown_people(conversion, splits) if arguments.splits else conversion

    def convert(
        self,
        source: AnySource,
        *,
        window_s: int = 32,
        stride_s: int = 16,
        splits: Splits = SPLITS,
        form: str = "windows",
    ) -> Conversion:
        """Windows of `window_s` seconds every `stride_s` seconds, each modality at its own rate.

        The label is the label of most of the window's seconds; a tie is no stress. The recording of a window is
        the person's complete session, from the first sample of each stream. `form`: one of `FORMS`.

        Raises:
            ConfigError: a window or stride below 1.
            DataError: a file is missing, damaged, or does not fit the others.
        """
        if window_s < 1 or stride_s < 1:
            raise ConfigError(f"--window {window_s} --stride {stride_s}: both are 1 or more seconds")
        files = SourceFiles(source)
        parts, warnings, notes = _people(files, _StressWindows(window_s, stride_s, splits, form))
        description = Description(
            name="stress_predict",
            licence=LICENCE,
            citation=CITATION,
            source="github.com/italha-d/Stress-Predict-Dataset",
            task="classification",
            classes=CLASSES,
            target="stress in most of the window's seconds",
            window_s=float(window_s),
            modalities=tuple(
                Modality(name, kind.variates, float(kind.rate_hz), kind.rate_hz * window_s, kind.unit)
                for name, kind in KINDS.items()
            ),
            recording=True,
        )
        conversion = Conversion(
            description,
            parts,
            files.listing(),
            people=frozenset(part.subject for part in parts),
            warnings=tuple(warnings),
            notes=lambda counts: notes,
        )
        if form == "windows":
            return conversion
        return as_recordings(conversion, WindowConfig(length_s=window_s, stride_s=stride_s))


def fold_splits(folds: int, fold: int) -> Splits:
    """Subjects by split for one of several folds; the fold of a subject is its index in S02 ... S35 mod `folds`."""
    if folds < 3 or not 0 <= fold < folds:
        raise ConfigError(f"--folds {folds} --fold {fold}: use 3 folds or more; --fold counts from 0")
    return {"validation": SUBJECTS[(fold + 1) % folds :: folds], "test": SUBJECTS[fold::folds]}


def _samples(session: _Session, starts: range, windows: _StressWindows) -> Iterator[RawSample]:
    window, name_of_person = windows.window_s, _name(session.subject)
    first = {
        name: np.array([round((t - stream.start) * KINDS[name].rate_hz) for t in starts], dtype=np.int64)
        for name, stream in session.streams.items()
    }
    statistics = {
        name: causal_statistics(stream.values, first[name] + window * KINDS[name].rate_hz)
        for name, stream in session.streams.items()
    }
    session_start = min(stream.start for stream in session.streams.values())
    for row, t in enumerate(starts):
        stress = session.labels[t - session.first : t - session.first + window].sum()
        yield RawSample(
            split=split_of(session.subject, windows.splits),
            key=f"{name_of_person}-{t - session.first:05d}",
            label=int(2 * stress > window),
            subject=name_of_person,
            recording=name_of_person,
            start_s=t - session_start,
            duration_s=float(window),
            values={
                name: stream.values[first[name][row] : first[name][row] + window * KINDS[name].rate_hz]
                for name, stream in session.streams.items()
            },
            statistics={name: statistics[name][row] for name in session.streams},
        )


def _recording(session: _Session, splits: Splits) -> RawRecording:
    """The complete session. Its time 0 is the first second with labels and all streams."""
    begin, end = session.span()
    labels = session.labels[begin - session.first : end - session.first]
    edges = [0, *(np.flatnonzero(np.diff(labels)) + 1).tolist(), len(labels)]
    name = _name(session.subject)
    return RawRecording(
        key=name,
        values={kind: stream.values for kind, stream in session.streams.items()},
        labels=[(first, last, int(labels[first])) for first, last in pairwise(edges)],
        start_s={kind: stream.start - begin for kind, stream in session.streams.items()},
        length_s=float(end - begin),
        subject=name,
        split=split_of(session.subject, splits),
    )


def _name(subject: int) -> str:
    return f"S{subject:02d}"


def _role(path: PurePosixPath) -> tuple[int, str] | None:
    """Role of a file `SXX/EDA.csv`: (subject, modality); or the labels."""
    if path.name == LABELS:
        return _LABELS
    folder = re.fullmatch(r"S(\d+)", path.parent.name, re.ASCII)
    modality = path.stem.lower()
    return (int(folder[1]), modality) if folder and path.suffix.lower() == ".csv" and modality in KINDS else None


def _people(files: SourceFiles, windows: _StressWindows) -> tuple[list[_Person], list[str], list[str]]:
    """The people with labels and data, warnings and notes."""
    found = files.find(_role)
    labels = _read_labels(files, found.pop(_LABELS, None))
    streams: dict[int, dict[str, SourceFile]] = {}
    for (subject, kind), file in found.items():
        streams.setdefault(subject, {})[kind] = file
    with_labels = {subject: streams[subject] for subject in sorted(streams.keys() & labels.keys())}
    if not with_labels:
        raise files.error("no SXX/ACC.csv; the source is the folder or archive that holds Raw_data")
    missing = [f"{_name(s)}/{kind.upper()}.csv" for s, has in with_labels.items() for kind in KINDS if kind not in has]
    if missing:
        raise files.error(missing_text(missing))
    parts = [
        _Person(subject, {kind: has[kind] for kind in KINDS}, *labels[subject], windows)
        for subject, has in with_labels.items()
    ]
    warnings = files.warnings()
    absent = [_name(subject) for subject in sorted(labels.keys() - streams.keys())]
    if absent:
        warnings.append(f"people with labels but without data, left out ({len(absent)}): {join_names(absent)}")
    unlabelled = streams.keys() - labels.keys()
    others = [_name(subject) for subject in sorted(unlabelled - {UNLABELLED})]
    if others:
        warnings.append(f"people with data but without labels, left out ({len(others)}): {join_names(others)}")
    notes = [f"{_name(UNLABELLED)} has no labels, as published, and is left out"] if UNLABELLED in unlabelled else []
    return parts, warnings, notes


def _check_together(session: _Session, names: dict[str, str]) -> None:
    """Raise `DataError` if the streams of a person are not from one recording, or one of them is incomplete."""
    for verb, edges in {
        "starts": {modality: stream.start for modality, stream in session.streams.items()},
        "ends": {modality: stream.end(KINDS[modality].rate_hz) for modality, stream in session.streams.items()},
    }.items():
        usual = float(np.median(list(edges.values())))
        odd = max(edges, key=lambda modality: abs(edges[modality] - usual))
        late = edges[odd] - usual
        if abs(late) > APART_S:
            raise DataError(
                f"{names[odd]}: it {verb} {abs(late):.0f} s {'after' if late > 0 else 'before'} other "
                f"streams of {_name(session.subject)}: it is incomplete or of another recording; fetch it again"
            )


def _read_labels(files: SourceFiles, file: SourceFile | None) -> dict[int, tuple[int, np.ndarray]]:
    """First second, and the label of each second, for each participant."""
    if file is None:
        raise files.error(f"{LABELS} is missing; the source is what holds Raw_data and Processed_data")
    name, content = file.name, file.read(files.remarks)
    rows = table(name, content, 3, delimiter=",", skiprows=1, usecols=(0, 3, 4))
    sessions = {}
    for subject in np.unique(rows[:, 0]).tolist():
        seconds, values = rows[rows[:, 0] == subject, 1], rows[rows[:, 0] == subject, 2]
        if subject % 1 or seconds[0] % 1 or (np.diff(seconds) != 1).any() or not np.isin(values, (0, 1)).all():
            raise DataError(f"{name}: participant {subject:g} needs one label, 0 or 1, for every second in turn")
        sessions[int(subject)] = int(seconds[0]), values.astype(np.int8)
    return sessions


def _read_stream(name: str, content: bytes, modality: str) -> _Stream:
    kind = KINDS[modality]
    rows = table(name, content, kind.variates, delimiter=",")
    if len(rows) < 3:
        raise DataError(f"{name}: {len(rows)} rows, so no sample; fetch it again")
    if (rows[1] != kind.rate_hz).any() or (rows[0] != rows[0, 0]).any():
        raise DataError(f"{name}: the first rows are not a start time and a rate of {kind.rate_hz} Hz; fetch it again")
    return _Stream(float(rows[0, 0]), rows[2:] * kind.scale)
