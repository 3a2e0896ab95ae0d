"""MEDS, the Medical Event Data Standard: one recording for each label row, the events of the hours before it.

Source: `data/**/*.parquet` (subject_id, time, code, numeric_value; each person in one file), label files in any other
folder (subject_id, prediction_time, and one of boolean_value, integer_value, float_value, categorical_value), and, if
there is one, `metadata/subject_splits.parquet`. An event at the prediction time itself is used, a later one never.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from maestro_dist.config.windows import WindowConfig
from maestro_dist.data.converters.event_grid import (
    MINUTE_US,
    Reduce,
    add_grid,
    cells_before,
    code_names,
    grid_steps,
    on_grid,
)
from maestro_dist.data.converters.files import AnySource, SourceFile, SourceFiles
from maestro_dist.data.converters.folder_options import classes_of
from maestro_dist.data.converters.meds_files import (
    BIRTH,
    SPLITS,
    LabelRows,
    MedsShard,
    ShardEvents,
    read_labels,
    read_people_splits,
    shard_events,
    shard_facts,
)
from maestro_dist.data.converters.source import Conversion, Converter, as_recordings, counted
from maestro_dist.data.description import Description
from maestro_dist.data.parts import Remarks, join_names
from maestro_dist.data.recordings.raw import RawRecording
from maestro_dist.data.storage import Storage
from maestro_dist.errors import ConfigError, DataError
from maestro_dist.types import Modality

STATIC = "static"
_YEAR_US = 365.25 * 24 * 3600 * 1e6
_NO_YES = ("no", "yes")


@dataclass(frozen=True)
class _EventGrid:
    """How a history becomes values. `names`: the modality of each code; `static`: codes without a time."""

    codes: tuple[str, ...]
    names: tuple[str, ...]
    static: tuple[str, ...]
    age: bool
    steps: int
    cell_us: int
    reduce: Reduce


@dataclass(frozen=True)
class _MedsShard:
    """The label rows of the people of one file of events: (key, person, time, label, split)."""

    name: str
    file: SourceFile
    rows: tuple[tuple[str, int, int, Any, str], ...]
    grid: _EventGrid

    def samples(self, remarks: Remarks) -> Iterator[RawRecording]:
        """See `Part.samples`."""
        grid, people = self.grid, np.unique([row[1] for row in self.rows])
        codes = [*grid.codes, *(code for code in grid.static if code not in grid.codes)]
        codes += [BIRTH] if BIRTH not in codes else []
        events, odd = shard_events(self.file, codes, people)
        for text, count in odd.items():
            remarks.count(text, count)
        length_s = grid.steps * grid.cell_us / 1e6
        for key, person, time_us, label, split in self.rows:
            first, end = np.searchsorted(events.person, [person, person + 1])
            own = ShardEvents(*(getattr(events, name)[first:end] for name in ShardEvents.__dataclass_fields__))
            values = self._series(own, time_us, remarks)
            if grid.static or grid.age:
                values[STATIC] = self._static(own, time_us, codes)[None]
            if all(np.isnan(array).all() for array in values.values()):
                remarks.count("label rows without any observed value, left out")
                continue
            yield RawRecording(key, values, label, length_s=length_s, subject=str(person), split=split)

    def _series(self, own: ShardEvents, time_us: int, remarks: Remarks) -> dict[str, np.ndarray]:
        grid = self.grid
        cells = cells_before(own.time_us, time_us, grid.cell_us, grid.steps)
        inside = own.timed & (cells >= 0) & (cells < grid.steps)
        chosen = np.flatnonzero(inside & (own.column < len(grid.codes)) & ~np.isnan(own.value))
        shape = (len(grid.codes), grid.steps)
        series = on_grid(own.column[chosen], cells[chosen], own.value[chosen], shape, grid.reduce)
        remarks.count("events in the histories", len(chosen))
        return {
            name: series[column, :, None]
            for column, name in enumerate(grid.names)
            if not np.isnan(series[column]).all()
        }

    def _static(self, own: ShardEvents, time_us: int, codes: Sequence[str]) -> np.ndarray:
        """Age in years if there is a birth; then for each static code its number, or 1 where it has none, else 0."""
        grid, found = self.grid, np.zeros(len(self.grid.static) + self.grid.age)
        if grid.age:
            births = own.time_us[own.timed & (own.column == codes.index(BIRTH))]
            found[0] = (time_us - int(births[0])) / _YEAR_US if len(births) and births[0] <= time_us else np.nan
        for column, code in enumerate(grid.static, start=int(grid.age)):
            at = np.flatnonzero(~own.timed & (own.column == codes.index(code)))
            if len(at):
                found[column] = 1.0 if np.isnan(own.value[at[-1]]) else own.value[at[-1]]
        return found


class Meds(Converter):
    """Events of patients in the Medical Event Data Standard: the hours before each label on a grid of time."""

    name = "meds"
    reads = "MEDS: data/**/*.parquet, files of labels, metadata/subject_splits.parquet; events before each label"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Options of labels, codes and the grid."""
        parser.add_argument(
            "--labels", metavar="GLOB", help="which files of the source are the labels, if not all others"
        )
        parser.add_argument(
            "--codes",
            default="40",
            metavar="N|LIST",
            help="the N codes with the most numbers among the training people (default 40), a list A;B;C, or a .txt "
            "file with a code in each line",
        )
        parser.add_argument(
            "--static", type=int, default=10, metavar="N", help="the N most frequent codes without a time (default 10)"
        )
        parser.add_argument(
            "--history_hours", type=float, default=24.0, metavar="H", help="hours before each label (default 24)"
        )
        add_grid(parser)
        parser.add_argument("--licence", default="not stated", help="licence of the data, for the manifest")
        parser.add_argument("--citation", default="", help="citation of the data, for the manifest")

    def from_arguments(self, source: AnySource, arguments: argparse.Namespace) -> Conversion:
        """See `Converter.from_arguments`."""
        if arguments.splits:
            raise ConfigError("--splits: metadata/subject_splits.parquet gives the splits, or data.split.by=subject")
        if arguments.static < 0:
            raise ConfigError(f"--static {arguments.static}: a number from 0")
        steps = grid_steps(arguments.history_hours, arguments.grid_minutes, "--history_hours, --grid_minutes")
        files = SourceFiles(source)
        shards, label_files, splits_file = _sorted_files(files, arguments.labels)
        labels, odd = read_labels(label_files)
        for text, count in odd.items():
            files.remarks.count(text, count)
        splits = _Splits.of_source(shards, splits_file, files.remarks)
        facts = {name: shard_facts(file, splits.counted(name)) for name, file in shards.items()}
        if {about.zone for about in facts.values()} - {None} != {labels.zone}:
            raise DataError("times of events and of labels: some have a time zone, others have none; give all in UTC")
        if not splits.known:
            files.remarks.warn("there are no splits, so codes are counted over all people", files.path)
        grid = _grid(arguments, steps, facts.values(), files)
        window_s, age = arguments.history_hours * 3600.0, int(grid.age)
        unit = ", ".join(["year"] * age + [" ".join(code.split()) for code in grid.static])[:1000]
        static = Modality(STATIC, len(grid.static) + age, 1 / window_s, 1, unit, always=True)
        series = [Modality(name, 1, 1 / (arguments.grid_minutes * 60), 0) for name in grid.names]
        description = Description(
            name="meds",
            licence=arguments.licence,
            citation=arguments.citation,
            source="MEDS",
            task="classification" if labels.kind in ("boolean_value", "categorical_value") else "regression",
            classes=_classes(labels, label_files[0].name),
            target=labels.kind,
            window_s=window_s,
            modalities=(*series, *([static] if static.variates else [])),
        )
        parts = _parts(shards, labels, _owners(shards, facts), splits, grid, files.remarks)
        about = [f"{name} = {code}" for name, code in zip(grid.names, grid.codes, strict=True) if name != code]
        conversion = Conversion(
            description,
            parts,
            files.listing(),
            warnings=tuple(files.warnings()),
            notes=lambda counts: [*counted(files.remarks.counts + Counter(counts)), *about],
        )
        return as_recordings(conversion, WindowConfig(length_s=window_s, keep_empty=True))


@dataclass(frozen=True)
class _Splits:
    """The splits of people: of the file, by person, else of the folders of the files of events, by file."""

    people: Mapping[int, str]
    folders: Mapping[str, str]

    @staticmethod
    def of_source(shards: Mapping[str, SourceFile], file: SourceFile | None, remarks: Remarks) -> _Splits:
        if file is not None:
            return _Splits(read_people_splits(file, remarks), {})
        folders = {name: SPLITS.get(PurePosixPath(name).parent.name, "") for name in shards}
        return _Splits({}, folders if any(folders.values()) else {})

    @property
    def known(self) -> bool:
        return bool(self.people or self.folders)

    def counted(self, shard: str) -> np.ndarray | None:
        """The sorted people of a file whose codes are counted: those for training; None: all of them."""
        if self.people:
            return np.array(sorted(person for person, split in self.people.items() if split == "train"), dtype=np.int64)
        return None if self.folders.get(shard, "train") == "train" else np.empty(0, dtype=np.int64)

    def split(self, person: int, shard: str) -> str:
        return self.people.get(person, "") if self.people else self.folders.get(shard, "")


def _sorted_files(
    files: SourceFiles, pattern: str | None
) -> tuple[dict[str, SourceFile], list[SourceFile], SourceFile | None]:
    """Files of events by path, of labels, and of the splits."""
    found = files.find(lambda path: path.as_posix() if path.suffix == ".parquet" else None)
    shards, labels, splits = {}, [], []
    for path, file in sorted(found.items()):
        folders = PurePosixPath(path).parent.parts
        if "metadata" in folders:
            splits += [file] if PurePosixPath(path).name == "subject_splits.parquet" else []
        elif "data" in folders:
            shards[path] = file
        elif not pattern or fnmatchcase(path, pattern) or fnmatchcase(PurePosixPath(path).name, pattern):
            labels.append(file)
    if not shards:
        raise files.error("no data/**/*.parquet; the source is the folder or archive of a MEDS data set")
    if not labels:
        which = f" that fits --labels {pattern}" if pattern else ""
        raise files.error(f"no file of labels{which}; put it beside data, such as labels/mortality.parquet")
    if len(splits) > 1:
        raise files.error(f"several data sets: {join_names([file.name for file in splits])}; name one as the source")
    return shards, labels, splits[0] if splits else None


def _grid(arguments: argparse.Namespace, steps: int, facts: Iterable[MedsShard], files: SourceFiles) -> _EventGrid:
    numeric, static, births = Counter[str](), Counter[str](), 0
    for about in facts:
        numeric += about.numeric
        static += about.static
        births += about.births
    codes = _codes(arguments.codes, numeric, files)
    names = code_names(codes, taken=[STATIC])
    cell_us = round(arguments.grid_minutes * MINUTE_US)
    in_order = tuple(names[code] for code in codes)
    return _EventGrid(codes, in_order, _most(static, arguments.static), births > 0, steps, cell_us, arguments.cell)


def _most(counts: Counter[str], number: int) -> tuple[str, ...]:
    """The most frequent ones, in the order of their names; of equally frequent ones the first by name."""
    return tuple(sorted(sorted(counts, key=lambda code: (-counts[code], code))[:number]))


def _codes(text: str, numeric: Counter[str], files: SourceFiles) -> tuple[str, ...]:
    if text.isdecimal():
        codes = _most(numeric, int(text))
        if not codes:
            raise files.error(f"--codes {text}: no code has a number at a time among the training people")
        return codes
    if text.endswith(".txt"):
        text = Storage(text).read().decode("utf-8-sig", errors="replace").replace("\n", ";")
    listed = [code.strip() for code in text.split(";") if code.strip()]
    if not listed or len(set(listed)) < len(listed):
        raise ConfigError("--codes: name each code once, A;B;C, or how many")
    unknown = [code for code in listed if not numeric[code]]
    if unknown:
        raise ConfigError(f"--codes: without any number among the training people: {join_names(unknown)}")
    return tuple(listed)


def _classes(labels: LabelRows, where: str) -> tuple[str, ...]:
    if labels.kind == "boolean_value":
        return _NO_YES
    return classes_of(labels.label, where) if labels.kind == "categorical_value" else ()


def _owners(shards: Mapping[str, SourceFile], facts: Mapping[str, MedsShard]) -> dict[int, str]:
    """The file of each person."""
    owner: dict[int, str] = {}
    for name, about in facts.items():
        for person in about.people.tolist():
            if owner.setdefault(person, name) != name:
                others = owner[person]
                raise DataError(f"{shards[name].name}: person {person} is in {others}, too; MEDS has each in one file")
    return owner


def _parts(
    shards: Mapping[str, SourceFile],
    labels: LabelRows,
    owner: Mapping[int, str],
    splits: _Splits,
    grid: _EventGrid,
    remarks: Remarks,
) -> list[_MedsShard]:
    """A part for each file of events that has people with labels. A key is PERSON-NUMBER, by time."""
    rows: dict[str, list[tuple[str, int, int, Any, str]]] = {name: [] for name in shards}
    numbers = Counter[int]()
    for person, time_us, label in zip(labels.person.tolist(), labels.time_us.tolist(), labels.label, strict=True):
        if person not in owner:
            remarks.warn("people with labels but without events, left out", str(person))
            continue
        split = splits.split(person, owner[person])
        if splits.known and not split:
            remarks.warn("people with labels but without a split, in none", str(person))
        plain = int(label) if isinstance(label, bool) else label
        rows[owner[person]].append((f"{person}-{numbers[person]}", person, time_us, plain, split))
        numbers[person] += 1
    parts = [_MedsShard(name, shards[name], tuple(of_shard), grid) for name, of_shard in rows.items() if of_shard]
    if not parts:
        raise DataError("no person of the labels has events; do both belong to one data set?")
    return parts
