"""Headers of WFDB records: which records a source has, their segments, files and signals.

A record is `NAME.hea` and the files that it names. The header of a multi-segment record names other records, its
segments, and gaps (`~`); in the variable layout the first segment has no samples and only lists the signals.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from maestro_dist.data.converters.files import SourceFile, SourceFiles
from maestro_dist.data.converters.folder_options import formats_package
from maestro_dist.data.converters.signals import Signal, numbered, same_rate
from maestro_dist.data.parts import join_names
from maestro_dist.errors import DataError

_PLAIN = re.compile(r"[A-Za-z0-9_+-][A-Za-z0-9_.+-]{0,99}")
_ARCHIVE = re.compile(r".+\.(tar|zip|tgz|tbz2?|txz|gz|bz2|xz|zst)", re.IGNORECASE)
_MOST_SAMPLES = 1 << 31  # of a record; a larger number in a header is damage
GAP = "~"


@dataclass(frozen=True)
class Segment:
    """A record with samples: its name in its folder, and its first frame in the recording. `frames` is None where the
    header does not say it."""

    name: str
    first: int
    frames: int | None


@dataclass(frozen=True)
class WfdbRecord:
    """One record of a source, single or multi-segment.

    name      its path in the source, without `.hea`
    files     the files that are read, by their name in the folder of the record
    segments  those with samples, by time; a single-segment record is its only one
    frames    its length in frames, `rate_hz` of them a second; None: see `Segment`
    signals   name, rate, unit of each
    start     its date and time, if the header has both
    """

    name: str
    files: tuple[tuple[str, SourceFile], ...]
    segments: tuple[Segment, ...]
    rate_hz: float
    frames: int | None
    signals: tuple[Signal, ...]
    start: datetime | None


def wfdb_role(path: PurePosixPath) -> str | None:
    """The role of a file: its path. Any file but an archive may belong to a record."""
    return None if _ARCHIVE.fullmatch(path.name) else path.as_posix()


def read_records(
    files: SourceFiles, found: Mapping[str, SourceFile], choose: Callable[[Sequence[str]], Sequence[str]]
) -> dict[str, WfdbRecord]:
    """The chosen records of a source that are no segments of others, by name, and their numerics.

    found   the files of the source by path
    choose  some of the names of records

    Raises:
        DataError: a header is damaged, or names a file that is missing.
    """
    headers: dict[str, Any] = {}
    for path, file in found.items():
        if path.endswith(".hea"):
            name, content = PurePosixPath(path).name, file.read(files.remarks)
            try:
                headers[path.removesuffix(".hea")] = read_header(file.name, name, content)
            except DataError as error:  # it matters only if its record is chosen
                headers[path.removesuffix(".hea")] = error
    if not headers:
        raise files.error("no WFDB header (NAME.hea); the source is the folder or archive that holds the records")
    inside = set()
    for name, header in headers.items():
        for segment in getattr(header, "seg_name", None) or ():
            path = str(PurePosixPath(name).with_name(segment))
            if getattr(headers.get(path), "seg_name", None) is not None:
                where = found[f"{name}.hea"].name
                raise DataError(f"{where}: its segment {segment} has segments itself, which WFDB does not allow")
            inside.add(path)
    records = {}
    chosen = set(choose(sorted(headers.keys() - inside)))
    chosen |= {f"{name}n" for name in chosen} & (headers.keys() - inside)
    for name in sorted(chosen):
        record = _record(name, headers, found)
        if record is None:
            files.remarks.warn("records without signals, left out", name)
        else:
            records[name] = record
    return records


def read_header(shown: str, file_name: str, content: bytes) -> Any:
    """A header as wfdb reads it; `shown` is for messages.

    Raises:
        DataError: it is damaged, or names files outside of its folder.
    """
    wfdb = formats_package("wfdb")
    if not _PLAIN.fullmatch(file_name):
        raise DataError(f"{shown}: a record's name has letters, digits, _ + - and . only")
    with TemporaryDirectory(prefix="maestro_dist-") as folder:
        Path(folder, file_name).write_bytes(content)
        try:
            header = wfdb.rdheader(str(Path(folder, file_name.removesuffix(".hea"))))
        except Exception as error:  # a parser of untrusted text: it raises whatever it meets
            raise DataError(
                f"{shown}: not a WFDB header ({' '.join(str(error).split())[:200]}); fetch it again"
            ) from error
    names = getattr(header, "seg_name", None) or getattr(header, "file_name", None) or ()
    wrong = [name for name in names if name != GAP and not _PLAIN.fullmatch(str(name))]
    if wrong:
        raise DataError(f"{shown}: it names {wrong[0]!r}, which is no file of its folder; correct the header")
    return header


def _record(name: str, headers: Mapping[str, Any], found: Mapping[str, SourceFile]) -> WfdbRecord | None:
    header, where = _readable(headers[name]), found[f"{name}.hea"].name
    files: dict[str, SourceFile] = {}
    if not header.fs or header.fs <= 0:
        raise DataError(f"{where}: no sampling rate; correct the header")
    if getattr(header, "seg_name", None) is None:
        segments = [Segment(PurePosixPath(name).name, 0, header.sig_len)]
        signals = _single(name, header, where, found, files) if header.n_sig else ()
    else:
        segments, signals = _multi(name, headers, where, found, files)
    if not signals:
        return None
    per_frame = max(signal.rate_hz / header.fs for signal in signals)
    if (header.sig_len or 0) * per_frame * len(signals) > _MOST_SAMPLES:
        raise DataError(f"{where}: {header.sig_len:,} frames; more than {_MOST_SAMPLES:,} samples are not read")
    return WfdbRecord(
        name, tuple(files.items()), tuple(segments), float(header.fs), header.sig_len, signals, header.base_datetime
    )


def _readable(header: Any) -> Any:
    """The header. Raises the error that was met when it was read."""
    if isinstance(header, DataError):
        raise header
    return header


def _single(
    name: str, header: Any, where: str, found: Mapping[str, SourceFile], files: dict[str, SourceFile]
) -> tuple[Signal, ...]:
    """The signals of a record without segments; adds its files."""
    for file in (f"{PurePosixPath(name).name}.hea", *dict.fromkeys(header.file_name)):
        path = str(PurePosixPath(name).with_name(file))
        if file != GAP and path not in found:
            raise DataError(f"{path} is missing, which {where} names; fetch it, or leave the record out with --records")
        if file != GAP:
            files[file] = found[path]
    names = numbered(signal or f"signal {n}" for n, signal in enumerate(header.sig_name, start=1))
    rates = [header.fs * per_frame for per_frame in header.samps_per_frame]
    return tuple(Signal(*row) for row in zip(names, rates, (unit or "" for unit in header.units), strict=True))


def _multi(
    name: str, headers: Mapping[str, Any], where: str, found: Mapping[str, SourceFile], files: dict[str, SourceFile]
) -> tuple[list[Segment], tuple[Signal, ...]]:
    """Segments with samples, and the signals that any of them has; adds their files."""
    header, signals, at = headers[name], dict[str, Signal](), 0
    segments: list[Segment] = []
    for part, frames in zip(header.seg_name, header.seg_len, strict=True):
        first, at = at, at + frames
        if part == GAP or frames == 0:
            continue
        path = str(PurePosixPath(name).with_name(part))
        if path not in headers:
            raise DataError(f"{path}.hea is missing, a segment of {where}; fetch it")
        segment = _readable(headers[path])
        if segment.sig_len not in (None, frames) or not same_rate(segment.fs, header.fs):
            raise DataError(
                f"{where}: length or rate of its segment {part} differ from its own header; fetch both again"
            )
        for signal in _single(path, segment, found[f"{path}.hea"].name, found, files) if segment.n_sig else ():
            before = signals.setdefault(signal.name, signal)
            if before.unit != signal.unit or not same_rate(before.rate_hz, signal.rate_hz):
                units = join_names([f"{s.rate_hz:g} Hz, {s.unit}" for s in (before, signal)])
                raise DataError(f"{where}: {signal.name} changes between segments ({units}); split the record there")
        segments.append(Segment(part, first, frames))
    if at != header.sig_len:
        raise DataError(f"{where}: its segments have {at:,} frames, not {header.sig_len or 0:,}; fetch it again")
    return segments, tuple(signals.values())
