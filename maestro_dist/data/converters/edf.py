"""EDF, EDF+ and BDF files (polysomnography, EEG): each signal at its own rate, annotations as labels.

The annotations of a file are its labels, and those of a file without signals beside it, as in Sleep-EDF:
`SC4001E0-PSG.edf` and `SC4001EC-Hypnogram.edf`, whose names are equal but for the last letter before the hyphen.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from maestro_dist.data.converters.edf_files import EdfFacts, read_facts, read_signals
from maestro_dist.data.converters.files import AnySource, SourceFile, SourceFiles
from maestro_dist.data.converters.folder_options import (
    NO_LABELS,
    SUBJECTS,
    Labels,
    add_folder_options,
    checked_labels,
    chosen_records,
    formats_package,
    names_of,
    table_of,
    window_of,
)
from maestro_dist.data.converters.label_table import Interval
from maestro_dist.data.converters.signals import (
    SignalUse,
    add_modalities,
    parse_modalities,
    plan_signals,
    recording_keys,
    stacked,
)
from maestro_dist.data.converters.source import Conversion, Converter, as_recordings
from maestro_dist.data.description import Description
from maestro_dist.data.parts import Remarks, join_names
from maestro_dist.data.recordings.raw import RawRecording
from maestro_dist.errors import ConfigError, DataError

_PAIR = re.compile(r"(.+).-(PSG|Hypnogram)", re.IGNORECASE)
_SLEEP_EDF = re.compile(r"((?:SC4|ST7)\d\d)\d..-PSG", re.IGNORECASE)  # SC4ssNE0: person ss, night N
_ENDINGS = (".edf", ".bdf")


@dataclass(frozen=True)
class _EdfRecording:
    """One file with signals."""

    name: str
    key: str
    file: SourceFile
    uses: tuple[SignalUse, ...]
    labels: Labels | None
    subject: str
    split: str

    def samples(self, remarks: Remarks) -> Iterator[RawRecording]:
        """See `Part.samples`."""
        wanted = {variate[0] for use in self.uses for variate in use.variates if variate}
        arrays = read_signals(self.file, wanted, remarks)
        values = {use.modality: stacked(use, arrays) for use in self.uses}
        if all(np.isnan(array).all() for array in values.values()):
            remarks.warn("recordings without any observed value, left out", self.name)
            return
        labels = list(self.labels) if isinstance(self.labels, tuple) else self.labels
        yield RawRecording(self.key, values, labels, subject=self.subject, split=self.split)


class Edf(Converter):
    """Any tree of EDF, EDF+, BDF or BDF+ files: each signal at its own rate; labels of a table or of annotations."""

    name = "edf"
    reads = "EDF, EDF+ and BDF files, such as Sleep-EDF: recordings with annotations as labels"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Options of signals, labels, people and windows."""
        add_modalities(parser)
        add_folder_options(parser, window_s=30.0, subjects=(*SUBJECTS, "header"))
        parser.add_argument(
            "--classes",
            metavar="MAP",
            help="annotations that are labels, in the order of the classes: 'Sleep stage W=wake, Sleep stage 1=n1'",
        )

    def from_arguments(self, source: AnySource, arguments: argparse.Namespace) -> Conversion:
        """See `Converter.from_arguments`."""
        window, wanted, table = window_of(arguments), parse_modalities(arguments.modalities), table_of(arguments)
        class_of = _classes(arguments.classes)
        if class_of and table:
            raise ConfigError("--labels and --classes: give one of them")
        formats_package("edfio")
        files = SourceFiles(source)
        found = files.find(lambda path: path.as_posix() if path.suffix.lower() in _ENDINGS else None)
        if not found:
            raise files.error("no EDF file (NAME.edf, NAME.bdf); the source is the folder or archive that holds them")
        by_name = _by_name(found)
        chosen = chosen_records(list(by_name), arguments.records)
        chosen += sorted(_hypnograms(chosen, by_name) - set(chosen))
        facts = {name: read_facts(by_name[name], files.remarks) for name in chosen}
        records = {name: about.signals for name, about in facts.items() if about.signals}
        if not records:
            raise files.error("no EDF file with signals")
        plan = plan_signals(records, wanted)
        used = [name for name in records if plan.uses[name]]
        for name in records.keys() - set(used):
            files.remarks.warn("files without any of the signals of --modalities, left out", name)
        notes = _annotations(used, facts, files.remarks)
        rows, warnings = table.of_records(used, files.wrapper) if table else ({}, [])
        labels: dict[str, Labels] = {
            name: row.whole if row.whole is not None else tuple(row.intervals) for name, row in rows.items()
        }
        if class_of:
            labels |= {name: _intervals(name, notes[name], class_of, files.remarks) for name in used}
        task, classes, labels = (
            checked_labels(labels, arguments.labels, arguments) if table else (*NO_LABELS[:2], labels)
        )
        if class_of:
            task, classes = "classification", tuple(dict.fromkeys(class_of.values()))
            if not any(labels.values()):
                texts = sorted({text for given in notes.values() for _, _, text in given})
                raise DataError(f"--classes: no annotation fits; there are {join_names(texts) or 'none'}")
        names, keys = names_of(used, arguments, rows, files.wrapper), recording_keys(used)
        description = Description(
            name="edf",
            licence=arguments.licence,
            citation=arguments.citation,
            source="EDF files",
            task=task,
            classes=classes,
            target={"none": ""}.get(task, "annotation" if class_of else "label of the table"),
            window_s=window.length_s,
            modalities=plan.modalities,
        )
        people = {
            n: _person(n, names.subject[n], facts[n], arguments)
            for n in used
            if n not in rows or rows[n].subject is None
        }
        people = dict(names.subject) | people
        parts = [
            _EdfRecording(n, keys[n], by_name[n], plan.uses[n], labels.get(n), people[n], names.split[n]) for n in used
        ]
        others = _notes(notes, class_of)
        conversion = Conversion(
            description,
            parts,
            files.listing() + (table.digest if table else ""),
            warnings=(*files.warnings(), *plan.warnings, *warnings),
            notes=lambda counts: others,
        )
        return as_recordings(conversion, window)


def _by_name(found: Mapping[str, SourceFile]) -> dict[str, SourceFile]:
    """The files by path without ending, which is the name of the recording."""
    by_name: dict[str, SourceFile] = {}
    for path, file in found.items():
        other = by_name.setdefault(str(PurePosixPath(path).with_suffix("")), file)
        if other is not file:
            raise DataError(f"{file.name}: {other.name} has the same name but for its ending; rename one of them")
    return by_name


def _classes(text: str | None) -> dict[str, str]:
    """The class of each annotation of `--classes`."""
    found: dict[str, str] = {}
    for item in (text or "").split(","):
        note, sign, name = (part.strip() for part in item.rpartition("="))
        if not item.strip() and not text:
            continue
        if not (sign and note and name) or note in found:
            raise ConfigError(f"--classes {text}: write 'ANNOTATION=CLASS, ANNOTATION=CLASS', each annotation once")
        found[note] = name
    if text and len(set(found.values())) < 2:
        raise ConfigError(f"--classes {text}: a classification has two classes or more")
    return found


def _pair(name: str) -> tuple[str, str] | None:
    """What names of a recording and its annotations have in common, and which of the two this is."""
    match = _PAIR.fullmatch(PurePosixPath(name).name)
    return (str(PurePosixPath(name).with_name(match[1])), match[2].lower()) if match else None


def _hypnograms(names: list[str], by_name: Mapping[str, SourceFile]) -> set[str]:
    """The files of annotations that belong to these files."""
    wanted = {(pair[0], "hypnogram") for name in names if (pair := _pair(name)) and pair[1] == "psg"}
    return {name for name in by_name if _pair(name) in wanted}


def _annotations(
    used: list[str], facts: Mapping[str, EdfFacts], remarks: Remarks
) -> dict[str, list[tuple[float, float | None, str]]]:
    """The annotations of each file with signals, with those of the file beside it, in seconds after its start."""
    notes = {name: list(facts[name].annotations) for name in used}
    of_pair: dict[str, list[str]] = {}
    for name in used:
        if (pair := _pair(name)) and pair[1] == "psg":
            of_pair.setdefault(pair[0], []).append(name)
    for name, about in facts.items():
        if about.signals:
            continue
        pair = _pair(name)
        bases = of_pair.get(pair[0], []) if pair else []
        if len(bases) > 1:
            raise DataError(f"{name}.edf: it has the annotations of {join_names(bases)}; rename the files")
        if not bases:
            remarks.warn("files of annotations without their recording, left out", name)
            continue
        start, own = about.start, facts[bases[0]].start
        if start is None or own is None:
            remarks.warn("annotations without a date, taken to begin with their recording", name)
        later = 0.0 if start is None or own is None else (start - own).total_seconds()
        notes[bases[0]] += [(onset + later, duration, text) for onset, duration, text in about.annotations]
    return notes


def _intervals(
    name: str, notes: list[tuple[float, float | None, str]], class_of: Mapping[str, str], remarks: Remarks
) -> tuple[Interval, ...]:
    rows = [(onset, duration, class_of[text]) for onset, duration, text in notes if text in class_of]
    if not rows:
        remarks.warn("files without annotations of --classes, without labels", name)
    if any(not duration or duration < 0 for _, duration, _ in rows):
        remarks.warn("files with annotations of --classes that have no duration, which are left out", name)
    return tuple((onset, onset + duration, label) for onset, duration, label in rows if duration and duration > 0)


def _notes(notes: Mapping[str, list[tuple[float, float | None, str]]], class_of: Mapping[str, str]) -> list[str]:
    """Annotations that are no labels, and how often."""
    counts = Counter(text for given in notes.values() for _, _, text in given if text not in class_of)
    shown = [f"{count:,} x {text}" for text, count in counts.most_common()]
    return [f"annotations that are no labels: {join_names(shown, 10)}"] if shown else []


def _person(name: str, by_path: str, facts: EdfFacts, arguments: argparse.Namespace) -> str:
    """The person: of the header if that is wanted; by the names of Sleep-EDF, which has all files in one folder."""
    if arguments.subject == "header" and not arguments.person:
        return facts.patient
    match = _SLEEP_EDF.fullmatch(PurePosixPath(name).name)
    by_default = arguments.subject == SUBJECTS[0] and not arguments.person
    return match[1] if match and by_default else by_path
