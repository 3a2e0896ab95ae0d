"""The converter of EDF files, on files written by edfio; values against the numbers of the header by hand."""

from __future__ import annotations

import datetime
from pathlib import Path

import numpy as np
import pytest
from converting import packed, recordings_of
from edfio import Edf, EdfAnnotation, EdfSignal, Patient, Recording, read_edf

from maestro_dist.errors import ConfigError, DataError

STAGES = "Sleep stage W=wake, Sleep stage 1=n1, Sleep stage 2=n2, Sleep stage 3=n3, Sleep stage 4=n3, Sleep stage R=rem"
WHEN = Recording(startdate=datetime.date(1989, 4, 24))


def signal(steps: int, rate: float, label: str, unit: str = "uV", seed: int = 0) -> EdfSignal:
    data = 50 * np.random.default_rng(seed).normal(size=steps)
    return EdfSignal(data, rate, label=label, physical_dimension=unit, physical_range=(-400, 500))


def write(path: Path, signals: list[EdfSignal], notes: list[tuple] = (), **more: object) -> None:  # type: ignore[type-arg, assignment]
    path.parent.mkdir(parents=True, exist_ok=True)
    more = {"recording": WHEN, "starttime": datetime.time(22, 0, 0), "data_record_duration": 30, **more}
    if not signals:
        del more["data_record_duration"]
    annotations = [EdfAnnotation(*note) for note in notes]
    Edf(signals, annotations=annotations or None, **more).write(path)  # type: ignore[arg-type]


@pytest.fixture
def sleep(tmp_path: Path) -> Path:
    """Two people as in Sleep-EDF; the scoring of the second begins a minute later than the recording."""
    folder = tmp_path / "sleep-cassette"
    for person, seed in (("00", 1), ("01", 2)):
        eeg = signal(100 * 120, 100, "EEG Fpz-Cz", seed=seed)
        temp = signal(120, 1, "Temp rectal", "degC", seed=seed)
        write(folder / f"SC4{person}1E0-PSG.edf", [eeg, temp])
    stages = [(0, 60, "Sleep stage W"), (60, 30, "Sleep stage 4"), (90, 900, "Sleep stage ?")]
    write(folder / "SC4001EC-Hypnogram.edf", [], stages)
    write(folder / "SC4011EH-Hypnogram.edf", [], [(0, 60, "Sleep stage R")], starttime=datetime.time(22, 1, 0))
    return tmp_path


def test_sleep_edf(sleep: Path) -> None:
    conversion, found, warnings = recordings_of("edf", sleep, classes=STAGES)
    assert (warnings, conversion.warnings) == ([], ())
    assert conversion.description.classes == ("wake", "n1", "n2", "n3", "rem")
    assert {m.name: (m.rate_hz, m.unit) for m in conversion.description.modalities} == {
        "eeg_fpz_cz": (100, "uV"),
        "temp_rectal": (1, "degC"),
    }
    first, second = found["SC4001E0-PSG"], found["SC4011E0-PSG"]
    assert (first.subject, second.subject) == ("SC400", "SC401")
    assert first.labels == [(0, 60, "wake"), (60, 90, "n3")]
    assert second.labels == [(60, 120, "rem")]
    assert conversion.notes({}) == ["annotations that are no labels: 1 x Sleep stage ?"]
    eeg = read_edf(sleep / "sleep-cassette" / "SC4001E0-PSG.edf").signals[0]
    scaled = (eeg.digital.astype(float) + 32768) * (900 / 65535) - 400  # digital -32768..32767 is physical -400..500
    assert first.values["eeg_fpz_cz"][:, 0] == pytest.approx(scaled, abs=1e-3)
    assert np.std(scaled) == pytest.approx(50, rel=0.05)


def test_without_classes_there_are_no_labels(sleep: Path) -> None:
    conversion, found, _ = recordings_of("edf", sleep, modalities="eeg=EEG Fpz-Cz", person=r"SC4(\d\d)")
    assert conversion.description.task == "none"
    assert {r.subject for r in found.values()} == {"00", "01"}
    assert all(r.labels is None and list(r.values) == ["eeg"] for r in found.values())


def test_labels_of_a_table(sleep: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """People are those of the table; where it has none, those of the names of Sleep-EDF."""
    table = tmp_path_factory.mktemp("labels") / "t.csv"
    table.write_text("record,label\nSC4001E0-PSG,well\nSC4011E0-PSG.edf,ill\n")
    conversion, found, _ = recordings_of("edf", sleep, labels=table)
    assert conversion.description.classes == ("ill", "well")
    assert {(r.labels, r.subject) for r in found.values()} == {("well", "SC400"), ("ill", "SC401")}
    table.write_text("record,label,subject\nSC4001E0-PSG,well,A\nSC4011E0-PSG,ill,\n")
    _, found, _ = recordings_of("edf", sleep, labels=table, subject="header")
    assert [found[key].subject for key in sorted(found)] == ["A", ""]


def test_people_of_the_header(tmp_path: Path) -> None:
    write(tmp_path / "a.edf", [signal(600, 10, "ECG")], patient=Patient(code="MCH-02"))
    write(tmp_path / "b.edf", [signal(600, 10, "ECG")])
    _, found, _ = recordings_of("edf", tmp_path, subject="header")
    assert (found["a"].subject, found["b"].subject) == ("MCH-02", "")


def test_gaps_between_data_records(tmp_path: Path) -> None:
    """EDF+D: the onset of each data record is in the file. Made of EDF+C by changing the onsets and the flag."""
    path = tmp_path / "d.edf"
    write(path, [signal(40, 10, "ECG"), signal(4, 1, "SpO2")], [(0.5, None, "x")], data_record_duration=1)
    whole = {s.label: s.data for s in read_edf(path).signals}
    body = path.read_bytes().replace(b"EDF+C", b"EDF+D").replace(b"+2\x14\x14", b"+7\x14\x14")
    body = body.replace(b"+3\x14\x14", b"+9\x14\x14")
    path.write_bytes(body)
    _, found, warnings = recordings_of("edf", tmp_path)
    expected = np.full(100, np.nan)
    for record, second in enumerate((0, 1, 7, 9)):
        expected[second * 10 : second * 10 + 10] = whole["ECG"][record * 10 : record * 10 + 10]
    assert np.array_equal(found["d"].values["ecg"][:, 0], expected.astype("f4"), equal_nan=True)
    assert np.flatnonzero(~np.isnan(found["d"].values["spo2"][:, 0])).tolist() == [0, 1, 7, 9]
    assert warnings == [f"files with gaps between their data records, which are NaN: {path}"]
    path.write_bytes(body.replace(b"+9\x14\x14", b"+3\x14\x14"))
    with pytest.raises(DataError, match="data record 4 begins before the end of the one before"):
        recordings_of("edf", tmp_path)


HEADER = {"version": 0, "bytes": 184, "records": 236, "duration": 244, "signals": 252, "physical_max": 256 + 2 * 112,
          "digital_min": 256 + 2 * 120, "samples": 256 + 2 * 216}  # fmt: skip
"""First byte of fields of 8 (signals: 4) letters in a file with two signals: those of the first signal."""


@pytest.mark.parametrize(
    ("field", "text", "message"),
    [
        ("version", "1       ", "version"),
        ("bytes", "700     ", "header of 700 bytes, not 768|cut short or damaged|not a readable"),
        ("records", "9       ", "header indicates 9 data records, but file contains 4"),
        ("records", "2       ", "header indicates 2 data records, but file contains 4"),
        ("duration", "0       ", "not a readable EDF file|data records of 0 s"),
        ("duration", "x       ", "not a readable EDF file"),
        ("signals", "9   ", "not a readable EDF file|header of 768 bytes"),
        ("physical_max", "nan     ", "cannot be scaled|not a readable"),
        ("digital_min", "32768   ", "signal ECG: digital 32768 to 32767 cannot be scaled"),
        ("samples", "0       ", "has no samples|cut short|not a readable"),
    ],
)
def test_damaged_headers(tmp_path: Path, field: str, text: str, message: str) -> None:
    path = tmp_path / "a.edf"
    write(path, [signal(40, 10, "ECG"), signal(40, 10, "EMG")], data_record_duration=1)
    body = path.read_bytes()
    assert recordings_of("edf", tmp_path)[1].keys() == {"a"}
    at = HEADER[field]
    path.write_bytes(body[:at] + text.encode() + body[at + len(text) :])
    with pytest.raises(DataError, match=rf"a\.edf: .*({message})"):
        recordings_of("edf", tmp_path)


def test_files_that_are_cut_or_not_closed(tmp_path: Path) -> None:
    path = tmp_path / "a.edf"
    write(path, [signal(40, 10, "ECG"), signal(40, 10, "EMG")], data_record_duration=1)
    body = path.read_bytes()
    for size in (len(body) - 10, len(body) - 40, 500, 10, 0):
        path.write_bytes(body[:size])
        with pytest.raises(DataError, match=r"a\.edf: .*(cut short|not a readable EDF file)"):
            recordings_of("edf", tmp_path)
    path.write_bytes(body[:236] + b"-1      " + body[244:])
    conversion, found, _ = recordings_of("edf", tmp_path)
    assert found["a"].values["ecg"].shape == (40, 1)
    assert "files that were not closed" in conversion.warnings[0]


def test_values_beyond_the_digital_range_are_remarked(tmp_path: Path) -> None:
    path = tmp_path / "a.edf"
    write(path, [signal(40, 10, "ECG"), signal(40, 10, "EMG")], data_record_duration=1)
    body = path.read_bytes()
    path.write_bytes(body[: HEADER["digital_min"]] + b"-10     " + body[HEADER["digital_min"] + 8 :])
    _, _, warnings = recordings_of("edf", tmp_path)
    assert warnings == [f"signals with values beyond the digital range of their header: {path} (ECG)"]


def test_odd_annotations(sleep: Path) -> None:
    folder = sleep / "sleep-cassette"
    write(folder / "SC4001EC-Hypnogram.edf", [], [(0, 30, "Sleep stage W"), (30, None, "Sleep stage R")])
    write(folder / "SC4021EC-Hypnogram.edf", [], [(0, 30, "Sleep stage W")])
    conversion, found, _ = recordings_of("edf", sleep, classes=STAGES)
    assert found["SC4001E0-PSG"].labels == [(0, 30, "wake")]
    texts = " ".join(conversion.warnings)
    assert "no duration, which are left out: sleep-cassette/SC4001E0-PSG" in texts
    assert "without their recording, left out: sleep-cassette/SC4021EC-Hypnogram" in texts
    with pytest.raises(DataError, match="--classes: no annotation fits; there are Sleep stage R, Sleep stage W"):
        recordings_of("edf", sleep, classes="Wake=w, Sleep=s")
    for text in ("W", "W=", "W=a", "W=a,W=b", "W=a,R=a", ","):
        with pytest.raises(ConfigError, match="--classes"):
            recordings_of("edf", sleep, classes=text)


def test_two_signals_of_one_name(tmp_path: Path) -> None:
    one, two = signal(40, 10, "ECG"), signal(40, 10, "ECG", seed=1)
    write(tmp_path / "a.edf", [one, two], data_record_duration=1)
    _, found, _ = recordings_of("edf", tmp_path)
    assert found["a"].values["ecg_2"][:, 0] == pytest.approx(two.data, abs=0.02)
    _, found, _ = recordings_of("edf", tmp_path, modalities="ecg=ECG#2,ECG")
    assert found["a"].values["ecg"] == pytest.approx(np.stack([two.data, one.data], 1), abs=0.02)


def test_packed_with_the_tool(sleep: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    out = tmp_path_factory.mktemp("out")
    manifest = packed("edf", sleep, out / "folder", "--classes", STAGES)
    import shutil

    archive = shutil.make_archive(str(out / "tree"), "zip", sleep)
    again = packed("edf", Path(archive), out / "archive", "--classes", STAGES)
    assert [s.sha256 for x in manifest.splits.values() for s in x.shards] == [
        s.sha256 for x in again.splits.values() for s in x.shards
    ]
