"""One EDF, EDF+, BDF or BDF+ file: its checked header, its annotations and the physical values of its signals."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from maestro_dist.data.converters.files import SourceFile
from maestro_dist.data.converters.folder_options import formats_package
from maestro_dist.data.converters.signals import Signal, numbered
from maestro_dist.data.parts import Remarks
from maestro_dist.errors import DataError

_ONSET = re.compile(rb"([+-]\d+(?:\.\d*)?)\x14")
_NOTE = re.compile(rb"([+-]\d+(?:\.\d*)?)(?:\x15(\d+(?:\.\d*)?))?\x14([^\x00]*)\x14\x00")  # onset, duration, texts
_BDF = b"\xffBIOSEMI"
_MOST_SAMPLES = 1 << 31  # of a signal with its gaps; more is damage
_SAME_S = 1e-6

EdfNote = tuple[float, float | None, str]


@dataclass(frozen=True)
class EdfFacts:
    """What planning needs to know of a file. `annotations`: (onset_s, duration_s or None, text), from its start on."""

    signals: tuple[Signal, ...]
    annotations: tuple[EdfNote, ...]
    patient: str
    start: datetime | None


def read_facts(file: SourceFile, remarks: Remarks) -> EdfFacts:
    """The header and the annotations of a file.

    Raises:
        DataError: it is damaged, or cut short.
    """
    with _opened(file, remarks) as edf:
        signals = []
        for name, signal in _named(edf):
            if _is_flat(signal):
                remarks.warn("signals whose header gives no range of values, left out", f"{file.name} ({name})")
                continue
            signals.append(Signal(name, float(signal.sampling_frequency), _text(signal.physical_dimension)))
        notes = _notes(edf, file.name)
        patient = _text(edf.local_patient_identification).split(" ")[0]  # EDF+: code, sex, birthdate, name
        try:
            start = edf.startdatetime
        except ValueError:  # it is left out, or made unknown
            start = None
    return EdfFacts(tuple(signals), tuple(notes), "" if patient == "X" else patient, start)


def read_signals(file: SourceFile, wanted: set[str], remarks: Remarks) -> dict[str, np.ndarray]:
    """Physical values float32 [T] of the wanted signals, by name. Between the records of EDF+D they are NaN.

    Raises:
        DataError: the file is damaged, or its records overlap.
    """
    values = {}
    with _opened(file, remarks) as edf:
        onsets = _onsets(edf, file.name)
        if onsets is not None:
            remarks.warn("files with gaps between their data records, which are NaN", file.name)
        for name, signal in _named(edf):
            if name not in wanted:
                continue
            low, high = signal.digital_range
            digital = signal.digital
            if len(digital) and (digital.min() < low or digital.max() > high):
                remarks.warn("signals with values beyond the digital range of their header", f"{file.name} ({name})")
            physical = signal.data.astype(np.float32)
            values[name] = physical if onsets is None else _spread(physical, onsets, signal, file.name)
    return values


@contextmanager
def _opened(file: SourceFile, remarks: Remarks) -> Iterator[Any]:
    """The file, read lazily where it is on a disk, with a checked header."""
    edfio = formats_package("edfio")
    source = file.plain_path() or file.read_binary()
    try:
        with warnings.catch_warnings(record=True) as odd:
            warnings.simplefilter("always")
            edf = _read(edfio, source)
            _check(edf, file.name, [str(warning.message) for warning in odd], remarks)
            yield edf
    except (DataError, OSError):
        raise
    except Exception as error:  # a parser of untrusted bytes: it raises whatever it meets
        text = " ".join(str(error).split())[:200]
        raise DataError(f"{file.name}: not a readable EDF file ({text}); fetch it again") from error


def _read(edfio: Any, source: Path | bytes) -> Any:
    """The file by its first bytes: 16 bits a sample (EDF), or 24 (BDF)."""
    if isinstance(source, bytes):
        start = source[: len(_BDF)]
    else:
        with source.open("rb") as opened:
            start = opened.read(len(_BDF))
    return (edfio.read_bdf if start == _BDF else edfio.read_edf)(source, header_encoding="latin-1")


def _text(given: str) -> str:
    """A text of the header, which was read as Latin-1; some programs write UTF-8."""
    try:
        return given.encode("latin-1").decode("utf-8").strip()
    except UnicodeError:
        return given.strip()


def _named(edf: Any) -> list[tuple[str, Any]]:
    """The signals with their names, made different."""
    return list(zip(numbered(_text(signal.label) for signal in edf.signals), edf.signals, strict=True))


def _is_flat(signal: Any) -> bool:
    """Whether the header gives the signal no range, as for the channels `-` between the others in CHB-MIT."""
    digital, physical = signal.digital_range, signal.physical_range
    return bool(digital[0] == digital[1] or physical[0] == physical[1])


def _notes(edf: Any, where: str) -> list[EdfNote]:
    """The annotations by time, without those that only give the time of a data record (the first of each).

    edfio has them too, but cannot read a text that is not UTF-8.
    """
    notes: list[EdfNote] = []
    start = 0.0
    for number, signal in enumerate(edf._annotation_signals):
        content, size = signal.digital.tobytes(), signal._bytes_per_data_record
        for at in range(0, len(content), size):
            raw = content[at : at + size]
            found = _NOTE.findall(raw)
            if not found and raw.strip(b"\x00"):
                raise DataError(f"{where}: annotations of data record {at // size + 1} cannot be read; fetch it again")
            here = [
                (float(t), float(d) if d else None, _note(x)) for t, d, all_of in found for x in all_of.split(b"\x14")
            ]
            if number == at == 0 and here:
                start = here[0][0]
            notes += here if number else here[1:]
    return sorted(
        ((round(onset - start, 12), duration, text) for onset, duration, text in notes),
        key=lambda note: (note[0], -1.0 if note[1] is None else note[1], note[2]),
    )


def _note(text: bytes) -> str:
    """The text of an annotation: UTF-8 by the standard, in fact sometimes Latin-1."""
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError:
        return text.decode("latin-1")


def _check(edf: Any, where: str, odd: list[str], remarks: Remarks) -> None:
    if type(edf).__name__ == "Edf" and edf.version != 0:
        raise DataError(f"{where}: version {edf.version!r} of the header is not 0; convert it to EDF")
    unclosed = [text for text in odd if "header indicates -1 " in text]
    if unclosed:
        remarks.warn("files that were not closed: the header does not say their length", where)
    wrong = [text for text in odd if text not in unclosed]
    if wrong:
        text = " ".join(wrong[0].split())[:200]
        remedy = "fetch it again, or leave it out with --records '!NAME'"
        raise DataError(f"{where}: {text} It was cut short or damaged; {remedy}")
    expected = 256 * (edf._total_num_signals + 1)
    if edf.bytes_in_header_record != expected:
        raise DataError(f"{where}: a header of {edf.bytes_in_header_record} bytes, not {expected}; fetch it again")
    if edf.signals and not 0 < edf.data_record_duration < math.inf:
        raise DataError(f"{where}: data records of {edf.data_record_duration:g} s; correct the header")
    for signal in edf.signals:
        digital, physical = signal.digital_range, signal.physical_range
        finite = all(map(math.isfinite, (*digital, *physical)))
        if not finite or digital[0] > digital[1]:
            raise DataError(
                f"{where}: signal {signal.label.strip()}: digital {digital[0]} to {digital[1]} cannot be scaled to "
                f"physical {physical[0]} to {physical[1]}; correct the header"
            )
        if signal.samples_per_data_record < 1:
            raise DataError(f"{where}: signal {signal.label.strip()} has no samples; correct the header")


def _onsets(edf: Any, where: str) -> np.ndarray | None:
    """Seconds of each data record after the first one, float64 [n]; None where each begins as the one before ends."""
    keeper = next(iter(edf._annotation_signals), None)
    if keeper is None or not edf.num_data_records:
        return None
    rows = keeper.digital.reshape(edf.num_data_records, -1)
    found = [_ONSET.match(row.tobytes()) for row in rows]
    if not all(found):
        raise DataError(f"{where}: a data record without its time; fetch it again")
    exact = [Decimal(match[1].decode("ascii")) for match in found if match]
    lasts = Decimal(edf._data_record_duration.decode("ascii").strip())
    if all(later == earlier + lasts for earlier, later in pairwise(exact)):
        return None
    onsets = np.array([float(onset) for onset in exact])
    onsets -= onsets[0]
    early = np.flatnonzero(np.diff(onsets) < edf.data_record_duration - _SAME_S)
    if len(early):
        at = int(early[0]) + 1
        raise DataError(f"{where}: data record {at + 1} begins before the end of the one before; it cannot be placed")
    return onsets


def _spread(values: np.ndarray, onsets: np.ndarray, signal: Any, where: str) -> np.ndarray:
    """The values of data records at their onsets, to the nearest step."""
    first = np.rint(onsets * signal.sampling_frequency).astype(np.int64)
    count = signal.samples_per_data_record
    steps = int(first[-1]) + count
    if steps > _MOST_SAMPLES:
        raise DataError(f"{where}: the gaps between data records make {steps:,} samples; split the file there")
    spread = np.full(steps, np.nan, dtype=np.float32)
    spread[(first[:, None] + np.arange(count)).ravel()] = values
    return spread
