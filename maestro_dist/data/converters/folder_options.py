"""Options that converters of a folder of recordings share: which of them, whose they are, their labels, the windows."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import import_module
from pathlib import PurePosixPath
from types import ModuleType
from typing import Any

from maestro_dist.config.windows import WindowConfig
from maestro_dist.data.converters.label_table import LabelTable, RecordLabels, read_label_table
from maestro_dist.data.description import Kind
from maestro_dist.data.parts import join_names
from maestro_dist.errors import ConfigError, DataError

Labels = str | float | tuple[tuple[float, float, Any], ...]
"""One label of a recording, or intervals (start_s, end_s, label)."""
NO_LABELS: tuple[Kind, tuple[str, ...], dict[str, Labels]] = ("none", (), {})
SUBJECTS = ("folder", "first", "record", "none")


@dataclass(frozen=True)
class RecordingNames:
    """Whose recordings they are and in which split, by recording; "" where it is not known."""

    subject: Mapping[str, str]
    split: Mapping[str, str]


def add_folder_options(parser: argparse.ArgumentParser, *, window_s: float, subjects: Sequence[str] = SUBJECTS) -> None:
    """Add the options. `window_s`: the default length of a window; `subjects`: the choices of `--subject`."""
    parser.add_argument(
        "--labels",
        metavar="CSV",
        help="table with record, label (of all of it) or record, start_s, end_s, label; it may have subject and split",
    )
    parser.add_argument(
        "--task",
        choices=("classification", "regression"),
        default="classification",
        help="labels are names of classes (default), or numbers",
    )
    parser.add_argument(
        "--records", metavar="GLOB", help="only recordings whose path or name fits, such as 'p1*'; '!p1*': only others"
    )
    parser.add_argument(
        "--subject",
        choices=subjects,
        default=SUBJECTS[0],
        help="who the person of a recording is: the folder that holds it (default), the first folder of its path, the "
        "recording itself, or unknown; a column subject of --labels goes before",
    )
    parser.add_argument(
        "--person",
        metavar="REGEX",
        help="the person is what the parentheses match in the path of a recording ('SC4(..)'); instead of --subject",
    )
    parser.add_argument(
        "--window", type=float, default=window_s, metavar="S", help=f"seconds of a window (default {window_s:g})"
    )
    parser.add_argument("--stride", type=float, metavar="S", help="seconds between windows (default: no overlap)")
    parser.add_argument("--licence", default="not stated", help="licence of the data, for the manifest")
    parser.add_argument("--citation", default="", help="citation of the data, for the manifest")


def window_of(arguments: argparse.Namespace) -> WindowConfig:
    """How a run cuts the recordings by default.

    Raises:
        ConfigError: a length is not positive, or `--splits` is given.
    """
    if arguments.splits:
        raise ConfigError(
            "--splits: a run divides recordings (data.split.by=subject), or the column split of --labels does"
        )
    stride = arguments.window if arguments.stride is None else arguments.stride
    if not (0 < arguments.window < float("inf") and 0 < stride < float("inf")):
        raise ConfigError(f"--window {arguments.window:g} --stride {stride:g}: both are positive numbers of seconds")
    return WindowConfig(length_s=arguments.window, stride_s=arguments.stride)


def chosen_records(names: Sequence[str], pattern: str | None) -> list[str]:
    """The sorted names that fit `--records`, by their path or its last part; after `!` those that do not fit.

    Raises:
        ConfigError: none is left.
    """
    glob = (pattern or "*").removeprefix("!")
    excluded = glob != (pattern or "*")
    fits = [n for n in sorted(names) if any(fnmatchcase(x, glob) for x in (n, PurePosixPath(n).name)) != excluded]
    if names and not fits:
        raise ConfigError(f"--records {pattern}: no recording fits; there are {join_names(sorted(names), 5)}")
    return fits


def table_of(arguments: argparse.Namespace) -> LabelTable | None:
    """The table of `--labels`; None if it is not given."""
    return read_label_table(arguments.labels) if arguments.labels else None


def names_of(
    names: Sequence[str], arguments: argparse.Namespace, rows: Mapping[str, RecordLabels], wrapper: str = ""
) -> RecordingNames:
    """Person and split of each recording: of the table, else by `--person` or `--subject` from its path.

    wrapper  the first folder of all of them that is no person (`SourceFiles.wrapper`)

    Raises:
        ConfigError: `--person` is no pattern with one pair of parentheses, or a recording does not fit it.
    """
    people, splits = {}, {}
    pattern = _pattern(arguments.person)
    for name in names:
        path, row = PurePosixPath(name), rows.get(name, RecordLabels())
        folders = path.parent.parts[1:] if wrapper else path.parent.parts
        by_rule = {"folder": folders[-1:], "first": folders[:1], "record": (path.name,), "none": ()}
        person = "".join(by_rule.get(arguments.subject, ()))
        if pattern is not None and row.subject is None:
            match = pattern.search(name)
            if match is None or not match[1]:
                raise ConfigError(f"--person {arguments.person}: it does not fit recording {name}")
            person = match[1]
        people[name] = person if row.subject is None else row.subject
        splits[name] = row.split or ""
    return RecordingNames(people, splits)


def _pattern(text: str | None) -> re.Pattern[str] | None:
    if not text:
        return None
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise ConfigError(f"--person {text}: not a regular expression ({error})") from None
    if pattern.groups != 1:
        raise ConfigError(f"--person {text}: put the part that is the person in one pair of parentheses")
    return pattern


def checked_labels(
    labels: Mapping[str, Labels], where: str, arguments: argparse.Namespace
) -> tuple[Kind, tuple[str, ...], dict[str, Labels]]:
    """Task, classes, and the labels by recording: texts, or numbers for `--task regression`. `where` is for messages.

    A table that has no labels at all, only people or splits, makes no task.

    Raises:
        DataError: there are fewer than two classes, or a label is no number.
    """
    texts: list[Any] = []
    for given in labels.values():
        texts += [row[2] for row in given] if isinstance(given, tuple) else [given]
    if not texts and labels and arguments.labels:
        return NO_LABELS
    if arguments.task == "classification":
        return "classification", classes_of(texts, where), dict(labels)
    if not texts:
        raise DataError(f"{where}: no label")
    numbers = {text: _number(text, where) for text in set(texts)}
    return (
        "regression",
        (),
        {
            name: tuple((start, end, numbers[text]) for start, end, text in given)
            if isinstance(given, tuple)
            else numbers[given]
            for name, given in labels.items()
        },
    )


def _number(text: Any, where: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not math.isfinite(number):
        raise DataError(f"{where}: label {text!r} is not a number, which --task regression needs")
    return number


def classes_of(labels: Sequence[str], where: str) -> tuple[str, ...]:
    """The classes of a classification, sorted.

    Raises:
        DataError: there are fewer than two.
    """
    classes = tuple(sorted(set(labels)))
    if len(classes) < 2:
        found = f"only the label {classes[0]!r}" if classes else "no label"
        raise DataError(
            f"{where}: {found}; a classification has two classes or more; leave the labels out to pre-train"
        )
    return classes


def formats_package(name: str) -> ModuleType:
    """A package of the extra `formats`, imported only where it is needed.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise ConfigError(f"{name} is not installed ({error}); pip install 'maestro_dist[formats]'") from None
