"""The converter of PAM (PAMAP2), on generated files of its layout."""

from __future__ import annotations

import argparse
import pickle
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wearable_trees as trees
from converting import conversion_of

from maestro_dist.config.schema import DataConfig
from maestro_dist.data.converters.pam import CHOICES, Pam
from maestro_dist.data.converters.source import Conversion
from maestro_dist.data.load import load_data
from maestro_dist.data.parts import Remarks
from maestro_dist.data.reader import Request, SplitSource
from maestro_dist.data.recordings.raw import RawRecording
from maestro_dist.errors import DataError

ROOT = Path(__file__).parents[2]


def conversion(source: Path, splits: list[str] | None = None, **options: Any) -> Conversion:
    parser = argparse.ArgumentParser()
    Pam().add_arguments(parser)
    arguments = parser.parse_args([f"--{key}={value}" for key, value in options.items()])
    arguments.splits = splits
    return Pam().from_arguments(source, arguments)


def recordings(found: Conversion, remarks: Remarks | None = None) -> dict[str, RawRecording]:
    return {recording.key: recording for recording in found.samples(remarks)}  # type: ignore[misc]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = trees.pamap(tmp_path_factory.mktemp("pam"), [101, 105, 106])
    trees.pamap(folder, [109], [(0, 3), (24, 10)])
    return trees.pamap(folder, [101], [(0, 2), (20, 9), (9, 8)], "Optional")


def test_values_labels_and_people(tree: Path) -> None:
    found, remarks = conversion(tree), Remarks()
    people = recordings(found, remarks)
    assert {key: (r.subject, r.split) for key, r in people.items()} == {
        "subject101": ("subject101", "train"),
        "subject105": ("subject105", "validation"),
        "subject106": ("subject106", "test"),
    }
    one = people["subject105"]
    assert one.labels == [(3, 17, 0), (19, 39, 3), (46, 59, 7)]  # lying, walking, ironing; running is none of the eight
    assert one.length_s == 59.0
    rows = np.loadtxt(tree / "Protocol" / "subject105.dat")
    assert len(one.values) == 13
    for place, first in (("hand", 3), ("chest", 20), ("ankle", 37)):
        np.testing.assert_array_equal(one.values[f"{place}_temp"], rows[:, first : first + 1])
        np.testing.assert_array_equal(one.values[f"{place}_acc"], rows[:, first + 1 : first + 4])
        np.testing.assert_array_equal(one.values[f"{place}_gyro"], rows[:, first + 7 : first + 10])
        np.testing.assert_array_equal(one.values[f"{place}_mag"], rows[:, first + 10 : first + 13])
    assert np.isnan(one.values["hand_acc"][7]).all()
    heart_rate = one.values["heart_rate"]
    at = np.flatnonzero(~np.isnan(rows[:, 2])) // 10
    assert heart_rate.shape == (590, 1)
    assert np.flatnonzero(~np.isnan(heart_rate[:, 0])).tolist() == at.tolist()
    assert np.nanmax(heart_rate) == np.nanmin(heart_rate) == 85
    assert remarks.lines() == ["recordings without any of the activities, left out: subject109"]
    about = {m.name: (m.variates, m.rate_hz, m.steps, m.unit) for m in found.description.modalities}
    assert about["heart_rate"] == (1, 10.0, 60, "1/min")
    assert about["ankle_mag"] == (3, 100.0, 600, "uT")
    assert found.description.classes == (
        *("lying", "sitting", "standing", "walking", "cycling", "nordic_walking", "vacuum_cleaning", "ironing"),
    )
    (warning,) = found.warnings
    assert warning.startswith("files that are not in the source (5): Protocol/subject102.dat")
    assert pickle.loads(pickle.dumps(found.parts)) == found.parts


def test_the_17_columns_of_the_hand(tree: Path) -> None:
    found = conversion(tree, sensors="hand", splits=["test=101"])
    values = recordings(found)["subject101"].values
    rows = np.loadtxt(tree / "Protocol" / "subject101.dat")
    assert len(values) == 17
    np.testing.assert_array_equal(np.concatenate(list(values.values()), axis=1), rows[:, 3:20])
    units = {m.name: m.unit for m in found.description.modalities}
    assert (units["hand_acc6_z"], units["hand_gyro_x"], units["hand_mag_z"]) == ("m/s^2", "rad/s", "uT")
    assert (units["hand_temp"], units["hand_orientation_1"]) == ("degC", "invalid")


def test_more_activities(tree: Path) -> None:
    twelve = recordings(conversion(tree, activities="protocol"))
    assert (39, 46, 4) in twelve["subject106"].labels  # running
    assert twelve["subject109"].labels == [(3, 13, 11)]
    every = conversion(tree, activities="all")
    people = recordings(every)
    assert people["subject101-optional"].labels == [
        (2, 11, every.description.classes.index("playing_soccer")),
        (11, 19, every.description.classes.index("watching_tv")),
    ]
    assert people["subject101-optional"].subject == "subject101"
    assert len(every.description.classes) == 18
    assert [len(CHOICES[name]) for name in ("eight", "protocol", "all")] == [8, 12, 18]


def test_windows_lie_inside_an_activity(tree: Path, tmp_path: Path) -> None:
    main = runpy.run_path(str(ROOT / "tools" / "pack_dataset.py"))["main"]
    lint = runpy.run_path(str(ROOT / "tools" / "lint_shards.py"))["main"]
    url = str(tmp_path / "data")
    assert main(["pam", "--source", str(tree), "--out", url]) == 0
    assert lint([url]) == 0
    config = DataConfig(url=url, cache=str(tmp_path / "cache"))
    manifest = load_data(config)
    # 14, 20 and 13 s, in windows of 6 s every 3 s
    assert {name: split.class_counts for name, split in manifest.splits.items()} == {
        name: [3, 0, 0, 5, 0, 0, 0, 3] for name in ("train", "validation", "test")
    }
    source = SplitSource(url, manifest, config, tuple(manifest.select(None)), "test")
    batch = source.open().batch(Request(np.arange(11)))
    assert batch.values["chest_gyro"].shape == (11, 600, 3)
    assert batch.values["heart_rate"].shape == (11, 60, 1)


SHORT = ((0, 1), (1, 7))


def change_rows(change: Any) -> Any:
    def apply(path: Path) -> None:
        rows = trees.pamap_rows(103, SHORT)
        trees.write_pamap(path, change(rows))

    return apply


def set_value(row: int, column: int, value: float) -> Any:
    def change(rows: np.ndarray) -> np.ndarray:
        rows[row, column] = value
        return rows

    return change_rows(change)


def scaled(rows: np.ndarray) -> np.ndarray:
    rows[:, 0] *= 2
    return rows


@pytest.mark.parametrize(
    ("apply", "message"),
    [
        (change_rows(lambda rows: rows[:, :53]), "53 columns instead of 54"),
        (change_rows(scaled), "its rows are 50 times a second, not 100"),
        (set_value(5, 0, 5.12), "row 6 is not after the row before it"),
        (change_rows(lambda rows: np.concatenate([rows, rows])), "row 801 is not after the row before it"),
        (set_value(-1, 0, 1e7), "so most are left out"),
        (set_value(-1, 0, 1e30), "its times reach 1e.30 s"),
        (set_value(5, 1, 8), "row 6 has the unknown activity 8"),
        (set_value(5, 1, -1), "row 6 has the unknown activity -1"),
        (set_value(5, 4, np.inf), "row 6 is not finite"),
        (lambda path: path.write_text(""), "it is empty"),
        (lambda path: path.write_bytes(path.read_bytes()[:100_007]), "not a table of numbers"),
        (lambda path: path.write_text(path.read_text().replace("5.12 ", "NaN ", 1)), "row 1 has no time"),
        (
            lambda path: path.write_text(path.read_text().replace("5.13 ", "5.134 ", 1)),
            "row 2 at 5.134 s is not at a step",
        ),
    ],
)
def test_odd_files_are_named(apply: Any, message: str, tmp_path: Path) -> None:
    trees.pamap(tmp_path, [103], SHORT)
    apply(tmp_path / "Protocol" / "subject103.dat")
    with pytest.raises(DataError, match=rf"Protocol/subject103.dat: .*{message}") as error:
        recordings(conversion(tmp_path))
    assert "\n" not in str(error.value)


def test_rows_that_are_left_out_become_gaps(tmp_path: Path) -> None:
    (tmp_path / "Protocol").mkdir()
    rows = trees.pamap_rows(103, trees.PROTOCOL)
    trees.write_pamap(tmp_path / "Protocol" / "subject103.dat", np.delete(rows, np.arange(400, 450), axis=0))
    remarks = Remarks()
    found = conversion(tmp_path)
    one = recordings(found, remarks)["subject103"]
    assert found.notes(remarks.counts) == ["50 rows that the files leave out, kept as gaps"]
    assert one.labels == [(3, 17, 0), (19, 39, 3), (46, 59, 7)]
    assert np.isnan(one.values["hand_acc"][400:450]).all()
    np.testing.assert_allclose(one.values["hand_acc"][450], rows[450, 4:7], rtol=1e-5)


@pytest.mark.parametrize("name", ["pam", "physionet2012"])
def test_prepared_arrays_are_refused_by_name(tmp_path: Path, name: str) -> None:
    """Raindrop publishes PAM and P12 as arrays of windows, without the people."""
    (tmp_path / "PAMdata" / "processed_data").mkdir(parents=True)
    np.save(tmp_path / "PAMdata" / "processed_data" / "PTdict_list.npy", np.zeros((2, 600, 17)))
    with pytest.raises(
        DataError, match=r"PTdict_list.npy is of the arrays prepared for Raindrop.* fetch the files of "
    ):
        conversion_of(name, tmp_path)


def test_missing_and_doubled_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no subject10X.dat; the source is the folder"):
        conversion(tmp_path)
    trees.pamap(tmp_path, [101], [(20, 9)], "Optional")
    with pytest.raises(DataError, match=r"no subject10X.dat"):
        conversion(tmp_path, activities="all")
    trees.pamap(tmp_path, [101, 110], SHORT)
    assert set(recordings(conversion(tmp_path / "Protocol"))) == {"subject101", "subject110"}
    assert any("not among those published, used nevertheless: subject110" in w for w in conversion(tmp_path).warnings)
    file = tmp_path / "Protocol" / "subject101.dat"
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / file.name).write_bytes(file.read_bytes())
    assert set(recordings(conversion(tmp_path))) == {"subject101", "subject110"}
    trees.write_pamap(tmp_path / "copy" / file.name, trees.pamap_rows(102, SHORT))
    with pytest.raises(DataError, match="another file with this name and other content"):
        recordings(conversion(tmp_path))
