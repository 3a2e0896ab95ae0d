"""What converters share: reading source files from a folder or archive, splits by subject, the result's shape."""

from __future__ import annotations

import argparse
import io
import lzma
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np

from maestro_dist.data.pack import Description, RawSample
from maestro_dist.errors import ConfigError, DataError


@dataclass(frozen=True)
class Conversion:
    """A data set ready to be packed: what it is, how many samples there are, and the samples, made one at a time.

    `notes`: what was found in the source and what was left out of it, a line each, for a person to read.
    """

    description: Description
    total: int
    samples: Iterator[RawSample]
    notes: tuple[str, ...] = ()


class Converter(Protocol):
    """A converter's module as the command line sees it."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the options that only this data set has."""

    def from_arguments(self, source: Path, arguments: argparse.Namespace) -> Conversion:
        """Parse the source as the options say."""


Splits = Mapping[str, Collection[int]]  # split -> numbers of its subjects; every other subject is for training


def members(source: Path, wanted: Callable[[PurePosixPath], bool]) -> Iterator[tuple[str, bytes]]:
    """(name, content) of each wanted file of a folder, of the archives in it, or of one archive.

    Archives are streamed through memory: no member, whatever its name, is ever written to disk; links are passed over.

    Raises:
        DataError: the source is missing or an archive is damaged.
    """
    if source.is_dir():
        for path in sorted(source.rglob("*")):
            if path.is_file() and wanted(PurePosixPath(path.relative_to(source).as_posix())):
                yield str(path), path.read_bytes()
        for path in sorted(source.iterdir()):
            if _is_archive(path):
                yield from _archive(path, wanted)
    elif source.is_file():
        yield from _archive(source, wanted)
    else:
        raise DataError(f"{source}: no such folder or archive; check --source")


def _is_archive(path: Path) -> bool:
    return path.is_file() and (".tar" in path.suffixes or path.suffix in (".tgz", ".zip"))


def _archive(path: Path, wanted: Callable[[PurePosixPath], bool]) -> Iterator[tuple[str, bytes]]:
    try:
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                for entry in archive.infolist():
                    if not entry.is_dir() and wanted(PurePosixPath(entry.filename)):
                        yield f"{path}:{entry.filename}", archive.read(entry)
            return
        with tarfile.open(path, mode="r|*") as tar:
            for info in tar:
                if info.isreg() and wanted(PurePosixPath(info.name)):
                    content = tar.extractfile(info)
                    assert content is not None
                    yield f"{path}:{info.name}", content.read()
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, lzma.LZMAError, zlib.error, OSError, RuntimeError) as error:
        raise DataError(f"{path}: damaged or unreadable archive ({error}); fetch it again") from error


def table(name: str, content: bytes, columns: int, **options: Any) -> np.ndarray:
    """Numbers of a text file as float64 [rows, columns].

    Raises:
        DataError: empty, not numbers, or another number of columns.
    """
    try:
        if not content.strip():
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
