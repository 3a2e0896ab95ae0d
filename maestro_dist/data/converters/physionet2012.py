"""PhysioNet/CinC Challenge 2012: 8,000 intensive-care stays, 36 irregular series of 48 hours, survived or died.

Source: one or more of `set-a`, `set-b`, `set-c` (folders or archives), each with its `Outcomes-a.txt` and so on. A set
has one `<RecordID>.txt` for each stay, with rows Time (HH:MM), Parameter, Value. The first rows at 00:00 are
descriptors: RecordID, Age, Gender, Height, ICUType, Weight. A negative number means unknown. Later weights are left
out, so 36 series remain.

set-a is for training and validation, set-b for the test. Without set-b, set-c is the test; else set-c is left out. With
`--division` all sets are divided together, as in the benchmark P12 (see `physionet2012_division.py`).
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from maestro_dist.config.windows import WindowConfig
from maestro_dist.data.converters.files import AnySource, SourceFile, SourceFiles, missing_text
from maestro_dist.data.converters.physionet2012_division import CHALLENGE, FOLDS, divided
from maestro_dist.data.converters.source import Conversion, Converter, add_form, as_recordings, counted, instead
from maestro_dist.data.description import Description
from maestro_dist.data.parts import Remarks
from maestro_dist.data.recordings.raw import RawRecording
from maestro_dist.data.sample_checks import RawSample
from maestro_dist.errors import ConfigError, DataError
from maestro_dist.types import Modality

HOURS = 48
MINUTES_A_STEP = {"hourly": 60, "native": 1}
CLASSES = ("survived", "died")
LICENCE = "Open Data Commons Attribution License v1.0"
CITATION = (
    "Silva I, Moody G, Scott DJ, Celi LA, Mark RG. Predicting In-Hospital Mortality of ICU Patients: The "
    "PhysioNet/Computing in Cardiology Challenge 2012. Computing in Cardiology 2012;39:245-248. "
    "Goldberger A et al. PhysioBank, PhysioToolkit, and PhysioNet. Circulation 2000;101(23):e215-e220."
)
UNITS = {
    "Albumin": "g/dL", "ALP": "IU/L", "ALT": "IU/L", "AST": "IU/L", "Bilirubin": "mg/dL", "BUN": "mg/dL",
    "Cholesterol": "mg/dL", "Creatinine": "mg/dL", "DiasABP": "mmHg", "FiO2": "1", "GCS": "3-15", "Glucose": "mg/dL",
    "HCO3": "mmol/L", "HCT": "%", "HR": "1/min", "K": "mEq/L", "Lactate": "mmol/L", "MAP": "mmHg", "MechVent": "1",
    "Mg": "mmol/L", "Na": "mEq/L", "NIDiasABP": "mmHg", "NIMAP": "mmHg", "NISysABP": "mmHg", "PaCO2": "mmHg",
    "PaO2": "mmHg", "pH": "1", "Platelets": "1/nL", "RespRate": "1/min", "SaO2": "%", "SysABP": "mmHg", "Temp": "degC",
    "TroponinI": "ug/L", "TroponinT": "ug/L", "Urine": "mL", "WBC": "1/nL",
}  # fmt: skip
"""The 36 series and their units; a series is a modality of one variate, named in lower case."""
DESCRIPTORS = ("Age", "Gender", "Height", "Weight", "ICUType")
UNIT_TYPES = 4
STATIC = "static"
"""The modality of values known at admission: age, gender (1: male), height, weight, and the type of the unit, one-hot
(coronary care, cardiac surgery recovery, medical, surgical)."""

_COLUMN = {parameter: column for column, parameter in enumerate(UNITS)}
_FILE = re.compile(r"(?:^|/)(?:set-([abc])/(\d+)|Outcomes-([abc]))\.txt\Z", re.ASCII)
_TIME = re.compile(r"(\d\d):([0-5]\d)")
_STAYS = 100  # of a part
_OBSERVED, _EMPTY = "observed hours of set-", "stays without any series of set-"  # counts of a set
_OUTCOME_COLUMNS = "RecordID,SAPS-I,SOFA,Length_of_stay,Survival,In-hospital_death"


@dataclass(frozen=True)
class _Stay:
    """Observations in the order of the file: series (column of UNITS), minute, value, [n] each; and the descriptors."""

    series: np.ndarray
    minute: np.ndarray
    value: np.ndarray
    static: np.ndarray

    def grid(self, minutes: int) -> tuple[np.ndarray, np.ndarray]:
        """Mean (NaN without observation) and number of observations in each step of `minutes`, [36, steps] each.

        The minute 48:00, the end of the window, belongs to the last step.
        """
        steps = HOURS * 60 // minutes
        cells = self.series * steps + np.minimum(self.minute // minutes, steps - 1)
        count = np.bincount(cells, minlength=len(UNITS) * steps).reshape(-1, steps)
        total = np.bincount(cells, weights=self.value, minlength=len(UNITS) * steps).reshape(-1, steps)
        return np.where(count > 0, total / np.maximum(count, 1), np.nan), count


@dataclass(frozen=True)
class _Group:
    """Consecutive stays of a set, sorted by RecordID.

    stays  RecordID, file, 1 if the person died in hospital, else 0, and the split
    """

    part: str
    stays: tuple[tuple[int, SourceFile, int, str], ...]
    minutes: int
    form: str

    @property
    def name(self) -> str:
        """Its name for messages."""
        return f"set-{self.part} from stay {self.stays[0][0]} on"

    def samples(self, remarks: Remarks) -> Iterator[RawSample | RawRecording]:
        """See `Part.samples`."""
        for record, file, died, split in self.stays:
            stay = _read_stay(file.name, record, file.read(remarks), remarks)
            remarks.count(f"{_OBSERVED}{self.part}", int((stay.grid(60)[1] > 0).sum()))
            remarks.count(f"{_EMPTY}{self.part}", int(not stay.series.size))
            means, _ = stay.grid(self.minutes)
            values = {name.lower(): means[column, :, None] for name, column in _COLUMN.items()}
            observed = {name: grid for name, grid in values.items() if not np.isnan(grid).all()}
            name = str(record)
            values = {**observed, STATIC: stay.static[None]}
            seconds = HOURS * 3600.0
            if self.form == "recordings":
                yield RawRecording(name, values, died, length_s=seconds, subject=name, split=split)
                continue
            yield RawSample(
                split=split,
                key=name,
                label=died,
                subject=name,
                recording=name,
                start_s=0.0,
                duration_s=seconds,
                values=values,
            )


class PhysioNet2012(Converter):
    """Intensive-care stays with 36 irregular series and values known at admission: survived or died in hospital."""

    name = "physionet2012"
    reads = "PhysioNet/CinC Challenge 2012: set-a, set-b, set-c and their Outcomes; stays in intensive care"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Options of the time grid and the fold."""
        add_form(parser)
        parser.add_argument(
            "--times",
            choices=sorted(MINUTES_A_STEP),
            default="hourly",
            help="hourly means, or one step for each minute with gaps",
        )
        parser.add_argument(
            "--fold",
            type=int,
            default=0,
            metavar="K",
            help=f"which of the {FOLDS} folds of set-a is for validation (default 0); the number of a random division",
        )
        parser.add_argument(
            "--division",
            default=CHALLENGE,
            metavar="HOW",
            help="challenge (default): set-a and set-b; random: all sets, 80/10/10; FILE.json: a published one of P12",
        )

    def from_arguments(self, source: AnySource, arguments: argparse.Namespace) -> Conversion:
        """See `Converter.from_arguments`."""
        if arguments.splits:
            raise ConfigError("--splits: set-b is the test split here, and --fold says which fifth of set-a validates")
        return self.convert(
            source, times=arguments.times, fold=arguments.fold, form=arguments.form, division=arguments.division
        )

    def convert(
        self,
        source: AnySource,
        *,
        times: str = "hourly",
        fold: int = 0,
        form: str = "windows",
        division: str = CHALLENGE,
    ) -> Conversion:
        """One sample per stay: 36 series on a grid of hours ("hourly") or minutes ("native"), NaN where not observed.

        set-b (or set-c) is the test split. Stay i of set-a, sorted by RecordID, belongs to the validation split where
        i mod 5 = `fold`, else to the training split. There are no recording statistics: a stay is one window, so they
        would equal the statistics of the window. `form`: one of `FORMS`. `division`: as `--division`.

        Raises:
            DataError: a file is missing or damaged; the message names it and the line.
            ConfigError: no such fold or grid.
        """
        if not 0 <= fold < FOLDS or times not in MINUTES_A_STEP:
            raise ConfigError(f"--fold {fold} --times {times}: folds are 0 to {FOLDS - 1}, times hourly or native")
        minutes, files = MINUTES_A_STEP[times], SourceFiles(source)
        texts, died, warnings = _read(files, all_sets=division != CHALLENGE)
        split_of, remarks = divided({part: sorted(stays) for part, stays in texts.items()}, division, fold)
        warnings += remarks
        steps, seconds = HOURS * 60 // minutes, minutes * 60.0
        static = Modality(
            STATIC, len(DESCRIPTORS) - 1 + UNIT_TYPES, 1 / (HOURS * 3600), 1, "year, male, cm, kg, unit", always=True
        )
        description = Description(
            name="physionet2012",
            licence=LICENCE,
            citation=CITATION,
            source=f"physionet.org/content/challenge-2012/1.0.0, set{'s' if len(texts) > 1 else ''} "
            + " and ".join(texts),
            task="classification",
            classes=CLASSES,
            target="death in hospital",
            window_s=HOURS * 3600.0,
            modalities=(*(Modality(name.lower(), 1, 1 / seconds, steps, unit) for name, unit in UNITS.items()), static),
        )
        parts = []
        for part, stays in texts.items():
            rows = [(r, file, died[part][r], split_of[r]) for r, file in sorted(stays.items()) if r in split_of]
            groups = range(0, len(rows), _STAYS)
            parts += [_Group(part, tuple(rows[start : start + _STAYS]), minutes, form) for start in groups]
        conversion = Conversion(
            description,
            parts,
            files.listing(),
            # without set-a there is no training split; the manifest then has the statistics of the test split
            splits=("train", "validation", "test") if "a" in texts or division != CHALLENGE else ("test",),
            warnings=tuple(warnings),
            notes=lambda counts: _notes(died, counts),
        )
        if form == "windows":
            return conversion
        return as_recordings(conversion, WindowConfig(length_s=HOURS * 3600.0, keep_empty=True))


def _notes(died: dict[str, dict[int, int]], counts: Mapping[str, int]) -> list[str]:
    lines = []
    for part, stays in died.items():
        hours = counts.get(f"{_OBSERVED}{part}", 0) / (len(stays) * len(UNITS) * HOURS)
        lines.append(
            f"set-{part}: {len(stays):,} stays, {sum(stays.values()):,} died, {counts.get(f'{_EMPTY}{part}', 0)} "
            f"without any series; {hours:.2%} of the hours of the {len(UNITS)} series are observed"
        )
    of_sets = (_OBSERVED, _EMPTY)
    return lines + counted({text: count for text, count in counts.items() if not text.startswith(of_sets)})


def _role(path: PurePosixPath) -> tuple[str, int | None] | None:
    """Role of a file: (set, RecordID) of a stay, (set, None) of the outcomes."""
    match = _FILE.search(str(path))
    if match is None:
        return None
    return (match[3], None) if match[3] else (match[1], int(match[2]))


def _read(
    files: SourceFiles, *, all_sets: bool
) -> tuple[dict[str, dict[int, SourceFile]], dict[str, dict[int, int]], list[str]]:
    """Files of the stays that are used, and who died, by set and RecordID; and warnings."""
    texts: dict[str, dict[int, SourceFile]] = {}
    answers: dict[str, SourceFile] = {}
    for (part, record), file in files.find(_role).items():
        if record is None:
            answers[part] = file
        else:
            texts.setdefault(part, {})[record] = file
    if not texts:
        sets = " or ".join(f"set-{part}/RECORD.txt" for part in sorted(answers or "abc"))
        other = instead(files, "the challenge (physionet.org/content/challenge-2012)")
        raise files.error(
            f"no {sets}; the source holds set-a, set-b or set-c (or archives of them) and Outcomes{other}"
        )
    unused = {"c"} if "b" in texts and not all_sets else set()
    used = sorted(texts.keys() - unused)
    outcomes = {
        part: _read_outcomes(answers[part].name, answers[part].read(files.remarks))
        for part in sorted(answers.keys() - unused)
    }
    warnings = files.warnings()
    for part in sorted(texts.keys() & unused):
        warnings.append(f"set-{part}, {len(texts[part]):,} stays, is left out: set-b is the test split; pack it alone")
    for part in sorted(outcomes.keys() - texts.keys()):
        warnings.append(f"Outcomes-{part}.txt names {len(outcomes[part]):,} stays, but there is no set-{part}")
    file_of: dict[int, str] = {}
    for part in used:
        if part not in outcomes:
            raise files.error(f"no Outcomes-{part}.txt, but there is set-{part}; fetch it too")
        for place, missing in (
            (f"set-{part}", outcomes[part].keys() - texts[part].keys()),
            (f"Outcomes-{part}.txt", texts[part].keys() - outcomes[part].keys()),
        ):
            if missing:
                stays = missing_text([f"stay {record}" for record in sorted(missing)], f" in {place}")
                raise files.error(f"{stays}; fetch set-{part} again")
        for record, file in texts[part].items():
            if file_of.setdefault(record, file.name) != file.name:
                raise DataError(
                    f"{file.name}: stay {record} is in another set too, {file_of[record]}; fetch both again"
                )
    return {part: texts[part] for part in used}, {part: outcomes[part] for part in used}, warnings


def _read_stay(name: str, record: int, content: bytes, remarks: Remarks) -> _Stay:
    """A stay from the text of its file."""
    rows = content.decode("utf-8-sig", errors="replace").splitlines()
    if not rows or rows[0].strip() != "Time,Parameter,Value":
        raise DataError(f"{name}, line 1: it is not 'Time,Parameter,Value'; fetch it again")
    descriptors: dict[str, float] = {}
    series: list[int] = []
    minutes: list[int] = []
    values: list[float] = []
    for line, row in enumerate(rows[1:], start=2):
        if not row.strip():
            continue
        try:
            time, parameter, text = row.split(",")
            if not parameter:
                remarks.count("rows without a parameter's name, dropped")
                continue
            minute, value = _minute(time), float(text)
        except ValueError as error:
            raise DataError(f"{name}, line {line}: '{row[:60]}' is not time, parameter, value ({error})") from None
        if not math.isfinite(value):
            raise DataError(f"{name}, line {line}: '{row[:60]}' has no finite value")
        if parameter in _COLUMN:
            if value < 0:
                remarks.count("negative values of series, taken as unknown")
                continue
            series.append(_COLUMN[parameter])
            minutes.append(minute)
            values.append(value)
        elif parameter == "Weight" and (minute or parameter in descriptors):
            remarks.count("weights measured later, left out")
        elif parameter not in ("RecordID", *DESCRIPTORS):
            raise DataError(f"{name}, line {line}: '{row[:60]}': no such parameter")
        elif minute or descriptors.get(parameter, value) != value:
            raise DataError(f"{name}, line {line}: '{row[:60]}': a descriptor after 00:00, or a second value of it")
        else:
            descriptors[parameter] = value
    return _Stay(
        np.array(series, dtype=np.int64),
        np.array(minutes, dtype=np.int64),
        np.array(values, dtype=np.float64),
        _static(name, record, descriptors),
    )


def _minute(time: str) -> int:
    match = _TIME.fullmatch(time)
    minute = int(match[1]) * 60 + int(match[2]) if match else -1
    if not 0 <= minute <= HOURS * 60:
        raise ValueError(f"no time from 00:00 to {HOURS}:00")
    return minute


def _static(name: str, record: int, descriptors: dict[str, float]) -> np.ndarray:
    """Descriptors as float64 [8], NaN where unknown."""
    for descriptor in ("RecordID", *DESCRIPTORS):
        if descriptor not in descriptors:
            raise DataError(f"{name}: no {descriptor} at 00:00; fetch it again")
    if descriptors["RecordID"] != record:
        raise DataError(f"{name}: its RecordID is {descriptors['RecordID']:g}; fetch it again")
    unit = descriptors["ICUType"]
    if unit not in range(1, UNIT_TYPES + 1):
        raise DataError(f"{name}: ICUType {unit:g} is not one of 1 to {UNIT_TYPES}")
    numbers = [descriptors[descriptor] if descriptors[descriptor] >= 0 else math.nan for descriptor in DESCRIPTORS[:-1]]
    return np.array([*numbers, *(float(unit == number) for number in range(1, UNIT_TYPES + 1))])


def _read_outcomes(name: str, content: bytes) -> dict[int, int]:
    """RecordID -> 1 if the person died in hospital, else 0."""
    rows = content.decode("utf-8-sig", errors="replace").splitlines()
    if not rows or rows[0].strip() != _OUTCOME_COLUMNS:
        raise DataError(f"{name}, line 1: its columns are not {_OUTCOME_COLUMNS}; fetch it again")
    died: dict[int, int] = {}
    for line, row in enumerate(rows[1:], start=2):
        if not row.strip():
            continue
        fields = [field.strip() for field in row.split(",")]
        fits = len(fields) == _OUTCOME_COLUMNS.count(",") + 1 and fields[0].isdigit() and fields[-1] in ("0", "1")
        if not fits or int(fields[0]) in died:
            raise DataError(f"{name}, line {line}: '{row[:60]}' is not one outcome, 0 or 1, of a stay not yet named")
        died[int(fields[0])] = int(fields[-1])
    return died
