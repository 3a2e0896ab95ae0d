"""PPG-DaLiA (UCI data set 495): 15 people with sensors at chest and wrist in daily life; heart rate, or activity.

Source: `SX/SX.pkl`, X of 1 to 15: `signal`, `subject` (see `chest_wrist.py`), `label`, the mean heart rate of windows
of 8 s every 2 s, and `activity` at 4 Hz: 0 between activities, 1 to 8. `EDA`, `EMG` and `Temp` of the chest are not
described by the authors, and are not read; nor are `rpeaks` and `questionnaire`.

Published: windows of 8 s every 2 s (the authors; heart rates are of exactly these windows), and the split below
(MAESTRO). MAESTRO tells 7 activities apart without saying which; here there are the 8 of the authors, and windows of
activities lie inside one of them. The heart rate was computed from the chest's ECG: `--chest all` gives it away.

The data cannot be fetched by a program, so this was tested on generated files of the published layout only.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from maestro_dist.config.windows import WindowConfig
from maestro_dist.data.converters.chest_wrist import (
    Body,
    check_length,
    find_people,
    modalities,
    numbers,
    read_body,
    runs_of,
)
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
from maestro_dist.errors import DataError

PEOPLE = frozenset(range(1, 16))
ACTIVITIES = ("sitting", "stairs", "table_soccer", "cycling", "driving", "lunch", "walking", "working")
SPLITS: Splits = {"validation": {11, 12}, "test": {13, 14, 15}}
WINDOW_S, SHIFT_S = 8, 2
ACTIVITY_HZ = 4
WRIST = ("wrist_acc", "wrist_bvp", "wrist_eda", "wrist_temp")
CHEST = {"acc": ("chest_acc",), "all": ("chest_acc", "chest_ecg", "chest_resp"), "none": ()}
LICENCE = "CC BY 4.0"
CITATION = (
    "Reiss A, Indlekofer I, Schmidt P, Van Laerhoven K. Deep PPG: Large-Scale Heart Rate Estimation with Convolutional "
    "Neural Networks. Sensors 2019;19(14):3079, doi 10.3390/s19143079."
)


@dataclass(frozen=True)
class _DaliaPerson:
    """The recording of one person."""

    person: int
    file: SourceFile
    sensors: tuple[str, ...]
    target: str
    splits: Splits

    @property
    def name(self) -> str:
        """Its name for messages."""
        return f"S{self.person}"

    def samples(self, remarks: Remarks) -> Iterator[RawRecording]:
        """See `Part.samples`."""
        body = read_body(self.file, self.person, self.sensors, remarks)
        labels = (_heart_rates if self.target == "heart_rate" else _activities)(body, remarks)
        if not labels:
            remarks.warn("people without any label, left out", self.name)
            return
        split = split_of(self.person, self.splits)
        yield RawRecording(self.name, body.streams, labels, length_s=body.length_s, subject=self.name, split=split)


class PpgDalia(Converter):
    """Sensors at chest and wrist in daily life: the heart rate, or the activity."""

    name = "ppg_dalia"
    reads = "PPG-DaLiA: SX/SX.pkl; sensors at chest and wrist, heart rate or activity"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Options of target and sensors."""
        parser.add_argument(
            "--target", choices=("heart_rate", "activity"), default="heart_rate", help="default: heart_rate (1/min)"
        )
        parser.add_argument(
            "--chest",
            choices=tuple(CHEST),
            default="acc",
            help="which sensors of the chest; all: also ECG and breathing (default acc)",
        )

    def from_arguments(self, source: AnySource, arguments: argparse.Namespace) -> Conversion:
        """See `Converter.from_arguments`."""
        splits = parse_splits(arguments.splits) if arguments.splits else SPLITS
        files = SourceFiles(source)
        people = find_people(files, PEOPLE)
        names = (*CHEST[arguments.chest], *WRIST)
        parts = [_DaliaPerson(n, file, names, arguments.target, splits) for n, file in people.items()]
        heart_rate = arguments.target == "heart_rate"
        task: dict[str, Any] = {"task": "classification", "classes": ACTIVITIES, "target": "activity"}
        if heart_rate:
            task = {"task": "regression", "classes": (), "target": "heart rate, 1/min"}
        description = Description(
            name=self.name,
            licence=LICENCE,
            citation=CITATION,
            source="UCI Machine Learning Repository, data set 495 (PPG-DaLiA), SX.pkl",
            **task,
            window_s=WINDOW_S,
            modalities=modalities(names, WINDOW_S),
        )
        warnings = files.warnings()
        if heart_rate and "chest_ecg" in names:
            warnings.append("--chest all: the heart rate was computed from chest_ecg, which gives the answer away")
        conversion = Conversion(description, parts, files.listing(), people=frozenset(people))
        window = WindowConfig(length_s=WINDOW_S, stride_s=SHIFT_S, label="center" if heart_rate else "inside")
        conversion = as_recordings(replace(conversion, warnings=tuple(warnings)), window)
        return warn_of_unknown_people(conversion, splits) if arguments.splits else conversion


def _heart_rates(body: Body, remarks: Remarks) -> list[tuple[float, float, float]]:
    """The heart rate of each window, in 1/min, in the middle of it: so windows overlap, and labels do not."""
    rates = numbers(body.name, body.content, "label", 1)[:, 0]
    lasts_s = (len(rates) - 1) * SHIFT_S + WINDOW_S
    usual_s = (body.length_s - WINDOW_S) // SHIFT_S * SHIFT_S + WINDOW_S
    check_length(body.name, "label (8 s every 2 s)", lasts_s, usual_s, remarks)
    if not (rates > 0).all():
        row = int(np.argmin(rates > 0))
        raise DataError(f"{body.name}: label has the heart rate {rates[row]:g} in row {row}; fetch it again")
    middle = np.arange(len(rates)) * SHIFT_S + WINDOW_S / 2
    half = SHIFT_S / 2
    return list(zip((middle - half).tolist(), (middle + half).tolist(), rates.tolist(), strict=True))


def _activities(body: Body, remarks: Remarks) -> list[tuple[float, float, int]]:
    runs = runs_of(body.labels("activity", ACTIVITY_HZ, len(ACTIVITIES), remarks))
    return [(first / ACTIVITY_HZ, end / ACTIVITY_HZ, value - 1) for first, end, value in runs if value]
