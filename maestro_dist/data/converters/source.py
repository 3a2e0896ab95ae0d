"""What converters share: tables of numbers, splits by subject, the result's shape."""

from __future__ import annotations

import argparse
import io
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from maestro_dist.data.converters.files import listed
from maestro_dist.data.pack import Description, RawSample
from maestro_dist.errors import ConfigError, DataError


@dataclass(frozen=True)
class Conversion:
    """A data set ready to be packed: what it is, how many samples there are, and the samples, made one at a time.

    `splits` are those that the manifest will have, in this order; `people` the numbers of those who have samples. A
    line each, for a person to read: `warnings` of what the source should have and has not, or has and cannot be used;
    `notes` of what was found and left out as it should.
    """

    description: Description
    total: int
    samples: Iterator[RawSample]
    splits: tuple[str, ...] = ("train", "validation", "test")
    people: frozenset[int] = frozenset()
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Converter(Protocol):
    """A converter's module as the command line sees it."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the options that only this data set has."""

    def from_arguments(self, source: Path, arguments: argparse.Namespace) -> Conversion:
        """Parse the source as the options say."""


Splits = Mapping[str, Collection[int]]  # split -> numbers of its subjects; every other subject is for training


def table(name: str, content: bytes, columns: int, **options: Any) -> np.ndarray:
    """Numbers of a text file as float64 [rows, columns].

    Raises:
        DataError: empty, not numbers, or another number of columns.
    """
    try:
        if len(content.strip().splitlines()) <= options.get("skiprows", 0):
            raise ValueError("it is empty")
        numbers = np.loadtxt(io.BytesIO(content), ndmin=2, **options)
    except ValueError as error:
        raise DataError(f"{name}: not a table of numbers ({error}); fetch it again") from error
    if numbers.shape[1] != columns:
        raise DataError(f"{name}: {numbers.shape[1]} columns instead of {columns}; fetch it again")
    if not np.isfinite(numbers).all():
        raise DataError(f"{name}: row {int(np.argmin(np.isfinite(numbers).all(axis=1))) + 1} is not finite")
    return numbers


def split_of(subject: int, splits: Splits) -> str:
    """The split that names the subject, else train."""
    return next((split for split, subjects in splits.items() if subject in subjects), "train")


def name_strangers(conversion: Conversion, splits: Splits) -> Conversion:
    """The conversion, with a warning where typed `splits` name people that the source does not have."""
    strangers = sorted({person for people in splits.values() for person in people} - conversion.people)
    if not strangers:
        return conversion
    warning = f"--splits names people without any sample ({len(strangers)}): {listed(list(map(str, strangers)))}"
    return replace(conversion, warnings=(*conversion.warnings, warning))


def parse_splits(items: Sequence[str]) -> dict[str, set[int]]:
    """`["validation=1,3", "test=S02,S04"]` as subject numbers by split.

    Raises:
        ConfigError: not of that form, an unknown split, or a subject in two splits.
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
