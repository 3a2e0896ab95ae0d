"""Several labels at once: columns that say yes or no, and cells with several names. Part of `--infer`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

import numpy as np

from maestro_dist.data.tables.labels import NO, YES
from maestro_dist.data.tables.look_files import Looked
from maestro_dist.data.tables.look_names import LABEL, plain_name
from maestro_dist.data.tables.reading import MISSING

_SURE, _UNSURE = (";", "|"), (",", "+")
"""What divides names in a cell; the latter ones are in names, too."""
_NUMBER = re.compile(r"[-+]?\d*[.,]?\d+")
_OF_LABELS = LABEL | {"activities", "events", "states", "conditions", "symptoms", "behaviors", "behaviours", "tags"}
_EMPTY = {text.lower() for text in MISSING}
_MOST_NAMES = 50


def say_yes_or_no(files: Sequence[Looked], column: str) -> bool:
    """Whether all cells of a column say yes or no, or are empty, and both occur."""
    cells = {text.lower() for file in files for text in file.table.texts(column) if text is not None} - _EMPTY
    return cells <= YES | NO and bool(cells & YES) and bool(cells & NO)


def may_hold_together(files: Sequence[Looked], columns: Sequence[str]) -> bool:
    """Whether two or more columns say yes or no, and not exactly one does in each row, which is one class."""
    if len(columns) < 2 or not all(say_yes_or_no(files, column) for column in columns):
        return False
    for file in files:
        said = [[str(text).lower() in YES for text in file.table.texts(column)] for column in columns]
        if file.rows and (np.array(said).sum(axis=0) != 1).any():
            return True
    return False


def is_named_after_labels(file: Looked) -> bool:
    """Whether the name of a file says that it holds labels."""
    words = plain_name(PurePosixPath(file.path).name.partition(".")[0])[0].split("_")
    return bool(_OF_LABELS & set(words))


def separator_of(texts: Iterable[str]) -> tuple[str, list[str]] | None:
    """What divides several names in a cell, and the names; None if cells have one name each, or it is not sure.

    It is sure where names of such cells occur in other cells, too; all of them, if names may have this mark.
    """
    given = set(texts)
    for mark in (*_SURE, *_UNSURE):
        cells = {text: [name.strip() for name in text.split(mark)] for text in given}
        cells = {text: [name for name in names if name] for text, names in cells.items()}
        several = [names for names in cells.values() if len(names) > 1]
        names = {name for of in cells.values() for name in of}
        if not several or len(names) > _MOST_NAMES or any(len(set(of)) < len(of) for of in several):
            continue
        again = {name for name in names if sum(name in of for of in cells.values()) > 1}
        if mark in _SURE and all(again & set(of) for of in several):
            return mark, sorted(names)
        if all(again >= set(of) for of in several) and not any(_NUMBER.fullmatch(name) for name in names):
            return mark, sorted(names)
    return None


def divided(texts: Iterable[str]) -> str:
    """A cell that may hold several names; empty if there is none."""
    return next((text for text in sorted(texts) if any(mark in text.strip(mark) for mark in _SURE)), "")
