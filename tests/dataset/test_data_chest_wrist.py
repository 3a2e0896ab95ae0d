"""The converters of WESAD and PPG-DaLiA, on generated files of their layout."""

from __future__ import annotations

import argparse
import pickle
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wearable_trees as trees

from maestro_dist.config.schema import DataConfig
from maestro_dist.config.windows import SplitConfig
from maestro_dist.data.converters import CONVERTERS
from maestro_dist.data.converters.chest_wrist import runs_of
from maestro_dist.data.converters.files import AnySource, Source
from maestro_dist.data.converters.source import Conversion
from maestro_dist.data.load import load_data
from maestro_dist.data.manifest import Manifest
from maestro_dist.data.parts import Remarks
from maestro_dist.data.reader import Request, SplitSource
from maestro_dist.data.recordings.raw import RawRecording
from maestro_dist.data.storage import Storage
from maestro_dist.errors import DataError

ROOT = Path(__file__).parents[2]
MAKE = {"wesad": trees.wesad_person, "ppg_dalia": trees.dalia_person}


def conversion(name: str, source: AnySource, splits: list[str] | None = None, **options: Any) -> Conversion:
    parser = argparse.ArgumentParser()
    CONVERTERS[name].add_arguments(parser)
    arguments = parser.parse_args([f"--{key}={value}" for key, value in options.items()])
    arguments.splits = splits
    return CONVERTERS[name].from_arguments(source, arguments)


def recordings(found: Conversion, remarks: Remarks | None = None) -> dict[str, RawRecording]:
    return {recording.key: recording for recording in found.samples(remarks)}  # type: ignore[misc,union-attr]


def pack(name: str, source: Path, out: Path, *options: str) -> tuple[DataConfig, Manifest]:
    main = runpy.run_path(str(ROOT / "tools" / "pack_dataset.py"))["main"]
    lint = runpy.run_path(str(ROOT / "tools" / "lint_shards.py"))["main"]
    assert main([name, "--source", str(source), "--out", str(out), *options]) == 0
    assert lint([str(out)]) == 0
    config = DataConfig(url=str(out), cache=str(out.parent / "cache"))
    return config, load_data(config)


@pytest.fixture(scope="module")
def wesad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trees.write_people(tmp_path_factory.mktemp("wesad"), trees.wesad_person, [2, 13, 16])


@pytest.fixture(scope="module")
def dalia(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trees.write_people(tmp_path_factory.mktemp("dalia"), trees.dalia_person, [1, 11, 14])


def test_runs_of_equal_values() -> None:
    assert runs_of(np.array([3, 3, 0, 3])) == [(0, 2, 3), (2, 3, 0), (3, 4, 3)]
    assert runs_of(np.array([5])) == [(0, 1, 5)]


def test_wesad_values_labels_and_people(wesad: Path) -> None:
    found = conversion("wesad", wesad)
    remarks = Remarks()
    people = recordings(found, remarks)
    assert {key: (r.subject, r.split) for key, r in people.items()} == {
        "S2": ("S2", "train"),
        "S13": ("S13", "test"),
        "S16": ("S16", "validation"),
    }
    content = pickle.loads((wesad / "S13" / "S13.pkl").read_bytes(), encoding="latin1")["signal"]
    values = people["S13"].values
    assert len(values) == 10
    for key, name in (
        ("ACC", "acc"),
        ("ECG", "ecg"),
        ("EMG", "emg"),
        ("EDA", "eda"),
        ("Temp", "temp"),
        ("Resp", "resp"),
    ):
        np.testing.assert_array_equal(values[f"chest_{name}"], content["chest"][key])
    np.testing.assert_array_equal(values["wrist_acc"], content["wrist"]["ACC"] / 64)  # 1/64 g -> g
    for key in ("BVP", "EDA", "TEMP"):
        np.testing.assert_array_equal(values[f"wrist_{key.lower()}"], content["wrist"][key])
    assert people["S13"].labels == [(5, 25, 0), (30, 40, 2), (40, 55, 1)]  # baseline, amusement, stress
    assert (people["S13"].length_s, people["S13"].start_s) == (60.0, 0.0)
    assert found.description.classes == ("baseline", "stress", "amusement")
    about = {m.name: (m.variates, m.rate_hz, m.unit) for m in found.description.modalities}
    assert about["chest_acc"] == (3, 700.0, "g")
    assert about["wrist_acc"] == (3, 32.0, "g")
    assert about["wrist_bvp"] == (1, 64.0, "device unit")
    assert about["wrist_temp"] == (*about["wrist_eda"][:2], "degC") == (1, 4.0, "degC")
    text = "people whose wrist acceleration is stored in 1/64 g; it was converted to g"
    assert found.notes(remarks.counts) == [f"3 {text}"]
    (warning,) = found.warnings
    assert warning.startswith("files that are not in the source (12): S3/S3.pkl, S4/S4.pkl")
    assert pickle.loads(pickle.dumps(found.parts)) == found.parts


def test_python_2_protocol_0(tmp_path: Path, wesad: Path) -> None:
    trees.write_people(tmp_path, trees.wesad_person, [2], protocol=0)
    one, other = recordings(conversion("wesad", tmp_path))["S2"], recordings(conversion("wesad", wesad))["S2"]
    assert one.labels == other.labels
    for name, values in other.values.items():
        np.testing.assert_array_equal(one.values[name], values)


def test_an_archive_is_read_where_it_is(wesad: Path, tmp_path: Path) -> None:
    archive = shutil.make_archive(str(tmp_path / "WESAD"), "zip", wesad.parent, wesad.name)
    found, expected = recordings(conversion("wesad", Path(archive))), recordings(conversion("wesad", wesad))
    assert set(found) == set(expected)
    np.testing.assert_array_equal(found["S2"].values["chest_emg"], expected["S2"].values["chest_emg"])


@pytest.mark.parametrize("outer", ["zip", "tar", "tar.gz"])
@pytest.mark.parametrize(("folder", "inner"), [("", "zip"), ("of", "zip"), ("", "tar"), ("of", "tgz")])
def test_an_archive_inside_an_archive(dalia: Path, tmp_path: Path, outer: str, folder: str, inner: str) -> None:
    """As UCI has it: `ppg+dalia.zip` holds `data.zip`, which holds the folders; or in one folder, as PhysioNet has all
    files. Deeper archives stay closed, and others do no harm."""
    kinds = {"zip": "zip", "tar": "tar", "tgz": "gztar", "tar.gz": "gztar"}
    (tmp_path / "top" / "of" / "S9").mkdir(parents=True)
    made = shutil.make_archive(str(tmp_path / "data"), kinds[inner], dalia.parent, dalia.name)
    shutil.move(made, tmp_path / "top" / folder / f"data.{inner}")
    (tmp_path / "top" / "readme.pdf").write_text("see the paper")
    (tmp_path / "top" / "of" / "S9" / "S9_E4.zip").write_text("no archive, and not opened")
    (tmp_path / "top" / "more.zip").write_text("no archive")
    source = Path(shutil.make_archive(str(tmp_path / "ppg+dalia"), kinds[outer], tmp_path / "top"))
    expected = recordings(conversion("ppg_dalia", dalia))
    copies = Storage(str(tmp_path / "copies"))
    for place in (None, copies, copies):  # the second time the copies are there
        conversion_here = conversion("ppg_dalia", Source(str(source), place))
        found = recordings(conversion_here)
        assert set(found) == set(expected)
        np.testing.assert_array_equal(found["S1"].values["wrist_bvp"], expected["S1"].values["wrist_bvp"])
        (warning,) = [text for text in conversion_here.warnings if "archive" in text]
        assert "ppg+dalia" in warning
        assert "more.zip: damaged or unreadable archive" in warning
    assert {path.name for path in tmp_path.iterdir()} == {"top", "copies", source.name}


def test_a_damaged_archive_inside_an_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / "top").mkdir()
    (tmp_path / "top" / "data.zip").write_text("<html>404</html>")
    source = shutil.make_archive(str(tmp_path / "ppg+dalia"), "zip", tmp_path / "top")
    for place in (None, Storage(str(tmp_path / "copies"))):
        with pytest.raises(DataError, match=r"no SX/SX.pkl.*ppg\+dalia.zip:data.zip: damaged or unreadable archive"):
            conversion("ppg_dalia", Source(source, place))


def test_wesad_options(wesad: Path) -> None:
    four = conversion("wesad", wesad, classes=4, sensors="wrist", splits=["test=S2", "validation=13"])
    assert four.description.classes[3] == "meditation"
    remarks = Remarks()
    people = recordings(four, remarks)
    assert {key: recording.split for key, recording in people.items()} == {
        "S2": "test",
        "S13": "validation",
        "S16": "train",
    }
    assert set(people["S2"].values) == {"wrist_acc", "wrist_bvp", "wrist_eda", "wrist_temp"}
    assert remarks.lines() == ["people without the condition meditation (3): S2, S13, S16"]
    assert any(
        "--splits names people without any sample (1): 99" in w
        for w in conversion("wesad", wesad, ["test=99"]).warnings
    )


def test_wesad_is_packed_and_cut(wesad: Path, tmp_path: Path) -> None:
    config, manifest = pack("wesad", wesad, tmp_path / "data")
    # 20, 10 and 15 s of the conditions, in windows of 8 s that lie inside one
    assert {name: split.class_counts for name, split in manifest.splits.items()} == {
        name: [2, 1, 1] for name in ("train", "validation", "test")
    }
    source = SplitSource(config.url, manifest, config, tuple(manifest.select(None)), "test")
    batch = source.open().batch(Request(np.arange(4)))
    assert batch.values["chest_ecg"].shape == (4, 5600, 1)
    assert batch.values["wrist_eda"].shape == (4, 32, 1)
    content = pickle.loads((wesad / "S13" / "S13.pkl").read_bytes(), encoding="latin1")["signal"]
    at = int(batch.target.tolist().index(1))  # stress begins after 40 s
    np.testing.assert_array_equal(
        np.asarray(batch.values["chest_ecg"][at]), content["chest"]["ECG"][28000:33600].astype(np.float32)
    )
    one_out = config.model_copy(update={"split": SplitConfig(by="subject", test=["S2"], validation=["S16"])})
    splits = load_data(one_out).splits
    assert [splits[name].samples for name in ("train", "validation", "test")] == [4, 4, 4]


def test_dalia_heart_rates_are_of_their_windows(dalia: Path, tmp_path: Path) -> None:
    config, manifest = pack("ppg_dalia", dalia, tmp_path / "data")
    assert manifest.task == "regression"
    assert [m.name for m in manifest.modalities] == ["chest_acc", "wrist_acc", "wrist_bvp", "wrist_eda", "wrist_temp"]
    assert {name: split.samples for name, split in manifest.splits.items()} == {
        "train": 25,
        "validation": 25,
        "test": 25,
    }
    content = pickle.loads((dalia / "S14" / "S14.pkl").read_bytes(), encoding="latin1")
    source = SplitSource(config.url, manifest, config, tuple(manifest.select(None)), "test")
    batch = source.open().batch(Request(np.arange(25)))
    np.testing.assert_array_equal(np.sort(np.asarray(batch.target)), content["label"].astype(np.float32))
    for row, target in enumerate(np.asarray(batch.target).tolist()):
        number = round(target - 60)  # window `number` has the heart rate 60 + number
        bvp = content["signal"]["wrist"]["BVP"][128 * number : 128 * number + 512].astype(np.float32)
        np.testing.assert_array_equal(np.asarray(batch.values["wrist_bvp"][row]), bvp)
        acc = content["signal"]["wrist"]["ACC"][64 * number : 64 * number + 256].astype(np.float32)  # in g already
        np.testing.assert_array_equal(np.asarray(batch.values["wrist_acc"][row]), acc)


def test_dalia_activities(dalia: Path, tmp_path: Path) -> None:
    found = conversion("ppg_dalia", dalia, target="activity", chest="none")
    people = recordings(found)
    assert people["S1"].labels == [(4, 20, 0), (20, 40, 6), (44, 56, 7)]
    assert set(people["S1"].values) == {"wrist_acc", "wrist_bvp", "wrist_eda", "wrist_temp"}
    assert found.description.classes[6:] == ("walking", "working")
    _, manifest = pack("ppg_dalia", dalia, tmp_path / "data", "--target", "activity", "--chest", "none")
    assert manifest.split("train").class_counts == [5, 0, 0, 0, 0, 0, 7, 3]
    assert {key: r.split for key, r in people.items()} == {"S1": "train", "S11": "validation", "S14": "test"}


def test_dalia_warns_of_the_ecg(dalia: Path) -> None:
    found = conversion("ppg_dalia", dalia, chest="all")
    assert found.warnings[-1].startswith("--chest all: the heart rate was computed from chest_ecg")
    assert set(recordings(found)["S1"].values) >= {"chest_ecg", "chest_resp"}
    assert "chest_ecg" not in "".join(conversion("ppg_dalia", dalia, chest="all", target="activity").warnings)


def put(*path: str, value: Callable[[Any], Any] | None) -> trees.Change:
    """A change of one entry of the dictionary; None: it is removed."""

    def change(content: dict[str, Any]) -> None:
        for key in path[:-1]:
            content = content[key]
        if value is None:
            del content[path[-1]]
        else:
            content[path[-1]] = value(content[path[-1]])

    return change


WRIST_ACC = ("signal", "wrist", "ACC")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("wesad", put("signal", value=None), "it has no 'signal'"),
        ("wesad", put("signal", "wrist", value=None), "signal has no 'wrist'"),
        ("wesad", put("signal", "chest", "Resp", value=None), "chest has no numbers in 'Resp'"),
        (
            "wesad",
            put("signal", "chest", "ECG", value=lambda x: x[:-4900]),
            "chest_ecg .700 Hz. lasts 53.0 s, the signals 60.0 s",
        ),
        ("wesad", put("signal", "wrist", "BVP", value=lambda x: x[::2]), "wrist_bvp .64 Hz. lasts 30.0 s, the signals"),
        (
            "wesad",
            put(*WRIST_ACC, value=lambda x: x[:, :2]),
            r"wrist: ACC has shape \(1920, 2\) instead of \(steps, 3\)",
        ),
        ("wesad", put(*WRIST_ACC, value=lambda x: x / 8), "neither about 1 .* nor about 64"),
        ("wesad", put(*WRIST_ACC, value=lambda x: x * np.nan), "is nan: neither"),
        ("wesad", put("signal", "wrist", "EDA", value=lambda x: x * np.inf), "EDA has an infinite number in row 0"),
        ("wesad", put("signal", "wrist", "EDA", value=lambda x: x[:0]), "wrist has no numbers in 'EDA'"),
        ("wesad", put("signal", "wrist", "EDA", value=lambda x: x.tolist()), "wrist has no numbers in 'EDA'"),
        ("wesad", put("subject", value=lambda x: "S3"), "its subject is 'S3', not S5"),
        ("wesad", put("subject", value=lambda x: 5), "its subject is 'int', not S5"),
        ("wesad", put("label", value=None), "has no numbers in 'label'"),
        ("wesad", put("label", value=lambda x: x + 4), "label has 11; its values are 0 to 7"),
        ("wesad", put("label", value=lambda x: x + 0.5), "label has 0.5; its values are 0 to 7"),
        ("wesad", put("label", value=lambda x: x[::2]), "label .700 Hz. lasts 30.0 s, the signals 60.0 s"),
        (
            "ppg_dalia",
            put("label", value=lambda x: x[:-4]),
            "label .8 s every 2 s. lasts 48.0 s, the signals 56.0",
        ),
        ("ppg_dalia", put("label", value=lambda x: x * np.nan), "label has the heart rate nan in row 0"),
        ("ppg_dalia", put("label", value=lambda x: x - 61), "label has the heart rate -0.95 in row 0"),
        ("ppg_dalia", put("rpeaks", value=None), ""),
        ("ppg_dalia", put("signal", "chest", "EMG", value=None), ""),
    ],
)
def test_odd_files_are_named(name: str, change: trees.Change, message: str, tmp_path: Path) -> None:
    trees.write_people(tmp_path, MAKE[name], [5], change)
    if not message:  # it is not needed
        assert recordings(conversion(name, tmp_path))
        return
    with pytest.raises(DataError, match=rf"S5/S5.pkl.*{message}") as error:
        recordings(conversion(name, tmp_path))
    assert "\n" not in str(error.value)


def test_streams_and_labels_that_end_earlier_are_named(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["signal"]["wrist"]["TEMP"] = content["signal"]["wrist"]["TEMP"][:-12]
        content["label"] = content["label"][:-1400]

    trees.write_people(tmp_path, trees.wesad_person, [5], change)
    remarks = Remarks()
    person = recordings(conversion("wesad", tmp_path), remarks)["S5"]
    assert person.length_s == 60.0
    assert len(person.values["wrist_temp"]) == 228
    (line,) = remarks.lines()
    assert line.startswith(
        "signals and labels that end at another time than the others of the person (2): wrist_temp (4 Hz)"
    )
    assert "(-3.0 s), label (700 Hz) of" in line
    assert line.endswith("(-2.0 s)")


def test_heart_rates_need_not_reach_the_end(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:  # 1.9 s more than 25 windows of 8 s every 2 s
        for device in content["signal"].values():
            for key, values in device.items():
                device[key] = np.concatenate([values, values[: round(len(values) / 56 * 1.9)]])

    trees.write_people(tmp_path, trees.dalia_person, [5], change)
    remarks = Remarks()
    person = recordings(conversion("ppg_dalia", tmp_path), remarks)["S5"]
    assert len(person.labels) == 25
    assert person.length_s == pytest.approx(57.9, abs=0.1)
    assert remarks.lines() == []


def test_odd_activities(tmp_path: Path) -> None:
    trees.write_people(tmp_path, trees.dalia_person, [5], put("activity", value=lambda x: x + 1))
    with pytest.raises(DataError, match=r"S5.pkl: activity has 9; its values are 0 to 8"):
        recordings(conversion("ppg_dalia", tmp_path, target="activity"))


def test_a_person_without_labels_is_left_out(tmp_path: Path) -> None:
    trees.write_people(tmp_path, trees.wesad_person, [2, 3], put("label", value=lambda x: 0 * x))
    remarks = Remarks()
    assert set(recordings(conversion("wesad", tmp_path), remarks)) == {"S2"}
    assert remarks.lines() == ["people without any labelled condition, left out: S3"]
    trees.write_people(tmp_path, trees.dalia_person, [2, 3], put("activity", value=lambda x: 0 * x))
    remarks = Remarks()
    assert set(recordings(conversion("ppg_dalia", tmp_path, target="activity"), remarks)) == {"S2"}
    assert remarks.lines() == ["people without any label, left out: S3"]


def test_files_that_are_cut_doubled_missing_or_of_nobody(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no SX/SX.pkl; the source is the folder or archive"):
        conversion("wesad", tmp_path)
    trees.write_people(tmp_path, trees.wesad_person, [2, 12])
    found = conversion("wesad", tmp_path)
    assert any(w.startswith("people who are not among those published, used nevertheless: ") for w in found.warnings)
    file = tmp_path / "S2" / "S2.pkl"
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "S2.pkl").write_bytes(file.read_bytes())
    assert set(recordings(conversion("wesad", tmp_path))) == {"S2", "S12"}  # the same file twice
    (tmp_path / "copy" / "S2.pkl").write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DataError, match="another file with this name and other content"):
        recordings(conversion("wesad", tmp_path))
    (tmp_path / "copy" / "S2.pkl").unlink()
    file.write_bytes(file.read_bytes()[: 10**6])
    with pytest.raises(DataError, match=r"S2/S2.pkl: it ends too early: the file was cut short"):
        recordings(conversion("wesad", tmp_path))
    file.write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(DataError, match=r"S2/S2.pkl: it refers to 'os'.'system', which is not plain data"):
        recordings(conversion("wesad", tmp_path))
