"""The layout of a folder of tables: which file and which column is which modality, time, label or person."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Sequence
from typing import Annotated, Literal

import numpy as np
import yaml
from pydantic import AfterValidator, Field, ValidationError, field_validator, model_validator

from maestro_dist.config.sections import NonNegativeInt, PositiveFloat, Section, Text
from maestro_dist.config.windows import WindowConfig
from maestro_dist.config.yaml_text import from_yaml
from maestro_dist.data.storage import ObjectMissing, Storage, redact
from maestro_dist.data.tables.paths import PathPattern
from maestro_dist.errors import ConfigError
from maestro_dist.types import MULTILABEL

TimeUnit = Literal["h", "min", "s", "ms", "us", "ns", "date", "elapsed"]
Grid = Literal["auto", "nearest", "linear", "mean", "last"]


def _is_pattern(text: str) -> str:
    PathPattern.of(text)
    return text


def _as_texts(values: list[str | int | float | bool] | str | int) -> list[str]:
    values = values if isinstance(values, list) else [values]
    return [label_text(value) for value in values]


_BETWEEN = "; "


def joined_texts(texts: Sequence[str | None]) -> str | None:
    """The labels of several targets as one text; None if there is none of them."""
    return _BETWEEN.join(text or "" for text in texts) if any(texts) else None


_WHOLE = re.compile(r"[-+]?[0-9]{1,300}")
_EXACT = 1e18
"""Whole numbers below it are written with all digits, also if they are given as floats."""


def parted_texts(text: str) -> list[str | None]:
    """What `joined_texts` has joined."""
    return [part or None for part in text.split(_BETWEEN)]


def names_as_text(names: Iterable[str]) -> str:
    """A set of labels as one text; an empty one says that none of them holds."""
    return _BETWEEN.join(names)


def names_of_text(text: str) -> list[str]:
    """What `names_as_text` has joined."""
    return [name for name in text.split(_BETWEEN) if name]


def label_text(value: object) -> str:
    """A label as text: 1, 1.0, "1" and "01" are the same. Whole numbers keep all their digits, as codes of diseases."""
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    text = str(value).strip()
    if _WHOLE.fullmatch(text):
        return str(int(text))
    try:
        number = math.nan if "_" in text else float(text)  # Python reads 1_1 as 11
    except ValueError:
        return text
    if number.is_integer() and abs(number) < _EXACT:
        return str(int(number))
    return f"{number:.15g}" if math.isfinite(number) else text


def _number_or_text(value: str | float) -> str | float:
    try:
        return float(value)
    except ValueError:
        return value


class TimeColumn(Section):
    """When the rows of a file were measured."""

    column: Text | Annotated[list[Text], Field(min_length=1)]
    """The column with the time of each row; a list such as [Date, Time] is joined with spaces, as a date."""
    unit: TimeUnit | PositiveFloat = "s"
    """Unit of a number, counted from any moment that all files of a recording share: a name, or seconds (30: it counts
    epochs of 30 s); date: a date with time, or a time of day; elapsed: hours, minutes and seconds since a start, as in
    26:15:00."""
    format: Text | None = None
    """Form of a date, if it is not ISO 8601: "%d.%m.%Y %H:%M:%S", say."""
    zone: Text | None = None
    """Time zone of dates that do not name one, such as Europe/Berlin; needed where clocks change in a recording."""

    @property
    def columns(self) -> list[str]:
        """The columns with the time."""
        return [self.column] if isinstance(self.column, str) else list(self.column)

    @model_validator(mode="after")
    def _parts_are_dates(self) -> TimeColumn:
        if not isinstance(self.column, str) and self.unit != "date":
            raise ValueError("a time in several columns is a date (unit: date)")
        return self


class LongColumns(Section):
    """Rows with one value each, and the name of what was measured."""

    name: Text
    """The column with the name; the columns of modalities are such names."""
    value: Text
    """The column with the value."""


class TableModality(Section):
    """One modality: columns of a file."""

    columns: Annotated[list[Text], Field(min_length=1)]
    """Its columns, in this order; with `long`, the names of its values."""
    rate_hz: PositiveFloat = 1.0
    """Its steps a second. Not needed in a table of facts."""
    unit: str = ""
    """The unit of its values."""
    rows: dict[Text, str] = Field(default_factory=dict)
    """Only the rows that have these texts in these columns: {sensor_id: "2"}. By default all rows."""
    grid: Grid = "auto"
    """How rows are put on steps of 1 / rate_hz. nearest: on the nearest step; linear: interpolated between neighbours
    that are at most 1.5 steps apart; mean, last: the mean or the last of the rows of a step, for irregular times; auto:
    nearest or linear, if times are regular, else an error that says what is wrong."""

    @field_validator("rows", mode="before")
    @classmethod
    def _plain_rows(cls, given: object) -> object:
        return {name: label_text(text) for name, text in given.items()} if isinstance(given, dict) else given


class IntervalColumns(Section):
    """Columns of a file with one label a row."""

    start: Text
    """Start of the label."""
    end: Text | None = None
    """End of the label."""
    duration: Text | None = None
    """How long it lasts, in `unit` (of dates: in seconds), if there is no end. Without both a label lasts until the
    next one, and the last one to the end."""
    unit: TimeUnit = "s"
    """Unit of the times; see the time of signals."""
    format: Text | None = None
    """Form of a date, if it is not ISO 8601."""
    zone: Text | None = None
    """Time zone of dates that do not name one."""


class TableFile(Section):
    """One kind of file: signals (`modalities`), labels over time (`intervals`), or facts about recordings (`facts`)."""

    path: Annotated[Text, AfterValidator(_is_pattern)]
    """Path below the source. `{recording}`, `{subject}`, or another name in braces stands for a part of a name that
    differs; all of them together name the recording. `*` stands for anything."""
    time: TimeColumn | None = None
    """Time of the rows of signals; without it, rows follow each other at `rate_hz`, all files from the same moment."""
    modalities: dict[Text, TableModality] = Field(default_factory=dict)
    """What is measured, by name: up to 40 small letters, digits or _."""
    intervals: IntervalColumns | None = None
    """Labels over time."""
    facts: bool = False
    """One row a recording, or a person: who it is, its label, and `modalities` of one value such as the age."""
    label: Text | list[Text] | None = None
    """The column with the label: of each row, interval or recording. With `targets` a list, one column for each. With
    task: multilabel a column with one name, or several ones (`separator`); or a list of columns that say yes or no,
    whose names are labels."""
    separator: Annotated[str, Field(min_length=1)] | None = None
    """Between several labels in one cell: ";" for walk;phone."""
    marks: dict[str, bool] = Field(default_factory=dict)
    """What cells of several label columns mean, beside 1 and 0, true and false, yes and no, y and n: {x: true}. With
    {"": false} an empty cell means no; else it is not known what holds."""
    recording: Text | list[Text] = Field(default_factory=list)
    """Column (or columns) that names the recording, if the path does not."""
    subject: Text | None = None
    """Column that names the person."""
    group: Text | None = None
    """Column with what else may divide the data, such as the hospital."""
    split: Text | None = None
    """Column with the split: train, validation or test."""
    long: LongColumns | None = None
    """A row has one value and the name of what was measured (time, item, value), not a column for each."""
    restarts: bool = False
    """Whether another recording starts where time goes back, in a file without a column that says so."""
    start_and_rate: bool = False
    """The first row has the start in seconds, the second one the rate (files of Empatica E4); there is no time."""
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] = ","
    """Between two values of a row."""
    decimal: Annotated[str, Field(min_length=1, max_length=1)] = "."
    """Decimal point."""
    thousands: Literal["", ",", ".", " ", "'", "\u00a0", "\u202f", "\u2019"] = ""
    """Between groups of three digits of a number."""
    encoding: Text = "utf-8"
    """Encoding of the text."""
    skip_rows: NonNegativeInt = 0
    """Lines before the header."""
    header: bool = True
    """Whether the first row has the names of the columns; if not they are c1, c2, ..."""
    units_row: bool = False
    """Whether the row below the header has units, and no values."""
    group_row: bool = False
    """Whether the row above the names of columns has names of groups: acc above x and y makes acc_x and acc_y."""
    footer: Text | None = None
    """How the first line below the rows starts, such as Total; it and what follows is not read. It is looked for in
    the last 100 lines."""
    missing: list[Annotated[str | float, AfterValidator(_number_or_text)]] = Field(default_factory=list)
    """Numbers that stand for a missing value, beside empty cells, NA, NaN and null."""

    @property
    def recording_columns(self) -> list[str]:
        """The columns that name the recording."""
        return [self.recording] if isinstance(self.recording, str) else list(self.recording)

    @property
    def label_columns(self) -> list[str]:
        """The column with the label, or those of several targets; empty if there is none."""
        return [self.label] if isinstance(self.label, str) else list(self.label or ())

    @property
    def text_columns(self) -> list[str]:
        """Columns that are text also where they look like numbers: person 007 is not person 7."""
        named = (*self.label_columns, self.subject, self.group, self.split, self.long.name if self.long else None)
        of_rows = [column for modality in self.modalities.values() for column in modality.rows]
        elapsed = self.time is not None and self.time.unit == "elapsed"
        parts = self.time.columns if self.time is not None and (elapsed or len(self.time.columns) > 1) else []
        if self.intervals is not None and self.intervals.unit == "elapsed":
            parts = [column for column in (self.intervals.start, self.intervals.end) if column is not None]
        return [*self.recording_columns, *(name for name in named if name is not None), *parts, *of_rows]

    @property
    def items(self) -> set[str]:
        """Names of values in a long table, which are no columns."""
        return {c for m in self.modalities.values() for c in m.columns} if self.long is not None else set()

    @field_validator("marks", mode="before")
    @classmethod
    def _plain_marks(cls, given: object) -> object:
        return {label_text(text): means for text, means in given.items()} if isinstance(given, dict) else given

    @model_validator(mode="after")
    def _one_kind(self) -> TableFile:
        if self.intervals is not None and (self.modalities or self.facts):
            raise ValueError("a file has modalities, or intervals, or facts")
        if not (self.modalities or self.facts or self.intervals or self.label):
            raise ValueError("name its modalities, intervals, or facts; or leave the file out")
        if self.intervals is not None and not self.label_columns:
            raise ValueError("intervals need the column of the label (label: NAME)")
        if self.facts and not (self.recording_columns or self.subject or PathPattern.of(self.path).names):
            raise ValueError("facts need the column that names the recording or the subject")
        if self.start_and_rate and (self.time is not None or not self.modalities or self.facts):
            raise ValueError("start_and_rate belongs to signals without a column of time")
        if not self.is_signal and any(modality.rows for modality in self.modalities.values()):
            raise ValueError("rows belongs to modalities over time")
        if self.restarts and (self.time is None or not self.is_signal):
            raise ValueError("restarts: true belongs to signals with a column of time")
        if self.separator is not None and not isinstance(self.label, str):
            raise ValueError("separator belongs to a label in one column (label: NAME)")
        if self.group_row and not self.header:
            raise ValueError("group_row belongs to a file with a header")
        if self.decimal == self.thousands:
            raise ValueError(f"decimal and thousands are both {self.decimal!r}")
        return self

    @property
    def is_signal(self) -> bool:
        """Whether its rows are measured values, or labels at a time."""
        return not self.facts and self.intervals is None


class TableLayout(Section):
    """What is in a folder of tables, and how it becomes a data set of recordings."""

    name: Text
    licence: str = ""
    citation: str = ""
    source: str = ""
    task: Literal["classification", "multilabel", "regression", "none"]
    """classification, multilabel (several labels may hold at the same time), regression, or none (for pre-training)."""
    target: str = ""
    """What the label says."""
    targets: list[Text] = Field(default_factory=list)
    """Names of several numbers to predict (regression); then `label` of a file lists their columns, in this order."""
    classes: dict[str, Annotated[list[str], Field(min_length=1)]] = Field(default_factory=dict)
    """The classes in their order, each with the texts (or the columns) that stand for it in the files."""
    ignore: list[str] = Field(default_factory=list)
    """Labels of the files that count as no label. With multilabel they add nothing: none of the others holds there."""
    window: WindowConfig
    """How a run cuts recordings, if it does not say otherwise."""
    files: Annotated[list[TableFile], Field(min_length=1)]

    @model_validator(mode="before")
    @classmethod
    def _plain_classes(cls, given: object) -> object:
        """Classes as a list (each stands for itself) or a mapping; labels that YAML reads as numbers or booleans."""
        if isinstance(given, dict):
            given = dict(given)
            classes = given.get("classes")
            if isinstance(classes, list):
                given["classes"] = {label_text(name): [label_text(name)] for name in classes}
            elif isinstance(classes, dict):
                given["classes"] = {label_text(n): _as_texts(n if t is None else t) for n, t in classes.items()}
            if isinstance(given.get("ignore"), list):
                given["ignore"] = _as_texts(given["ignore"])
        return given

    @model_validator(mode="after")
    def _complete(self) -> TableLayout:
        if (self.task in ("classification", MULTILABEL)) != bool(self.classes):
            raise ValueError("classes belong to task: classification or multilabel, which need them")
        if self.targets and self.task != "regression":
            raise ValueError("targets belong to task: regression")
        for file in self.files:
            wrong = len(file.label_columns) != len(self.targets) if self.targets else isinstance(file.label, list)
            if self.task == MULTILABEL:
                self._check_sets(file)
            elif file.separator is not None or file.marks:
                raise ValueError(f"files: separator and marks of {file.path} belong to task: multilabel")
            elif file.label_columns and wrong:
                wanted = f"has {len(self.targets)} columns, as targets" if self.targets else "is one column"
                raise ValueError(f"files: label of {file.path} {wanted}, not {', '.join(file.label_columns)}")
            if self.targets and "label" in PathPattern.of(file.path).names:
                raise ValueError(f"files: {file.path} has one label, targets need {len(self.targets)}: use columns")
        texts = [text for names in self.classes.values() for text in names] + self.ignore
        again = next((text for text in texts if texts.count(text) > 1), None)
        if again is not None:
            raise ValueError(f"classes, ignore: {again!r} is in two places")
        names = [name for file in self.files for name in file.modalities]
        again = next((name for name in names if names.count(name) > 1), None)
        if again is not None:
            raise ValueError(f"files: two modalities are named {again!r}")
        if not any(file.modalities and not file.facts for file in self.files):
            raise ValueError("files: none has a modality over time")
        placed = [PathPattern.of(f.path).names for f in self.files if f.is_signal]
        other = next((names for names in placed if set(names) != set(placed[0])), None)
        if other is not None:
            ways = f"{_braces(placed[0])} and {_braces(other)}"
            raise ValueError(f"files: paths of signals name recordings in different ways: {ways}")
        return self

    def _check_sets(self, file: TableFile) -> None:
        """Raise `ValueError` if a column of yes and no is no label, or `marks` has no use."""
        known = {text for texts in self.classes.values() for text in texts} | set(self.ignore)
        for column in file.label if isinstance(file.label, list) else ():
            if label_text(column) not in known:
                raise ValueError(
                    f"files: column {column!r} of {file.path} is not in classes ({', '.join(sorted(known))})"
                )
        if set(file.marks) - {""} and not isinstance(file.label, list):
            raise ValueError(f"files: marks of {file.path} belong to columns of yes and no (label: [NAME, ...])")
        if file.marks.get("") is True:
            raise ValueError(f"files: marks of {file.path}: an empty cell may mean no, not yes")


def load_layout(path: str) -> tuple[TableLayout, str]:
    """The layout in a YAML file (or at an fsspec URL), and the SHA-256 of the file.

    Raises:
        ConfigError: it is missing, or has a wrong value; the message names it.
        StorageError: it cannot be read at present.
    """
    try:
        text = Storage(path).read()
    except ObjectMissing:
        raise ConfigError(f"--layout {redact(path)}: no such file; `--infer FILE` writes one for you") from None
    try:
        given = from_yaml(text.decode())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{redact(path)}: not valid YAML: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(given, dict):
        raise ConfigError(f"{redact(path)}: not a layout; `--infer FILE` writes one for you")
    try:
        return TableLayout.model_validate(given), hashlib.sha256(text).hexdigest()
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        text_of = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{redact(path)}: {f'{place}: ' if place else ''}{text_of}") from None


def _braces(names: tuple[str, ...]) -> str:
    return "".join(f"{{{name}}}" for name in names) or "(none)"
