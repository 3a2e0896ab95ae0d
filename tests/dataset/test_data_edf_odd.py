"""The converter of EDF files, on files written byte by byte: what edfio does not write, but public archives have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from converting import packed, recordings_of

from maestro_dist.errors import ConfigError, DataError


@dataclass(frozen=True)
class Channel:
    """A signal: its whole numbers, `count` of them in a data record, and its ranges (low, high)."""

    label: str | bytes
    values: np.ndarray
    count: int
    unit: str | bytes = "uV"
    physical: tuple[float, float] = (-100, 100)
    digital: tuple[int, int] = (-1000, 1000)


def time_list(onset: float, *notes: tuple[float, float, bytes]) -> bytes:
    """The annotations of a data record; its first one is its time."""
    rows = [b"%+g\x15%g\x14%s\x14\x00" % note for note in notes]
    return b"".join([b"%+g\x14\x14\x00" % onset, *rows]).ljust(60, b"\x00")


def write(
    path: Path, channels: Sequence[Channel], notes: Sequence[bytes] = (), kind: str = "", patient: str = "X X X X"
) -> Path:
    """A file with data records of 1 s. `notes`: the annotations of each; `kind`: such as EDF+D."""
    bdf = path.suffix == ".bdf"
    width, name = (3, "BDF") if bdf else (2, "EDF")
    records = len(channels[0].values) // channels[0].count

    def field(text: object, size: int) -> bytes:
        return (text if isinstance(text, bytes) else str(text).encode("latin-1")).ljust(size)

    columns: list[list[object]] = [
        [c.label, "", c.unit, *c.physical, *c.digital, "", c.count, ""] for c in channels
    ] + [[f"{name} Annotations", "", "", -1, 1, -32768, 32767, "", 60 // width, ""]] * bool(notes)
    head = [b"\xffBIOSEMI" if bdf else field(0, 8), field(patient, 80), field("Startdate X X X X", 80)]
    head += [field("01.02.03", 8), field("10.00.00", 8), field(256 * (len(columns) + 1), 8), field(kind, 44)]
    head += [field(records, 8), field(1, 8), field(len(columns), 4)]
    for row, size in enumerate((16, 80, 8, 8, 8, 8, 8, 80, 8, 32)):
        head += [field(column[row], size) for column in columns]
    body = []
    for record in range(records):
        for c in channels:
            values = c.values[record * c.count : (record + 1) * c.count].astype("<i4")
            body.append(values[:, None].view(np.uint8).reshape(-1, 4)[:, :width].tobytes())
        body += [notes[record]] if notes else []
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(head + body))
    return path


EEG = Channel("EEG Fz", np.arange(-20, 20), 4)


def test_signals_without_a_range_are_left_out(tmp_path: Path) -> None:
    """CHB-MIT has channels named `-` between the others, without a range of values and without a usable name."""
    nothing = Channel("-", np.zeros(40, dtype=int), 4, "", (0, 0), (0, 0))
    write(tmp_path / "chb01" / "a.edf", [nothing, EEG, nothing, Channel("ECG", EEG.values, 4, physical=(5, 5))])
    write(tmp_path / "chb01" / "b.edf", [EEG, Channel("ECG", EEG.values, 4)])
    conversion, found, _ = recordings_of("edf", tmp_path)
    (warning,) = conversion.warnings
    assert warning.startswith("signals whose header gives no range of values, left out (3): ")
    assert "a.edf (-)" in warning
    assert "a.edf (-#2)" in warning
    assert {key: sorted(r.values) for key, r in found.items()} == {"a": ["eeg_fz"], "b": ["ecg", "eeg_fz"]}
    assert found["a"].values["eeg_fz"][:, 0] == pytest.approx(np.arange(-20, 20) / 10)
    with pytest.raises(ConfigError, match=r"no recording has ECG \(ecg\)"):
        recordings_of("edf", tmp_path, records="a", modalities="ecg=ECG")


@pytest.mark.parametrize("where", ["file", "archive"])
def test_bdf(tmp_path: Path, where: str) -> None:
    """24 bits a sample, as BioSemi has it; the ends of the range, and the status word."""
    raw = np.array([-8388608, -1, 0, 1, 8388607, 70000, -70000, 5])
    fz = Channel("Fz", raw, 4, "uV", (-262144, 262143), (-8388608, 8388607))
    status = Channel("Status", np.array([65280, 65281]), 1, "Boolean", (-8388608, 8388607), (-8388608, 8388607))
    source = write(tmp_path / "tree" / "s01.bdf", [fz, status], kind="24BIT").parent
    if where == "archive":
        import shutil

        source = Path(shutil.make_archive(str(tmp_path / "tree"), "zip", source))
    conversion, found, warnings = recordings_of("edf", source)
    assert (conversion.warnings, warnings) == ((), [])
    assert {m.name: (m.rate_hz, m.unit) for m in conversion.description.modalities} == {
        "fz": (4, "uV"),
        "status": (1, "Boolean"),
    }
    expected = (raw + 8388608) * (524287 / 16777215) - 262144
    assert found["s01"].values["fz"][:, 0] == pytest.approx(expected, rel=1e-6)
    assert found["s01"].values["status"][:, 0].tolist() == [65280, 65281]


@pytest.mark.parametrize(("ending", "kind"), [("edf", "EDF+D"), ("bdf", "BDF+D")])
def test_gaps_and_annotations(tmp_path: Path, ending: str, kind: str) -> None:
    """The file begins half a second after the time of its header, and pauses for 3 s; rates of 4 and 1 Hz."""
    notes = [time_list(0.5, (0.5, 2, b"A")), time_list(1.5), time_list(5.5, (5.5, 1, b"B")), time_list(6.5)]
    temp = Channel("Temp", np.arange(4), 1, "degC")
    write(tmp_path / f"a.{ending}", [Channel("Fz", np.arange(16), 4), temp], notes, kind)
    _, found, warnings = recordings_of("edf", tmp_path, classes="A=a,B=b")
    assert warnings == [f"files with gaps between their data records, which are NaN: {tmp_path}/a.{ending}"]
    gap = [np.nan] * 3
    assert found["a"].labels == [(0, 2, "a"), (5, 6, "b")]
    assert found["a"].values["temp"][:, 0] == pytest.approx(np.array([0, 0.1, *gap, 0.2, 0.3]), nan_ok=True)
    values = np.concatenate([np.arange(8) / 10, gap * 4, np.arange(8, 16) / 10])
    assert found["a"].values["fz"][:, 0] == pytest.approx(values, nan_ok=True)


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_texts_that_are_not_ascii(tmp_path: Path, encoding: str) -> None:
    notes = [time_list(0, (0, 2, "Müde\nlinks".encode(encoding))), time_list(1), time_list(2, (2, 1, b"B"))]
    fz = Channel("Fläche".encode(encoding), np.arange(12), 4, "µV".encode(encoding))
    write(tmp_path / "a.edf", [fz], notes, "EDF+C", patient="Grün F 02-MAY-1951 X")
    conversion, found, _ = recordings_of("edf", tmp_path, classes="Müde\nlinks=a,B=b", subject="header")
    assert found["a"].labels == [(0, 2, "a"), (2, 3, "b")]
    assert found["a"].subject == "Grün"
    assert [m.unit for m in conversion.description.modalities] == ["µV"]
    _, found, _ = recordings_of("edf", tmp_path, modalities="fz=Fläche")
    assert sorted(found["a"].values) == ["fz"]


def test_annotations_that_are_no_annotations(tmp_path: Path) -> None:
    write(tmp_path / "a.edf", [EEG], [time_list(0), b"\x01" * 60, *[time_list(n) for n in range(2, 10)]], "EDF+C")
    with pytest.raises(DataError, match=r"a.edf: annotations of data record 2 cannot be read"):
        recordings_of("edf", tmp_path)


def test_two_files_of_one_name(tmp_path: Path) -> None:
    write(tmp_path / "a.edf", [EEG])
    write(tmp_path / "a.bdf", [EEG])
    with pytest.raises(DataError, match="has the same name but for its ending; rename one of them"):
        recordings_of("edf", tmp_path)


def test_bdf_is_packed_with_the_tool(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write(tmp_path / "raw" / name / f"{name}.bdf", [Channel("Fz", np.arange(400), 4)])
    table = tmp_path / "labels.csv"
    table.write_text("record,label\none.bdf,well\ntwo,ill\n")
    manifest = packed("edf", tmp_path / "raw", tmp_path / "out", "--labels", str(table))
    assert sum(split.samples for split in manifest.splits.values()) == 2
