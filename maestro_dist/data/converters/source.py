"""The base class of converters, and their shared functions: tables of numbers, splits by subject."""

from __future__ import annotations

import argparse
import io
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from maestro_dist.config.windows import WindowConfig
from maestro_dist.data.converters.files import AnySource, SourceFiles
from maestro_dist.data.description import Description
from maestro_dist.data.parts import Part, Remarks, join_names
from maestro_dist.data.recordings.raw import SPLIT as RECORDINGS_SPLIT
from maestro_dist.data.recordings.raw import RawRecording
from maestro_dist.data.sample_checks import RawSample
from maestro_dist.errors import ConfigError, DataError


def counted(counts: Mapping[str, int]) -> list[str]:
    """One line for each count of `Remarks`."""
    return [f"{count:,} {text}" for text, count in sorted(counts.items()) if count]


@dataclass(frozen=True)
class Conversion:
    """A data set that is ready to be packed.

    parts     its parts; no file of theirs has been read yet
    listing   differs where other files were found (`SourceFiles.listing`)
    splits    names of the splits in the manifest, in this order
    people    numbers of the people in the parts
    warnings  one line each: missing or unusable files
    notes     makes, from the counts of all parts, one line each: data that was found, or is omitted on purpose
    """

    description: Description
    parts: Sequence[Part]
    listing: str = ""
    splits: tuple[str, ...] = ("train", "validation", "test")
    people: frozenset[int] = frozenset()
    warnings: tuple[str, ...] = ()
    notes: Callable[[Mapping[str, int]], list[str]] = counted

    def samples(self, remarks: Remarks | None = None) -> Iterator[RawSample | RawRecording]:
        """All samples or recordings, part by part."""
        remarks = Remarks() if remarks is None else remarks
        return (sample for part in self.parts for sample in part.samples(remarks))


class Converter(ABC):
    """Reads the raw files of one data set.

    A new converter is a subclass in a file of this folder; `CONVERTERS` then contains it under its `name`.

    name   its name for `tools/pack_dataset.py` and `data.source.converter`
    reads  one line for `--help`: the data set, its files and their content
    """

    name: ClassVar[str]
    reads: ClassVar[str]

    @abstractmethod
    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the options that only this data set has."""

    @abstractmethod
    def from_arguments(self, source: AnySource, arguments: argparse.Namespace) -> Conversion:
        """Find the files of `source`, and say which parts they make, as the options say.

        What is large is read by the parts, each in a process of its own: here only names, labels and the like.

        `arguments` has the options of `add_arguments`, and `splits`: the texts of `--splits`, or None.

        Raises:
            ConfigError: an option has a wrong value.
            DataError: a file is missing, or damaged.
        """


_PREPARED = ("PTdict_list.npy", "arr_outcomes.npy")  # of P12 and PAM in the download of Raindrop

Splits = Mapping[str, Collection[int]]  # split -> numbers of its subjects; all other subjects are for training


def table(name: str, content: bytes, columns: int, *, gaps: bool = False, **options: Any) -> np.ndarray:
    """Numbers of a text file as float64 [rows, columns]; `options` are passed to `numpy.loadtxt`.

    `gaps`: NaN is allowed, for a missing value.

    Raises:
        DataError: the file is empty, has another number of columns, or a value that is not a finite number.
    """
    try:
        if len(content.strip().splitlines()) <= options.get("skiprows", 0):
            raise ValueError("it is empty")
        numbers = np.loadtxt(io.BytesIO(content), ndmin=2, **options)
    except ValueError as error:
        raise DataError(f"{name}: not a table of numbers ({error}); fetch it again") from error
    if numbers.shape[1] != columns:
        raise DataError(f"{name}: {numbers.shape[1]} columns instead of {columns}; fetch it again")
    allowed = ~np.isinf(numbers) if gaps else np.isfinite(numbers)
    if not allowed.all():
        raise DataError(f"{name}: row {int(np.argmin(allowed.all(axis=1))) + 1} is not finite")
    return numbers


def instead(files: SourceFiles, original: str) -> str:
    """What to add to the error that the files of a data set are missing, where the source has them as prepared by the
    benchmarks of Raindrop; else "". `original`: where the files are."""
    prepared = files.find(lambda path: path.name if path.name in _PREPARED else None)
    if not prepared:
        return ""
    name = next(iter(prepared.values())).name
    return (
        f"; {name} is of the arrays prepared for Raindrop, which do not say whose windows they are and partly are "
        f"pickles: they are not read, fetch the files of {original}"
    )


def split_of(subject: int, splits: Splits) -> str:
    """The split whose list contains the subject, else train."""
    return next((split for split, subjects in splits.items() if subject in subjects), "train")


FORMS = ("windows", "recordings")


def add_form(parser: argparse.ArgumentParser) -> None:
    """Add the option that says what is packed."""
    parser.add_argument(
        "--form",
        choices=FORMS,
        default=FORMS[0],
        help="pack windows, or whole recordings, which a run cuts by data.window (by default into these windows)",
    )


def as_recordings(conversion: Conversion, window: WindowConfig) -> Conversion:
    """The same conversion for parts that make recordings. `window`: how a run cuts them by default."""
    description = replace(conversion.description, window=window)
    return replace(conversion, description=description, splits=(RECORDINGS_SPLIT,))


def warn_of_unknown_people(conversion: Conversion, splits: Splits) -> Conversion:
    """The conversion, with a warning where `splits` name people who are not in the source."""
    unknown = sorted({person for people in splits.values() for person in people} - conversion.people)
    if not unknown:
        return conversion
    warning = f"--splits names people without any sample ({len(unknown)}): {join_names(list(map(str, unknown)))}"
    return replace(conversion, warnings=(*conversion.warnings, warning))


def parse_splits(items: Sequence[str]) -> dict[str, set[int]]:
    """`["validation=1,3", "test=S02,S04"]` as subject numbers by split.

    Raises:
        ConfigError: wrong form, an unknown split, or a subject in two splits.
    """
    splits: dict[str, set[int]] = {}
    for item in items:
        match = re.fullmatch(r"(validation|test)=S?(\d+(?:,S?\d+)*)", item)
        if match is None:
            raise ConfigError(f"--splits {item}: write validation=1,3,5 or test=2,4 (all others are for training)")
        subjects = {int(number) for number in match[2].replace("S", "").split(",")}
        if match[1] in splits or any(subjects & others for others in splits.values()):
            raise ConfigError(f"--splits {item}: a split or a subject is named twice")
        splits[match[1]] = subjects
    return splits
