"""Records in the WFDB format (PhysioNet): a tree of `NAME.hea` and the files that each header names.

Each signal keeps its own rate. Gaps of multi-segment records and codes for "no value" become NaN. A numerics record
`NAMEn` is merged into the recording `NAME` by date and time.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from maestro_dist.data.converters.files import AnySource, SourceFiles
from maestro_dist.data.converters.folder_options import (
    NO_LABELS,
    Labels,
    add_folder_options,
    checked_labels,
    chosen_records,
    formats_package,
    names_of,
    table_of,
    window_of,
)
from maestro_dist.data.converters.label_table import LabelTable
from maestro_dist.data.converters.signals import (
    Signal,
    SignalUse,
    add_modalities,
    numbered,
    parse_modalities,
    plan_signals,
    recording_keys,
    stacked,
)
from maestro_dist.data.converters.source import Conversion, Converter, as_recordings
from maestro_dist.data.converters.wfdb_annotations import KINDS, read_annotations
from maestro_dist.data.converters.wfdb_headers import Segment, WfdbRecord, read_records, wfdb_role
from maestro_dist.data.description import Description
from maestro_dist.data.parts import Remarks
from maestro_dist.data.recordings.raw import RawRecording
from maestro_dist.errors import ConfigError, DataError

NUMERIC = " numeric"
"""Added to the name of a signal of a numerics record, if the record that it is merged into has the name too."""


_NUMERICS_HZ = 2.0  # numerics have a value each second or minute; NAME and NAMEn of higher rates are two recordings


@dataclass(frozen=True)
class _Source:
    """A record, where it begins in the recording, and the names of its signals there."""

    record: WfdbRecord
    start_s: float = 0.0
    renamed: tuple[tuple[str, str], ...] = ()

    def signals(self) -> tuple[Signal, ...]:
        names = dict(self.renamed)
        return tuple(replace(signal, name=names.get(signal.name, signal.name)) for signal in self.record.signals)


@dataclass(frozen=True)
class _WfdbRecording:
    """One recording: a record, and its numerics if there are any."""

    name: str
    key: str
    sources: tuple[_Source, ...]
    uses: tuple[SignalUse, ...]
    labels: Labels | None
    subject: str
    split: str

    def samples(self, remarks: Remarks) -> Iterator[RawRecording]:
        """See `Part.samples`."""
        values, starts = dict[str, np.ndarray](), dict[str, float]()
        for source in self.sources:
            given = {signal.name for signal in source.signals()}
            uses = [use for use in self.uses if any(v and v[0] in given for v in use.variates)]
            wanted = {v[0] for use in uses for v in use.variates if v}
            arrays = _signals(source, wanted, remarks)
            for use in uses:
                if any(v and v[0] not in given for v in use.variates):
                    raise DataError(
                        f"{self.name}: {use.modality} has signals of the record and of its numerics; split it"
                    )
                values[use.modality] = stacked(use, arrays)
                starts[use.modality] = source.start_s
        if all(np.isnan(array).all() for array in values.values()):
            remarks.warn("recordings without any observed value, left out", self.name)
            return
        labels = list(self.labels) if isinstance(self.labels, tuple) else self.labels
        yield RawRecording(self.key, values, labels, start_s=starts, subject=self.subject, split=self.split)


class Wfdb(Converter):
    """Any tree of WFDB records: each signal at its own rate, with gaps; labels of a table or of annotation files."""

    name = "wfdb"
    reads = "WFDB records of PhysioNet: a tree of NAME.hea and their files; recordings with or without labels"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Options of signals, labels, people and windows."""
        add_modalities(parser)
        add_folder_options(parser, window_s=10.0)
        parser.add_argument(
            "--annotations",
            metavar="EXT",
            help="labels from annotation files NAME.EXT, such as atr, instead of --labels",
        )
        parser.add_argument(
            "--annotated",
            choices=KINDS,
            default=KINDS[0],
            help="label by the rhythm (default), or by the code of beats",
        )

    def from_arguments(self, source: AnySource, arguments: argparse.Namespace) -> Conversion:
        """See `Converter.from_arguments`."""
        window, wanted, table = window_of(arguments), parse_modalities(arguments.modalities), table_of(arguments)
        if arguments.annotations and arguments.labels:
            raise ConfigError("--labels and --annotations: give one of them")
        if arguments.annotations and not re.fullmatch(r"[A-Za-z0-9_]{1,20}", arguments.annotations):
            raise ConfigError(f"--annotations {arguments.annotations}: the ending of the files, such as atr")
        formats_package("wfdb")
        files = SourceFiles(source)
        found = files.find(wfdb_role)
        records = read_records(files, found, lambda names: chosen_records(names, arguments.records))
        merged = _merged(records, files)
        plan = plan_signals(
            {name: [s for x in sources for s in x.signals()] for name, sources in merged.items()}, wanted
        )
        used = [name for name in merged if plan.uses[name]]
        for name in merged.keys() - set(used):
            files.remarks.warn("recordings without any of the signals of --modalities, left out", name)
        labels: dict[str, Labels] = {}
        if arguments.annotations:
            for name in used:
                if (file := found.get(f"{name}.{arguments.annotations}")) is None:
                    files.remarks.warn(f"recordings without {arguments.annotations} annotations, without labels", name)
                else:
                    record = merged[name][0].record
                    labels[name] = tuple(read_annotations(file, record, arguments.annotated, files.remarks))
        if arguments.annotations and not any(labels.values()):
            raise files.error(f"--annotations {arguments.annotations} --annotated {arguments.annotated}: no label")
        rows, warnings = table.of_records(used, files.wrapper) if table else ({}, [])
        for name, row in rows.items():
            labels |= {name: row.whole if row.whole is not None else tuple(row.intervals)}
        where = arguments.labels or f"*.{arguments.annotations}"
        task, classes, labels = (
            checked_labels(labels, where, arguments) if table or arguments.annotations else NO_LABELS
        )
        names, keys = names_of(used, arguments, rows, files.wrapper), recording_keys(used)
        description = Description(
            name="wfdb",
            licence=arguments.licence,
            citation=arguments.citation,
            source="WFDB records",
            task=task,
            classes=classes,
            target={"none": ""}.get(task, arguments.annotated if arguments.annotations else "label of the table"),
            window_s=window.length_s,
            modalities=plan.modalities,
        )
        parts = [
            _WfdbRecording(n, keys[n], merged[n], plan.uses[n], labels.get(n), names.subject[n], names.split[n])
            for n in used
        ]
        warnings = [*files.warnings(), *plan.warnings, *warnings]
        notes = [f"{count:,} {text}" for text, count in sorted(files.remarks.counts.items())]
        conversion = Conversion(
            description, parts, _listing(files, table), warnings=tuple(warnings), notes=lambda counts: notes
        )
        return as_recordings(conversion, window)


def _listing(files: SourceFiles, table: LabelTable | None) -> str:
    return files.listing() + (table.digest if table else "")


def _merged(records: Mapping[str, WfdbRecord], files: SourceFiles) -> dict[str, tuple[_Source, ...]]:
    """The sources of each recording: a record, and its numerics if both have a date and time and overlap."""
    merged: dict[str, tuple[_Source, ...]] = {}
    numerics = {f"{name}n": name for name in records if f"{name}n" in records}
    for name, record in records.items():
        base = records.get(numerics.get(name, ""))
        if base is None or record.rate_hz > _NUMERICS_HZ:
            merged[name] = (_Source(record), *merged.get(name, ())[1:])
        elif base.start is None or record.start is None:
            files.remarks.warn("numerics without date and time in both headers, kept as recordings of their own", name)
            merged[name] = (_Source(record),)
        elif not _overlap(base, record):
            files.remarks.warn("numerics of another time than their record, kept as recordings of their own", name)
            merged[name] = (_Source(record),)
        else:
            own = {signal.name.lower() for signal in base.signals}
            renamed = tuple((s.name, s.name + NUMERIC) for s in record.signals if s.name.lower() in own)
            later = _Source(record, (record.start - base.start).total_seconds(), renamed)
            merged[base.name] = (_Source(base), later)
    return merged


def _overlap(a: WfdbRecord, b: WfdbRecord) -> bool:
    assert a.start is not None
    assert b.start is not None
    later = (b.start - a.start).total_seconds()
    ends = [record.frames / record.rate_hz if record.frames is not None else float("inf") for record in (a, b)]
    return -ends[1] < later < ends[0]


def _signals(source: _Source, wanted: set[str], remarks: Remarks) -> dict[str, np.ndarray]:
    """Physical values float32 [T] of the wanted signals of a record, NaN in gaps."""
    record, arrays = source.record, dict[str, np.ndarray]()
    names = dict(source.renamed)
    with TemporaryDirectory(prefix="maestro_dist-") as folder:
        for name, file in record.files:
            path = file.plain_path()
            if path is None:
                Path(folder, name).write_bytes(file.read_binary())
            else:
                Path(folder, name).symlink_to(path)
        for segment in record.segments:
            for own, (signal, per_frame) in _segment(folder, record, segment, remarks).items():
                name = names.get(own, own)
                if name not in wanted:
                    continue
                if name not in arrays:
                    steps = len(signal) if record.frames is None else record.frames * per_frame
                    arrays[name] = np.full(steps, np.nan, dtype=np.float32)
                first = segment.first * per_frame
                arrays[name][first : first + len(signal)] = signal
    return arrays


def _segment(folder: str, record: WfdbRecord, segment: Segment, remarks: Remarks) -> dict[str, tuple[np.ndarray, int]]:
    """Values and samples in a frame of each signal of a segment."""
    wfdb = formats_package("wfdb")
    where = f"{record.name} ({segment.name})" if len(record.segments) > 1 else record.name
    try:
        read: Any = wfdb.rdrecord(str(Path(folder, segment.name)), smooth_frames=False)
        if not read.n_sig:
            return {}
        physical, digital = read.e_p_signal, read.adc(expanded=True)  # wfdb cannot give format 61 as integers
    except Exception as error:  # a parser of untrusted bytes: it raises whatever it meets
        text = " ".join(str(error).split())[:200]
        raise DataError(f"{where}: its samples cannot be read ({text}); fetch it again") from error
    frames = segment.frames
    if frames is not None and any(len(x) != frames * n for x, n in zip(physical, read.samps_per_frame, strict=True)):
        raise DataError(f"{where}: it has not the {frames:,} frames that its header says; fetch it again")
    sums = [int(np.sum(signal, dtype=np.int64) % 65536) for signal in digital]
    stated = [None if text is None else int(text) % 65536 for text in read.checksum or ()]
    if not any(read.skew or ()) and any(a not in (None, b) for a, b in zip(stated, sums, strict=False)):
        remarks.warn("records whose samples do not have the checksum of their header: are they damaged?", where)
    from_header = [signal or f"signal {n}" for n, signal in enumerate(read.sig_name, start=1)]
    return dict(zip(numbered(from_header), zip(physical, read.samps_per_frame, strict=True), strict=True))
