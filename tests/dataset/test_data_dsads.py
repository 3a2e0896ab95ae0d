"""The converter of DSADS, on generated files of its layout."""

from __future__ import annotations

import argparse
import pickle
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wearable_trees as trees

from maestro_dist.config.schema import DataConfig
from maestro_dist.data.converters.dsads import Dsads
from maestro_dist.data.converters.source import Conversion
from maestro_dist.data.load import load_data
from maestro_dist.data.reader import Request, SplitSource
from maestro_dist.data.recordings.raw import RawRecording
from maestro_dist.errors import DataError

ROOT = Path(__file__).parents[2]


def conversion(source: Path, splits: list[str] | None = None, **options: Any) -> Conversion:
    parser = argparse.ArgumentParser()
    Dsads().add_arguments(parser)
    arguments = parser.parse_args([f"--{key}={value}" for key, value in options.items()])
    arguments.splits = splits
    return Dsads().from_arguments(source, arguments)


def recordings(found: Conversion) -> dict[str, RawRecording]:
    return {recording.key: recording for recording in found.samples()}  # type: ignore[misc]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trees.dsads(tmp_path_factory.mktemp("dsads"), [1, 19], [1, 6, 8])


def test_values_labels_and_people(tree: Path) -> None:
    found = conversion(tree)
    sessions = recordings(found)
    assert {key: (r.labels, r.subject, r.split) for key, r in sessions.items()} == {
        "a01-p1": (0, "p1", "train"),
        "a01-p6": (0, "p6", "validation"),
        "a01-p8": (0, "p8", "test"),
        "a19-p1": (18, "p1", "train"),
        "a19-p6": (18, "p6", "validation"),
        "a19-p8": (18, "p8", "test"),
    }
    values = sessions["a19-p6"].values
    assert list(values) == ["torso", "right_arm", "left_arm", "right_leg", "left_leg"]
    for segment in (1, 2, 60):
        rows = trees.dsads_rows(19, 6, segment)
        at = slice(125 * (segment - 1), 125 * segment)
        for n, name in enumerate(values):
            np.testing.assert_allclose(values[name][at], rows[:, 9 * n : 9 * n + 9], atol=1e-9)
    (warning,) = found.warnings
    assert warning.startswith("recordings that are not in the source, of 152 (146): a01/p2, a01/p3")
    assert pickle.loads(pickle.dumps(found.parts)) == found.parts


def test_sensors_as_modalities(tree: Path) -> None:
    found = conversion(tree, modalities="sensors", splits=["test=1", "validation=6"])
    about = {m.name: (m.variates, m.unit) for m in found.description.modalities}
    assert len(about) == 15
    assert about["torso_acc"] == (3, "m/s^2")
    assert about["left_leg_gyro"] == (3, "rad/s")
    session = recordings(found)["a01-p8"]
    assert session.split == "train"
    np.testing.assert_allclose(session.values["right_arm_mag"][:125], trees.dsads_rows(1, 8, 1)[:, 15:18], atol=1e-9)


def test_windows_are_the_segments(tree: Path, tmp_path: Path) -> None:
    main = runpy.run_path(str(ROOT / "tools" / "pack_dataset.py"))["main"]
    lint = runpy.run_path(str(ROOT / "tools" / "lint_shards.py"))["main"]
    url = str(tmp_path / "data")
    assert main(["dsads", "--source", str(tree), "--out", url]) == 0
    assert lint([url]) == 0
    config = DataConfig(url=url, cache=str(tmp_path / "cache"))
    manifest = load_data(config)
    assert {n: sum(s.class_counts) for n, s in manifest.splits.items()} == dict.fromkeys(
        ("train", "validation", "test"), 120
    )
    source = SplitSource(url, manifest, config, tuple(manifest.select(None)), "test")
    batch = source.open().batch(Request(np.arange(120)))
    assert batch.values["torso"].shape == (120, 125, 9)
    expected = {segment: trees.dsads_rows(19, 8, segment)[:, 36:].astype(np.float32) for segment in (1, 30, 60)}
    of_19 = np.asarray(batch.values["left_leg"])[np.asarray(batch.target) == 18]
    assert len(of_19) == 60
    for rows in expected.values():
        assert sum(np.allclose(window, rows, atol=1e-4) for window in of_19) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: "\n".join(text.split("\n")[:124]) + "\n", "124 rows instead of 125 .*5 s at 25 Hz"),
        (lambda text: text + text.split("\n")[0] + "\n", "126 rows instead of 125"),
        (lambda text: text.replace(",", " "), "not a table of numbers"),
        (lambda text: "\n".join(line.rpartition(",")[0] for line in text.split("\n")[:-1]), "44 columns instead of 45"),
        (lambda text: text.replace(",", ",1,", 1), "not a table of numbers"),
        (lambda text: "nan" + text[text.index(",") :], "row 1 is not finite"),
        (lambda text: "", r"not a table of numbers \(it is empty\)"),
        (lambda text: "x" + text, "not a table of numbers"),
    ],
)
def test_odd_files_are_named(change: Any, message: str, tmp_path: Path) -> None:
    trees.dsads(tmp_path, [3], [2])
    file = tmp_path / "data" / "a03" / "p2" / "s07.txt"
    file.write_text(change(file.read_text()))
    with pytest.raises(DataError, match=rf"a03/p2/s07.txt: {message}") as error:
        recordings(conversion(tmp_path))
    assert "\n" not in str(error.value)


def test_missing_doubled_and_unknown_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no aXX/pY/sZZ.txt"):
        conversion(tmp_path)
    trees.dsads(tmp_path, [3], [2])
    place = tmp_path / "data" / "a03" / "p2"
    copy = tmp_path / "copy" / "a03" / "p2"
    copy.mkdir(parents=True)
    (copy / "s01.txt").write_text((place / "s01.txt").read_text())
    assert set(recordings(conversion(tmp_path))) == {"a03-p2"}
    (copy / "s01.txt").write_text((place / "s02.txt").read_text())
    with pytest.raises(DataError, match="another file with this name and other content"):
        recordings(conversion(tmp_path))
    (copy / "s01.txt").unlink()
    (place / "s05.txt").unlink()
    (place / "s60.txt").unlink()
    with pytest.raises(
        DataError, match=r"a03/p2/s05.txt is missing \(2 are: a03/p2/s05.txt, a03/p2/s60.txt\), but other"
    ):
        conversion(tmp_path)
    trees.dsads(tmp_path, [3], [2])
    (place / "s61.txt").write_text((place / "s60.txt").read_text())
    with pytest.raises(DataError, match=r"s61.txt: the data set has a01 to a19, p1 to p8 and s01 to s60; take it out"):
        conversion(tmp_path)
