"""Labels from WFDB annotation files: rhythms as intervals from one change to the next, or beats."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from maestro_dist.data.converters.files import SourceFile
from maestro_dist.data.converters.folder_options import formats_package
from maestro_dist.data.converters.label_table import Interval
from maestro_dist.data.converters.wfdb_headers import WfdbRecord
from maestro_dist.data.parts import Remarks, join_names
from maestro_dist.errors import DataError

KINDS = ("rhythm", "beats")
_BEATS = tuple("NLRBAaJSVrFejnE/fQ?")  # the codes of WFDB that mark a heartbeat
_RHYTHM = "+"


def read_annotations(file: SourceFile, record: WfdbRecord, kind: str, remarks: Remarks) -> list[Interval]:
    """Label intervals (start_s, end_s, label) of a record.

    rhythm   the note of each rhythm change, such as AFIB for `(AFIB`, from there to the next or to the end
    beats    the code of each beat, from the middle between it and the beat before to the middle after it

    Raises:
        DataError: the file is damaged, or its times are not in order.
    """
    annotation = _read(file)
    rate_hz = annotation.fs or record.rate_hz
    times = annotation.sample / rate_hz
    if record.frames is None:
        raise DataError(f"{record.name}.hea: it does not say the number of samples, so annotations have no end")
    end_s = record.frames / record.rate_hz
    if (np.diff(times) < 0).any() or (len(times) and times[0] < 0):
        raise DataError(f"{file.name}: its times are not in order; fetch it again")
    symbols = np.array(annotation.symbol, dtype=str)
    chosen = np.isin(symbols, _BEATS)
    remarks.count("annotated beats", int(chosen.sum()))
    if kind == "rhythm":
        notes = np.array([note.strip("\x00 ").removeprefix("(") for note in annotation.aux_note], dtype=str)
        chosen = (symbols == _RHYTHM) & (notes != "")
        symbols = notes
    if not chosen.any():
        codes = join_names([f"{count:,} x {code}" for code, count in Counter(annotation.symbol).most_common()], 5)
        what = {"rhythm": "rhythm change (code +)", "beats": "beat"}[kind]
        remarks.warn(f"annotation files without a {what}", f"{file.name} ({codes or 'empty'})")
    late = chosen & (times >= end_s)
    if late.any():
        remarks.warn("annotations after the end of the record, left out", file.name)
        chosen &= ~late
    times, labels = times[chosen], symbols[chosen].tolist()
    if not labels:
        return []
    edges = np.append(times, end_s)
    starts, ends = edges[:-1], edges[1:]
    if kind == "beats":
        middles = (times[1:] + times[:-1]) / 2
        before = max(0.0, times[0] - (middles[0] - times[0])) if len(middles) else 0.0
        after = min(end_s, times[-1] + (times[-1] - middles[-1])) if len(middles) else end_s
        starts, ends = np.insert(middles, 0, before), np.append(middles, after)
    if (starts >= ends).any():
        remarks.warn("annotations at one time: only the last of them counts", file.name)
    return [row for row in zip(starts.tolist(), ends.tolist(), labels, strict=True) if row[0] < row[1]]


def _read(file: SourceFile) -> Any:
    wfdb = formats_package("wfdb")
    with TemporaryDirectory(prefix="maestro_dist-") as folder:
        Path(folder, "record.ann").write_bytes(file.read_binary())
        try:
            return wfdb.rdann(str(Path(folder, "record")), "ann")
        except Exception as error:  # a parser of untrusted bytes: it raises whatever it meets
            text = " ".join(str(error).split())[:200]
            raise DataError(f"{file.name}: not a WFDB annotation file ({text}); fetch it again") from error
