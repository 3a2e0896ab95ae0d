"""The converter of WFDB records, on records written by wfdb, against wfdb's own reading."""

from __future__ import annotations

import re
import shutil
import sys
from datetime import date, time
from pathlib import Path

import numpy as np
import pytest
import wfdb
from converting import packed, recordings_of

from maestro_dist.errors import ConfigError, DataError


def write(folder: Path, name: str, signals: dict[str, np.ndarray], fs: float = 100.0, **more: object) -> None:
    """A record; units are mV if `more` has none."""
    folder.mkdir(parents=True, exist_ok=True)
    units = more.pop("units", ["mV"] * len(signals))
    wfdb.wrsamp(
        name, fs=fs, units=units, sig_name=list(signals), fmt=["16"] * len(signals),
        p_signal=np.stack(list(signals.values()), axis=1), write_dir=str(folder), **more,
    )  # fmt: skip


def wave(steps: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=steps)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two people; ann has a numerics record that begins 20 s after the waveforms."""
    when = {"base_time": time(10, 0, 0), "base_date": date(2100, 3, 31)}
    ecg = wave(3000)
    ecg[500:900] = np.nan
    write(tmp_path / "ann", "a1", {"II": ecg, "RESP": wave(3000, 1)}, **when)
    later = {"base_time": time(10, 0, 20), "base_date": date(2100, 3, 31)}
    write(tmp_path / "ann", "a1n", {"HR": 60 + wave(3), "RESP": 15 + wave(3)}, fs=1 / 60, units=["bpm", "pm"], **later)
    write(tmp_path / "bob", "b1", {"II": wave(2000, 2), "RESP": wave(2000, 3)})
    return tmp_path


def test_values_people_and_numerics(tree: Path) -> None:
    conversion, found, warnings = recordings_of("wfdb", tree)
    assert warnings == []
    assert {key: r.subject for key, r in found.items()} == {"a1": "ann", "b1": "bob"}
    assert conversion.description.task == "none"
    units = {m.name: (m.rate_hz, m.unit) for m in conversion.description.modalities}
    assert units == {
        "hr": (pytest.approx(1 / 60), "bpm"),
        "ii": (100, "mV"),
        "resp": (100, "mV"),
        "resp_numeric": (pytest.approx(1 / 60), "pm"),
    }
    own = wfdb.rdrecord(str(tree / "ann" / "a1"))
    recording = found["a1"]
    assert np.array_equal(recording.values["ii"][:, 0], own.p_signal[:, 0].astype("f4"), equal_nan=True)
    assert np.isnan(recording.values["ii"][500:900]).all()
    numerics = wfdb.rdrecord(str(tree / "ann" / "a1n"))
    assert np.array_equal(recording.values["resp_numeric"][:, 0], numerics.p_signal[:, 1].astype("f4"))
    assert recording.start_s == {"ii": 0, "resp": 0, "hr": 20, "resp_numeric": 20}


@pytest.mark.parametrize("kind", ["zip", "gztar"])
def test_the_folder_of_an_archive_is_no_person(tree: Path, tmp_path_factory: pytest.TempPathFactory, kind: str) -> None:
    """PhysioNet has all files in one folder of the archive, such as `mit-bih-arrhythmia-database-1.0.0`."""
    out = tmp_path_factory.mktemp("archives")
    wrapped = Path(shutil.make_archive(str(out / "wrapped"), kind, tree.parent, tree.name))
    plain = Path(shutil.make_archive(str(out / "plain"), kind, tree))
    flat = Path(shutil.make_archive(str(out / "flat"), kind, tree, "ann"))
    for subject, people in (("folder", {"a1": "ann", "b1": "bob"}), ("first", {"a1": "ann", "b1": "bob"})):
        for source in (tree, wrapped, plain):
            found = recordings_of("wfdb", source, subject=subject)[1]
            assert {key: r.subject for key, r in found.items()} == people
        only = recordings_of("wfdb", wrapped, subject=subject, records="a1*")[1]
        assert only["a1"].subject == "ann"  # that one person is chosen changes nothing
        assert recordings_of("wfdb", flat, subject=subject)[1]["a1"].subject == ""
        assert recordings_of("wfdb", tree / "ann", subject=subject)[1]["a1"].subject == ""
    table = out / "labels.csv"
    table.write_text(f"record,label\nann/a1,x\n{tree.name}/bob/b1,y\n")
    found = recordings_of("wfdb", wrapped, labels=table)[1]
    assert {key: r.labels for key, r in found.items()} == {"a1": "x", "b1": "y"}


def test_numerics_without_a_date_stay_apart(tree: Path) -> None:
    header = tree / "ann" / "a1.hea"
    header.write_text(header.read_text().replace(" 10:00:00 31/03/2100", "").replace(" 10:00:00.000000 31/03/2100", ""))
    assert "2100" not in header.read_text()
    conversion, found, _ = recordings_of("wfdb", tree, modalities="ii=II; hr=HR")
    assert sorted(found) == ["a1", "a1n", "b1"]
    assert any(text.startswith("numerics without date and time") for text in conversion.warnings)


@pytest.mark.parametrize(
    ("fs", "day", "warning"), [(1 / 60, 1, "numerics of another time than their record"), (100.0, 31, "")]
)
def test_records_that_are_no_numerics_of_another(tree: Path, fs: float, day: int, warning: str) -> None:
    """Of another day, or with the rate of waveforms: `a1n` is then a recording of its own."""
    when = {"base_time": time(10, 0, 20), "base_date": date(2100, 3, day)}
    write(tree / "ann", "a1n", {"HR": wave(3)}, fs=fs, units=["bpm"], **when)
    conversion, found, _ = recordings_of("wfdb", tree)
    assert sorted(found) == ["a1", "a1n", "b1"]
    assert [text.partition(",")[0] for text in conversion.warnings] == [warning][: bool(warning)]


def test_a_damaged_header_that_is_not_chosen(tree: Path) -> None:
    (tree / "other.hea").write_text("ENVI\nsamples = 3\n")
    with pytest.raises(DataError, match=r"other\.hea: not a WFDB header"):
        recordings_of("wfdb", tree)
    assert set(recordings_of("wfdb", tree, records="!other")[1]) == {"a1", "b1"}


def test_the_package_that_is_missing_is_named(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wfdb", None)
    with pytest.raises(ConfigError, match=r"pip install 'maestro_dist\[formats\]'"):
        recordings_of("wfdb", tree)


def test_each_signal_keeps_its_rate(tmp_path: Path) -> None:
    fast, slow = wave(800), wave(200, 1)
    wfdb.wrsamp(
        "r", fs=50, units=["mV", "mmHg"], sig_name=["ECG", "ABP"], fmt=["16", "16"], e_p_signal=[fast, slow],
        samps_per_frame=[4, 1], write_dir=str(tmp_path),
    )  # fmt: skip
    conversion, found, _ = recordings_of("wfdb", tmp_path)
    assert {m.name: m.rate_hz for m in conversion.description.modalities} == {"abp": 50, "ecg": 200}
    own = wfdb.rdrecord(str(tmp_path / "r"), smooth_frames=False).e_p_signal
    assert np.array_equal(found["r"].values["ecg"][:, 0], own[0].astype("f4"))
    assert np.array_equal(found["r"].values["abp"][:, 0], own[1].astype("f4"))
    assert found["r"].subject == ""


def multi_segment(folder: Path, *, variable: bool) -> None:
    write(folder, "x_1", {"II": wave(300), "V": wave(300, 1)})
    second = {"V": wave(200, 2)} if variable else {"II": wave(200, 3), "V": wave(200, 2)}
    write(folder, "x_2", second)
    lines = ["x_1 300", "x_2 200"]
    if variable:
        (folder / "x_layout.hea").write_text("x_layout 2 100 0\n~ 0 200/mV 16 0 0 0 0 II\n~ 0 200/mV 16 0 0 0 0 V\n")
        lines = ["x_layout 0", "x_1 300", "~ 100", "x_2 200"]
    total = 600 if variable else 500
    (folder / "x.hea").write_text(f"x/{len(lines)} 2 100 {total}\n" + "\n".join(lines) + "\n")


@pytest.mark.parametrize("variable", [False, True])
def test_segments_are_joined_as_wfdb_joins_them(tmp_path: Path, variable: bool) -> None:
    multi_segment(tmp_path, variable=variable)
    _, found, warnings = recordings_of("wfdb", tmp_path)
    assert list(found) == ["x"]
    assert warnings == []
    own = wfdb.rdrecord(str(tmp_path / "x"), smooth_frames=False)
    for name, signal in zip(own.sig_name, own.e_p_signal, strict=True):
        assert np.array_equal(found["x"].values[name.lower()][:, 0], signal.astype("f4"), equal_nan=True)
    assert int(np.isnan(found["x"].values["ii"]).sum()) == (300 if variable else 0)


def test_a_segment_in_another_unit_or_order(tmp_path: Path) -> None:
    multi_segment(tmp_path, variable=False)
    write(tmp_path, "x_2", {"V": wave(200, 2), "II": wave(200, 3)})  # wfdb itself would join V to II
    _, found, _ = recordings_of("wfdb", tmp_path)
    last = wfdb.rdrecord(str(tmp_path / "x_2")).p_signal[:, 1]
    assert np.array_equal(found["x"].values["ii"][300:, 0], last.astype("f4"))
    write(tmp_path, "x_2", {"II": wave(200, 2), "V": wave(200, 3)}, units=["uV", "mV"])
    with pytest.raises(DataError, match=r"x.hea: II changes between segments \(100 Hz, mV, 100 Hz, uV\)"):
        recordings_of("wfdb", tmp_path)


def test_modalities_of_several_signals(tree: Path) -> None:
    write(tree / "eve", "e1", {"MLII": wave(500), "V5": 1000 * wave(500, 1)}, units=["mV", "uV"])
    write(tree / "eve", "e2", {"V5": wave(500, 4)})
    options = {"modalities": "ecg=II|MLII,V5; resp=RESP@100", "records": "[!b]*"}
    conversion, found, _ = recordings_of("wfdb", tree, **options)
    ecg, resp = conversion.description.modalities
    assert (ecg.name, ecg.variates, ecg.unit, resp.rate_hz) == ("ecg", 2, "mV", 100)
    assert any("V5" not in text and "HR" in text for text in conversion.warnings)  # what the map does not name
    assert "ecg: mV and uV are converted to mV" in " ".join(conversion.warnings).replace("uV and mV", "mV and uV")
    own = wfdb.rdrecord(str(tree / "eve" / "e1")).p_signal
    assert found["e1"].values["ecg"] == pytest.approx(own * [1, 1e-3], rel=1e-5)
    assert np.isnan(found["e2"].values["ecg"][:, 0]).all()
    assert np.isnan(found["a1"].values["ecg"][:, 1]).all()
    as_file = tree / "map.yaml"
    as_file.write_text("ecg: [II|MLII, V5]\nresp: RESP@100\n")
    same, _, _ = recordings_of("wfdb", tree, **(options | {"modalities": str(as_file)}))
    assert same.description == conversion.description


@pytest.mark.parametrize(
    ("signals", "more", "message"),
    [
        ({"II": wave(100)}, {"fs": 250.0}, r"ii: signal II has 100 Hz in ann/a1, but II has 250 Hz in zoe/z"),
        ({"II": wave(100)}, {"units": ["mmHg"]}, r"ii: signals with several units \(mV in ann/a1, mmHg in zoe/z\)"),
        ({"ii": wave(100)}, {}, r"signals 'II' and 'ii' would both be the modality ii"),
        ({"%%": wave(100)}, {}, r"signal '%%': a modality cannot have this name"),
    ],
)
def test_signals_that_do_not_fit(tree: Path, signals: dict, more: dict, message: str) -> None:
    write(tree / "zoe", "z", signals, **more)
    with pytest.raises(DataError, match=message):
        recordings_of("wfdb", tree)
    assert set(recordings_of("wfdb", tree, records="!z")[1]) == {"a1", "b1"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ecg", "write NAME=SIGNAL"),
        ("ECG=II", "small letters"),
        ("ecg=", "a signal without a name"),
        ("ecg=II@x; a=II@0", "there are HR, II, RESP"),
        ("ecg=II@0", "one rate"),
        ("ecg=II@1,V@2", "one rate"),
        ("a=II; b=II", "II', None\\) is named twice"),
        ("a=nothing", r"no recording has nothing \(a\); there are HR, II, RESP"),
    ],
)
def test_wrong_modalities(tree: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message if "@x" not in text else "one rate|no recording"):
        recordings_of("wfdb", tree, modalities=text)


def test_labels_of_a_table(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    table = tmp_path_factory.mktemp("labels") / "t.csv"
    table.write_text(
        "record,start_s,end_s,label,subject,split\na1,0,10,calm,P1,train\na1,10,20.5,worse,P1,train\n"
        "bob/b1,,,calm,P2,test\nother,,,calm,P3,test\n"
    )
    conversion, found, _ = recordings_of("wfdb", tree, labels=table)
    assert conversion.description.classes == ("calm", "worse")
    assert found["a1"].labels == [(0, 10, "calm"), (10, 20.5, "worse")]
    assert (found["b1"].labels, found["b1"].subject, found["b1"].split) == ("calm", "P2", "test")
    assert any("records that are not in the source (1): other" in text for text in conversion.warnings)


def test_tables_of_numbers_and_of_people(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    table = tmp_path_factory.mktemp("labels") / "t.csv"
    table.write_text("record,start_s,end_s,label\na1.hea,0,10,1.5\na1.hea,10,20,-2e3\nb1,0,20,7\n")
    conversion, found, _ = recordings_of("wfdb", tree, labels=table, task="regression")
    assert (conversion.description.task, conversion.description.classes) == ("regression", ())
    assert found["a1"].labels == [(0, 10, 1.5), (10, 20, -2000)]
    table.write_text("record,label\na1,1.5\nb1,high\n")
    with pytest.raises(DataError, match="label 'high' is not a number"):
        recordings_of("wfdb", tree, labels=table, task="regression")
    table.write_text("record,subject,split\na1,P1,train\nb1,P2,test\n")
    conversion, found, _ = recordings_of("wfdb", tree, labels=table)
    assert (conversion.description.task, found["b1"].subject, found["b1"].split) == ("none", "P2", "test")
    table.write_text("record,label\nc1,x\nd1,y\n")
    with pytest.raises(DataError, match="none of its records is in the source: c1, d1"):
        recordings_of("wfdb", tree, labels=table)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name,label\na1,x\n", "line 1: the columns are"),
        ("record,start_s,label\na1,0,x\n", "line 1: the columns are"),
        ("record,label\na1,x,y\n", "line 2: it has another number of fields"),
        ("record,label\na1,x\na1,y\n", "line 3: a second label"),
        ("record,start_s,end_s,label\na1,5,5,x\n", "line 2: the label lasts from 5 s to 5 s"),
        ("record,start_s,end_s,label\na1,0,nan,x\n", "line 2: the label lasts"),
        ("record,start_s,end_s,label\na1,0,,x\n", "are numbers of seconds"),
        ("record,label,subject\na1,,P1\na1,x,P2\n", "subject 'P2', but 'P1' above"),
        ("record,label\n", "it has no rows"),
        ("record,label\na1,x\nb1,x\n", "only the label 'x'"),
        ("record,label\n,x\n", "line 2: no record"),
    ],
)
def test_wrong_tables(tree: Path, tmp_path_factory: pytest.TempPathFactory, content: str, message: str) -> None:
    table = tmp_path_factory.mktemp("labels") / "t.csv"
    table.write_text(content)
    with pytest.raises(DataError, match=message):
        recordings_of("wfdb", tree, labels=table)
    with pytest.raises(DataError, match="cannot be read"):
        recordings_of("wfdb", tree, labels=table.with_name("none.csv"))


def test_labels_of_annotations(tree: Path) -> None:
    at, symbols = np.array([10, 100, 300, 1000, 1500]), ["+", "N", "V", "+", "N"]
    notes = ["(N", "", "", "(AFIB\x00", ""]
    wfdb.wrann("a1", "atr", at, symbol=symbols, aux_note=notes, write_dir=str(tree / "ann"), fs=100)
    conversion, found, _ = recordings_of("wfdb", tree, annotations="atr")
    assert found["a1"].labels == [(0.1, 10.0, "N"), (10.0, 30.0, "AFIB")]
    assert found["b1"].labels is None
    assert any("recordings without atr annotations" in text and "bob/b1" in text for text in conversion.warnings)
    assert conversion.notes({}) == ["3 annotated beats"]
    _, found, _ = recordings_of("wfdb", tree, annotations="atr", annotated="beats")
    assert found["a1"].labels == [(0.0, 2.0, "N"), (2.0, 9.0, "V"), (9.0, 21.0, "N")]
    (tree / "ann" / "a1.atr").unlink()
    (tree / "bob" / "b1.atr").write_bytes(b"\xff" * 7)
    with pytest.raises(DataError, match=r"b1\.atr: not a WFDB annotation file|only the label|no label"):
        recordings_of("wfdb", tree, annotations="atr")


def test_annotations_that_are_neither_rhythms_nor_beats_are_named(tree: Path) -> None:
    """Sleep stages, as those of slpdb: notes of the code `"`."""
    write_notes = {"symbol": ['"', '"'], "aux_note": ["W", "2 H"], "write_dir": str(tree / "ann")}
    wfdb.wrann("a1", "st", np.array([1, 1500]), **write_notes)
    with pytest.raises(DataError, match=r"--annotations st --annotated rhythm: no label; .*a1\.st \(2 x \"\)"):
        recordings_of("wfdb", tree, annotations="st")
    with pytest.raises(DataError, match=r"--annotated beats: no label; .*annotation files without a beat: "):
        recordings_of("wfdb", tree, annotations="st", annotated="beats")


@pytest.mark.parametrize(
    ("find", "put", "message"),
    [
        (r"a1\.dat", "../b1.dat", r"a1.hea: (it names '../b1.dat'|not a WFDB header)"),
        (r"a1\.dat", "/etc/passwd", r"a1.hea: (it names '/etc/passwd'|not a WFDB header)"),
        (r"a1\.dat", "a9.dat", r"ann/a9.dat is missing, which .*a1.hea names"),
        (r"^a1 2 100 3000", "a1 2 100 9000", "a1: its samples cannot be read|a1: it has not the 9,000 frames"),
        (r"^a1 2 100 3000", "a1 2 100 99999999999", "more than 2,147,483,648 samples are not read"),
        (r"^a1 2 100 3000", "a1 2 0 3000", "no sampling rate|not a WFDB header"),
        (r"^a1 2 ", "a1 two ", "not a WFDB header"),
    ],
)
def test_damaged_headers(tree: Path, find: str, put: str, message: str) -> None:
    header = tree / "ann" / "a1.hea"
    text = header.read_text()
    assert re.search(find, text)
    header.write_text(re.sub(find, put, text))
    with pytest.raises(DataError, match=message):
        recordings_of("wfdb", tree)


@pytest.mark.parametrize("segment", ["../x_2", "/tmp/x_2", "x", "x_9"])
def test_damaged_headers_of_segments(tmp_path: Path, segment: str) -> None:
    multi_segment(tmp_path / "inner", variable=False)
    write(tmp_path, "x_2", {"II": wave(200), "V": wave(200)})
    header = tmp_path / "inner" / "x.hea"
    header.write_text(header.read_text().replace("x_2", segment))
    with pytest.raises(DataError, match=r"x\.hea: (it names|not a WFDB header|its segment)|x_9\.hea is missing"):
        recordings_of("wfdb", tmp_path)


def test_damaged_samples_are_remarked(tree: Path) -> None:
    data = tree / "bob" / "b1.dat"
    body = bytearray(data.read_bytes())
    body[100] ^= 1
    data.write_bytes(body)
    _, _, warnings = recordings_of("wfdb", tree)
    assert warnings == ["records whose samples do not have the checksum of their header: are they damaged?: bob/b1"]


def test_packed_with_the_tool(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    out = tmp_path_factory.mktemp("out")
    manifest = packed("wfdb", tree, out / "folder", "--window", "5")
    import tarfile

    with tarfile.open(out / "tree.tar.gz", "w:gz") as tar:
        tar.add(tree, "tree")
    again = packed("wfdb", out / "tree.tar.gz", out / "archive", "--window", "5")
    assert [s.sha256 for x in manifest.splits.values() for s in x.shards] == [
        s.sha256 for x in again.splits.values() for s in x.shards
    ]
    assert manifest.recordings is not None


def test_options_that_do_not_go_together(tree: Path) -> None:
    for options in ({"splits": ["test=1"]}, {"window": 0}, {"annotations": "../x"}, {"records": "zzz"}):
        with pytest.raises(ConfigError, match=rf"--{next(iter(options))}"):
            recordings_of("wfdb", tree, **options)
    (tree / "nothing").mkdir()
    with pytest.raises(DataError, match="no WFDB header"):
        recordings_of("wfdb", tree / "nothing")
