"""Sets of the UEA archive (classes) and the TSER archive (regression): `NAME_TRAIN.ts` and `NAME_TEST.ts`.

The archive gives training and test series, no people and no rates: `--rate` says the rate. The validation split is
ours: a share of the training series (of each class), drawn with a seed. Tested on the original files of BasicMotions;
the regression on written files only.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from maestro_dist import rng
from maestro_dist.config.windows import WindowConfig
from maestro_dist.data.converters.files import AnySource, SourceFile, SourceFiles, missing_text
from maestro_dist.data.converters.source import Conversion, Converter, add_form, as_recordings
from maestro_dist.data.converters.ts_file import TsFile, read_ts
from maestro_dist.data.description import Description
from maestro_dist.data.parts import Remarks, join_names
from maestro_dist.data.recordings.raw import RawRecording
from maestro_dist.data.sample_checks import RawSample
from maestro_dist.errors import ConfigError, DataError
from maestro_dist.types import Modality

LICENCE = "see timeseriesclassification.com and the origin of the set"
CITATION = (
    "Bagnall A, Dau H A, Lines J, Flynn M, Large J, Bostrom A, Southam P, Keogh E. The UEA multivariate time series "
    "classification archive, 2018. arXiv 1811.00075."
)
TSER_CITATION = (
    "Tan C W, Bergmeir C, Petitjean F, Webb G I. Time series extrinsic regression. Data Mining and Knowledge Discovery "
    "2021;35:1032-1060."
)
SHARE, RATE_HZ = 0.2, 1.0
_MOST_MODALITIES = 64
_FILE = re.compile(r"(.+)_(TRAIN|TEST)\.ts", re.IGNORECASE)
_GROUP = re.compile(r"([a-z0-9_]{1,40})=(\d{1,6})(?:-(\d{1,6}))?", re.ASCII)

Groups = dict[str, slice]
"""Dimensions of each modality, in the order of the file."""


@dataclass(frozen=True)
class _SeriesForm:
    """How series are packed. `share` of the training series of each class, drawn with `seed`, are for validation."""

    groups: Groups
    rate_hz: float
    share: float
    seed: int
    form: str


@dataclass(frozen=True)
class _SeriesFile:
    """The series of one file, in its order. `split`: train or test. `steps`: their length; None: they differ.
    `classes`: None for regression."""

    split: str
    file: SourceFile
    steps: int | None
    dimensions: int
    classes: tuple[str, ...] | None
    settings: _SeriesForm

    @property
    def name(self) -> str:
        """Its name for messages."""
        return self.split

    def samples(self, remarks: Remarks) -> Iterator[RawSample | RawRecording]:
        """See `Part.samples`."""
        ts = read_ts(self.file.name, self.file.read(remarks))
        splits = self._splits(ts)
        about = self.settings
        for number, row in enumerate(ts.rows):
            array, label = ts.series(row)
            _check_shape(ts, row, array.shape, self.steps, self.dimensions)
            if np.isnan(array).all():
                remarks.warn("series without any value, left out", f"line {row[0]} of {ts.name}")
                continue
            key = f"{self.split}-{number:06d}"
            values = {name: array[:, columns] for name, columns in about.groups.items()}
            if about.form == "recordings":
                yield RawRecording(key, values, label, split=splits[number])
                continue
            yield RawSample(
                split=splits[number],
                key=key,
                label=label if self.classes is None else self.classes.index(str(label)),
                subject="",
                recording=key,
                start_s=0.0,
                duration_s=len(array) / about.rate_hz,
                values=values,
            )

    def _splits(self, ts: TsFile) -> list[str]:
        """The split of each series."""
        splits = [self.split] * len(ts.rows)
        if self.split == "test":
            return splits
        texts = [row[1].rpartition(":")[2].strip() for row in ts.rows]
        labels = np.array(texts if self.classes is not None else ["" for _ in texts])  # numbers make no groups
        key = rng.key(self.settings.seed, "uea validation")
        order = rng.bits_np(key, np.arange(len(labels), dtype=np.int64))
        for label in np.unique(labels):
            members = np.flatnonzero(labels == label)
            count = round(self.settings.share * len(members))
            if self.settings.share and len(members) > 1:  # both splits get one of each class
                count = min(max(count, 1), len(members) - 1)
            for member in members[np.argsort(order[members], kind="stable")[:count]].tolist():
                splits[member] = "validation"
        return splits


class Uea(Converter):
    """Series of the UEA or TSER archive: one class or number each, with given training and test series."""

    name = "uea"
    reads = "UEA and TSER archives: NAME_TRAIN.ts and NAME_TEST.ts; series with one class or number each"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Options of the set, its rate, its modalities and the validation split."""
        add_form(parser)
        parser.add_argument("--problem", metavar="NAME", help="which set, if the source holds several")
        parser.add_argument(
            "--rate",
            type=float,
            default=RATE_HZ,
            metavar="HZ",
            help="steps per second, which the files do not say (default 1)",
        )
        parser.add_argument(
            "--groups",
            metavar="NAME=FIRST-LAST,...",
            help="modalities of several dimensions, such as acc=1-3,gyro=4-6 (default: one for each dimension)",
        )
        parser.add_argument(
            "--validation",
            type=float,
            default=SHARE,
            metavar="SHARE",
            help=f"share of the training series of each class that are for validation (default {SHARE})",
        )
        parser.add_argument("--seed", type=int, default=0, help="seed of the choice of these series (default 0)")

    def from_arguments(self, source: AnySource, arguments: argparse.Namespace) -> Conversion:
        """See `Converter.from_arguments`.

        Raises:
            ConfigError: an option has a wrong value, or the series differ in length and windows are wanted.
            DataError: a file is missing or damaged, or the two files do not fit each other.
        """
        if arguments.splits:
            raise ConfigError("--splits: the archive gives training and test series; --validation sets the rest")
        rate_hz, share = arguments.rate, arguments.validation
        if not 0 < rate_hz < 1e9:
            raise ConfigError(f"--rate {rate_hz:g}: it is a positive number of steps per second")
        if not 0 <= share < 1:
            raise ConfigError(f"--validation {share:g}: it is a share from 0 to below 1")
        files = SourceFiles(source)
        found = _files(files, arguments.problem)
        read = {split: read_ts(file.name, file.read(files.remarks)) for split, file in found.items()}
        shortest, steps, dimensions = _shapes(read)
        if shortest != steps and arguments.form == "windows":
            raise ConfigError(
                f"--form windows: the series of {read['train'].name} have {shortest:,} to {steps:,} steps; use --form "
                "recordings, which makes one window of each, with a gap after its end"
            )
        groups = _groups(arguments.groups, dimensions)
        settings = _SeriesForm(groups, rate_hz, share, arguments.seed, arguments.form)
        equal = steps if shortest == steps else None
        header = read["train"].header
        parts = [_SeriesFile(split, file, equal, dimensions, header.classes, settings) for split, file in found.items()]
        window_s = steps / rate_hz
        regression = header.classes is None
        description = Description(
            name=f"{'tser' if regression else 'uea'}_{header.problem}",
            licence=LICENCE,
            citation=TSER_CITATION if regression else CITATION,
            source="tseregression.org" if regression else "timeseriesclassification.com, UEA multivariate archive",
            task="regression" if regression else "classification",
            classes=header.classes or (),
            target="number of the series" if regression else "class of the series",
            window_s=window_s,
            modalities=tuple(
                Modality(name, columns.stop - columns.start, rate_hz, steps, "as published")
                for name, columns in groups.items()
            ),
        )
        conversion = Conversion(description, parts, files.listing(), warnings=tuple(files.warnings()))
        if arguments.form == "windows":
            return conversion
        return as_recordings(conversion, WindowConfig(length_s=window_s))


def _files(files: SourceFiles, problem: str | None) -> dict[str, SourceFile]:
    """The training and test file of one set."""

    def role(path: PurePosixPath) -> tuple[str, str] | None:
        match = _FILE.fullmatch(path.name)
        return (match[1], match[2].lower()) if match else None

    found = files.find(role)
    names = sorted({name for name, _ in found})
    if not names:
        raise files.error("no NAME_TRAIN.ts; the source is the folder or archive that holds the .ts files of a set")
    if problem is None and len(names) > 1:
        raise ConfigError(f"--problem: the source holds {len(names)} sets; name one of {join_names(names)}")
    name = names[0] if problem is None else problem
    if name not in names:
        raise ConfigError(f"--problem {name}: the source holds {join_names(names)}")
    missing = [f"{name}_{split.upper()}.ts" for split in ("train", "test") if (name, split) not in found]
    if missing:
        raise files.error(missing_text(missing))
    return {split: found[name, split] for split in ("train", "test")}


def _shapes(read: dict[str, TsFile]) -> tuple[int, int, int]:
    """Fewest and most steps of a series, and the number of dimensions; the files must fit each other."""
    train, test = read["train"], read["test"]
    for what, one, other in (
        ("@problemName", train.header.problem, test.header.problem),
        ("@targetLabel", train.header.classes is None, test.header.classes is None),
        ("@classLabel", sorted(train.header.classes or ()), sorted(test.header.classes or ())),
        ("@dimensions", train.header.dimensions, test.header.dimensions),
    ):
        if one != other:
            raise DataError(f"{test.name}: {what} differs from that of {train.name}; fetch both again")
    dimensions = train.header.dimensions or train.shape(train.rows[0])[1]
    lengths = []
    for ts in read.values():
        shapes = {ts.shape(row): row for row in reversed(ts.rows)}
        for (steps, columns), row in shapes.items():
            _check_shape(ts, row, (steps, columns), ts.header.steps, dimensions)
            lengths.append(steps)
    return min(lengths), max(lengths), dimensions


def _check_shape(ts: TsFile, row: tuple[int, str], shape: tuple[int, ...], steps: int | None, dimensions: int) -> None:
    if shape[1] != dimensions:
        raise DataError(f"{ts.name}: line {row[0]} has {shape[1]} dimensions instead of {dimensions}; fetch it again")
    if steps is not None and shape[0] != steps:
        raise DataError(f"{ts.name}: line {row[0]} has {shape[0]} steps instead of {steps}; fetch it again")


def _groups(text: str | None, dimensions: int) -> Groups:
    """The dimensions of each modality; all dimensions belong to one."""
    if text is None:
        if dimensions > _MOST_MODALITIES:
            raise ConfigError(
                f"--groups: {dimensions:,} dimensions would be as many modalities ({_MOST_MODALITIES} are the most); "
                f"join some, for instance --groups all=1-{dimensions}"
            )
        width = len(str(dimensions))
        return {f"dim_{number + 1:0{width}d}": slice(number, number + 1) for number in range(dimensions)}
    groups: Groups = {}
    last = 0
    for item in text.split(","):
        match = _GROUP.fullmatch(item.strip())
        first, end = (int(match[2]), int(match[3] or match[2])) if match else (0, 0)
        if match is None or match[1] in groups or first != last + 1 or end < first:
            raise ConfigError(
                f"--groups {item}: write NAME=FIRST-LAST, with dimensions in turn from 1, such as acc=1-3,gyro=4-6"
            )
        groups[match[1]] = slice(first - 1, end)
        last = end
    if last != dimensions:
        raise ConfigError(f"--groups {text}: it ends at dimension {last}, but the series have {dimensions}")
    return groups
