"""WESAD (UCI data set 465): 15 people with sensors at chest and wrist; baseline, stress or amusement.

Source: `SX/SX.pkl`, X of 2 to 17 without 12: `signal`, `subject` (see `chest_wrist.py`), and `label` at 700 Hz: 0
between conditions, 1 baseline, 2 stress, 3 amusement, 4 meditation, 5 to 7 to be ignored. `SX_E4_Data.zip` and
`SX_respiban.txt` hold the same signals before they were synchronised, and are not read.

Published: windows of 8 s and the split below, both of MAESTRO. Windows lie inside one condition. The literature often
leaves one person out: `data.split.by=subject data.split.test=[S2] data.split.validation=[S3]`.

The data cannot be fetched by a program, so this was tested on generated files of the published layout only.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

from maestro_dist.config.windows import WindowConfig
from maestro_dist.data.converters.chest_wrist import SENSORS, find_people, modalities, read_body, runs_of
from maestro_dist.data.converters.files import AnySource, SourceFile, SourceFiles
from maestro_dist.data.converters.source import (
    Conversion,
    Converter,
    Splits,
    as_recordings,
    parse_splits,
    split_of,
    warn_of_unknown_people,
)
from maestro_dist.data.description import Description
from maestro_dist.data.parts import Remarks
from maestro_dist.data.recordings.raw import RawRecording

PEOPLE = frozenset(range(2, 18)) - {12}
CONDITIONS = ("baseline", "stress", "amusement", "meditation")
SPLITS: Splits = {"validation": {16, 17}, "test": {13, 14, 15}}
WINDOW = WindowConfig(length_s=8, label="inside")
LABEL_HZ, _MOST_LABEL = 700, 7
LICENCE = "CC BY 4.0 (UCI)"
NOTICE = "The authors' page allows scientific, non-commercial use, with credit to them."
CITATION = (
    "Schmidt P, Reiss A, Duerichen R, Marberger C, Van Laerhoven K. Introducing WESAD, a Multimodal Dataset for "
    "Wearable Stress and Affect Detection. ICMI 2018, doi 10.1145/3242969.3242985."
)


@dataclass(frozen=True)
class _WesadPerson:
    """The recording of one person."""

    person: int
    file: SourceFile
    sensors: tuple[str, ...]
    classes: int
    splits: Splits

    @property
    def name(self) -> str:
        """Its name for messages."""
        return f"S{self.person}"

    def samples(self, remarks: Remarks) -> Iterator[RawRecording]:
        """See `Part.samples`."""
        body = read_body(self.file, self.person, self.sensors, remarks)
        runs = runs_of(body.labels("label", LABEL_HZ, _MOST_LABEL, remarks))
        labels = [
            (first / LABEL_HZ, end / LABEL_HZ, value - 1) for first, end, value in runs if 1 <= value <= self.classes
        ]
        if not labels:
            remarks.warn("people without any labelled condition, left out", self.name)
            return
        absent = [
            c for number, c in enumerate(CONDITIONS[: self.classes]) if number not in {label[2] for label in labels}
        ]
        for condition in absent:
            remarks.warn(f"people without the condition {condition}", self.name)
        split = split_of(self.person, self.splits)
        yield RawRecording(self.name, body.streams, labels, length_s=body.length_s, subject=self.name, split=split)


class Wesad(Converter):
    """Sensors at chest and wrist: baseline, stress or amusement."""

    name = "wesad"
    reads = "WESAD: SX/SX.pkl; sensors at chest and wrist, baseline, stress or amusement"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Options of sensors and classes."""
        parser.add_argument(
            "--sensors", choices=("all", "chest", "wrist"), default="all", help="which device (default all)"
        )
        parser.add_argument(
            "--classes", type=int, choices=(3, 4), default=3, help="4: meditation is a class, too (default 3)"
        )

    def from_arguments(self, source: AnySource, arguments: argparse.Namespace) -> Conversion:
        """See `Converter.from_arguments`."""
        splits = parse_splits(arguments.splits) if arguments.splits else SPLITS
        files = SourceFiles(source)
        people = find_people(files, PEOPLE)
        names = tuple(n for n, sensor in SENSORS.items() if arguments.sensors in ("all", sensor.device))
        parts = [_WesadPerson(n, file, names, arguments.classes, splits) for n, file in people.items()]
        description = Description(
            name=self.name,
            licence=LICENCE,
            citation=CITATION,
            source="UCI Machine Learning Repository, data set 465 (WESAD), SX.pkl",
            task="classification",
            classes=CONDITIONS[: arguments.classes],
            target="condition of the study",
            window_s=WINDOW.length_s,
            modalities=modalities(names, WINDOW.length_s),
            notice=NOTICE,
        )
        warnings = tuple(files.warnings())
        conversion = Conversion(description, parts, files.listing(), people=frozenset(people), warnings=warnings)
        conversion = as_recordings(conversion, WINDOW)
        return warn_of_unknown_people(conversion, splits) if arguments.splits else conversion
