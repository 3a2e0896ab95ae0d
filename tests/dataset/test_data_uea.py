"""The converter of the UEA archive, on an excerpt of BasicMotions and on written files."""

from __future__ import annotations

import argparse
import runpy
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maestro_dist.config.schema import DataConfig
from maestro_dist.data.converters.source import Conversion
from maestro_dist.data.converters.uea import Uea
from maestro_dist.data.load import load_data
from maestro_dist.data.manifest import load_manifest
from maestro_dist.data.parts import Remarks
from maestro_dist.data.reader import Request, SplitSource
from maestro_dist.errors import ConfigError, DataError

ROOT = Path(__file__).parents[2]
EXCERPT = ROOT / "tests" / "data" / "uea"
HEADER = """# a comment
@problemName Toy
@timeStamps false
@missing true
@univariate false
@dimensions 2
@equalLength true
@seriesLength 3
@classLabel true up down
@data
"""
SERIES = ["1,2,3:4,5,6:up", "3,2,1:-1,?,-3e0:down", "0,0,1:0,0,2:up", "2,1,0:9,8,7:down"]


def conversion(source: Path, **options: Any) -> Conversion:
    parser = argparse.ArgumentParser()
    Uea().add_arguments(parser)
    arguments = parser.parse_args([f"--{name}={value}" for name, value in options.items()])
    arguments.splits = None
    return Uea().from_arguments(source, arguments)


def toy(folder: Path, header: str = HEADER, train: list[str] = SERIES, test: list[str] = SERIES) -> Path:
    folder.mkdir(exist_ok=True)
    for part, series in (("TRAIN", train), ("TEST", test)):
        (folder / f"Toy_{part}.ts").write_text(header + "\n".join(series) + "\n")
    return folder


def test_values_are_those_of_the_text() -> None:
    samples = {sample.key: sample for sample in conversion(EXCERPT, rate=10, groups="acc=1-3,gyro=4-6").samples()}
    for part, count in (("TRAIN", 12), ("TEST", 8)):
        lines = (EXCERPT / f"BasicMotions_{part}.ts").read_text().splitlines()
        lines = [line for line in lines[lines.index("@data") + 1 :] if line]
        assert len(lines) == count
        for number, line in enumerate(lines):
            *dimensions, label = line.split(":")
            array = np.array([[float(x) for x in text.split(",")] for text in dimensions]).T
            sample = samples[f"{part.lower()}-{number:06d}"]
            np.testing.assert_array_equal(sample.values["acc"], array[:, :3])
            np.testing.assert_array_equal(sample.values["gyro"], array[:, 3:])
            assert ("Standing", "Running", "Walking", "Badminton")[int(sample.label)] == label
            assert (sample.start_s, sample.duration_s, sample.subject) == (0.0, 10.0, "")
            assert sample.split in (("train", "validation") if part == "TRAIN" else ("test",))


def test_validation_is_cut_by_class_with_a_seed() -> None:
    def chosen(**options: Any) -> set[str]:
        samples = list(conversion(EXCERPT, **options).samples())
        assert Counter(s.label for s in samples if s.split == "test") == dict.fromkeys(range(4), 2)
        by_class = Counter(s.label for s in samples if s.split == "validation")
        assert len(set(by_class.values())) < 2
        return {s.key for s in samples if s.split == "validation"}

    assert len(chosen()) == 4
    assert chosen() == chosen()
    assert len(chosen(validation=0.67)) == 8
    assert len(chosen(validation=0.99)) == 8  # one of each class stays for training
    assert chosen(validation=0) == set()
    assert len({frozenset(chosen(seed=seed)) for seed in range(6)}) > 1


def test_both_forms_give_the_same_windows(tmp_path: Path) -> None:
    main = runpy.run_path(str(ROOT / "tools" / "pack_dataset.py"))["main"]
    lint = runpy.run_path(str(ROOT / "tools" / "lint_shards.py"))["main"]
    batches = {}
    for form in ("windows", "recordings"):
        url = str(tmp_path / form)
        assert main(["uea", "--source", str(EXCERPT), "--out", url, "--form", form, "--rate", "10"]) == 0
        assert lint([url]) == 0
        config = DataConfig(url=url, cache=str(tmp_path / "cache"))
        manifest = load_data(config)
        assert {name: split.samples for name, split in manifest.splits.items()} == {
            "train": 8,
            "validation": 4,
            "test": 8,
        }
        source = SplitSource(url, manifest, config, tuple(manifest.select(None)), "test")
        batches[form] = source.open().batch(Request(np.arange(8)))
    assert [m.name for m in load_manifest(str(tmp_path / "windows")).modalities] == [f"dim_{n}" for n in range(1, 7)]
    np.testing.assert_array_equal(batches["windows"].target, batches["recordings"].target)
    for name, array in batches["windows"].values.items():
        np.testing.assert_array_equal(array, batches["recordings"].values[name])


def test_series_of_unequal_length(tmp_path: Path) -> None:
    header = HEADER.replace("@equalLength true\n@seriesLength 3", "@equalLength false")
    source = toy(tmp_path, header, [*SERIES, "1,2,3,4,5:1,2,3,4,5:up"])
    with pytest.raises(ConfigError, match=r"have 3 to 5 steps; use --form recordings, which makes one window of each"):
        conversion(source)
    found = conversion(source, form="recordings", rate=2)
    assert found.description.window is not None
    assert found.description.window.length_s == 2.5
    recordings = list(found.samples())
    assert [len(r.values["dim_1"]) for r in recordings] == [3, 3, 3, 3, 5, 3, 3, 3, 3]  # type: ignore[union-attr]


def test_missing_values_comments_and_empty_series(tmp_path: Path) -> None:
    source = toy(tmp_path, train=["# no series", *SERIES, "", "?,?,NaN:?,?,?:up"])
    remarks = Remarks()
    samples = list(conversion(source, validation=0).samples(remarks))
    assert len(samples) == 8
    np.testing.assert_array_equal(samples[1].values["dim_2"], [[-1], [np.nan], [-3]])
    (line,) = remarks.lines()
    assert line.startswith("series without any value, left out: line 17 of")


def test_line_ends_and_letters_of_other_systems(tmp_path: Path) -> None:
    source = toy(tmp_path)
    expected = [sample.values for sample in conversion(source).samples()]
    for part in ("TRAIN", "TEST"):
        text = "# a\x0cb\x85c\n" + (source / f"Toy_{part}.ts").read_text().replace("@data", "@DATA")
        (source / f"Toy_{part}.ts").write_bytes(text.replace("\n", "\r\n").encode("latin-1"))
    for found, values in zip(conversion(source).samples(), expected, strict=True):
        np.testing.assert_array_equal(found.values["dim_1"], values["dim_1"])
        np.testing.assert_array_equal(found.values["dim_2"], values["dim_2"])


def test_classes_may_be_in_another_order_in_the_test_file(tmp_path: Path) -> None:
    source = toy(tmp_path)
    text = (source / "Toy_TEST.ts").read_text().replace("true up down", "true down up")
    (source / "Toy_TEST.ts").write_text(text)
    labels = [sample.label for sample in conversion(source, validation=0).samples()]
    assert labels == [0, 1, 0, 1] * 2


NUMBERS = ["1,2,3:4,5,6:1.5", "3,2,1:-1,?,-3e0:-2e1", "0,0,1:0,0,2:1.5", "2,1,0:9,8,7:0", "5,5,5:6,6,6:1e3"]


@pytest.mark.parametrize("form", ["windows", "recordings"])
def test_the_regression_archive(tmp_path: Path, form: str) -> None:
    """TSER: a number for each series; tabs between the name and the value of a tag."""
    header = HEADER.replace("@classLabel true up down", "@targetlabel true").replace(" ", "\t")
    source = toy(tmp_path / "toy", header.replace("#\ta\tcomment", "# a comment"), NUMBERS, NUMBERS[:2])
    found = conversion(source, form=form)
    about = found.description
    assert (about.name, about.task, about.classes) == ("tser_Toy", "regression", ())
    samples = {s.key: s for s in found.samples()}
    targets = [getattr(samples[f"train-{n:06d}"], "label" if form == "windows" else "labels") for n in range(5)]
    assert targets == [1.5, -20, 1.5, 0, 1000]
    splits = Counter(sample.split for sample in samples.values())
    assert splits == {"train": 4, "validation": 1, "test": 2}  # a fifth of all, whatever the numbers are
    main = runpy.run_path(str(ROOT / "tools" / "pack_dataset.py"))["main"]
    out = str(tmp_path / "out")
    assert main(["uea", "--source", str(source), "--out", out, "--form", form]) == 0
    assert load_manifest(out).task == "regression"


def test_classes_and_numbers_do_not_mix(tmp_path: Path) -> None:
    source = toy(tmp_path)
    text = (source / "Toy_TEST.ts").read_text().replace("@classLabel true up down", "@targetLabel true")
    (source / "Toy_TEST.ts").write_text(text.replace(":up", ":1").replace(":down", ":2"))
    with pytest.raises(DataError, match=r"Toy_TEST.ts: @targetLabel differs from that of"):
        conversion(source)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("@data\n", "", r"line 10 comes before @data, but is no comment"),
        ("@timeStamps false", "@timeStamps true", "@timeStamps true: series with time stamps cannot be read"),
        ("@classLabel true up down", "@classLabel false", "@classLabel has no classes"),
        ("@classLabel true up down", "@classLabel true up", "class 'down' is not in @classLabel"),
        ("@classLabel true up down", "@targetLabel true", r"line 11: its target 'up' is not a number"),
        (
            "@classLabel true up down",
            "@classLabel true up down\n@targetLabel true",
            "both @classLabel and @targetLabel",
        ),
        ("@dimensions 2", "@dimensions 3", r"line 11 has 2 dimensions instead of 3"),
        ("@dimensions 2", "@dimensions two", "@dimensions 'two' is not a whole number"),
        ("@seriesLength 3", "@seriesLength 4", r"line 11 has 3 steps instead of 4"),
        ("@missing true", "@missing true\n@missing true", "line 5: @missing is there twice"),
        ("@missing true", "@lenght 5", "line 4: @lenght is unknown"),
        ("@equalLength true", "@equalLength yes", "@equallength 'yes' is neither true nor false"),
        ("@univariate false", "@univariate true", "@univariate true, but @dimensions 2"),
        ("@problemName Toy\n", "", "no @problemName"),
        ("1,2,3:4", "1,2,3", r"line 11 has 1 dimensions instead of 2"),
        ("1,2,3:4,5,6", "1,2,x:4,5,6", r"line 11, dimension 1: could not convert string to float: 'x'"),
        ("1,2,3:4,5,6", "1,2,3:4,5,inf", r"line 11, dimension 2: step 3 is infinite"),
        ("1,2,3:4,5,6", "1,2,3:4,5", r"line 11: its dimensions have 2 to 3 steps"),
        ("1,2,3:4,5,6:up", "1,2,3", r"line 11 has 0 dimensions instead of 2"),
        ("1,2,3:4,5,6", "(0,1),2,3:4,5,6", r"line 11 has 4 steps instead of 3"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    source = toy(tmp_path)
    for part in ("TRAIN", "TEST"):
        text = (source / f"Toy_{part}.ts").read_text()
        assert old in text
        (source / f"Toy_{part}.ts").write_text(text.replace(old, new, 1))
    with pytest.raises(DataError, match=message) as error:
        list(conversion(source).samples())
    assert "Toy_T" in str(error.value)
    assert "\n" not in str(error.value)


def test_files_and_options(tmp_path: Path) -> None:
    source = toy(tmp_path / "one")
    for options, message in (
        ({"groups": "a=1"}, "ends at dimension 1, but the series have 2"),
        ({"groups": "a=1,a=2"}, "--groups a=2: write NAME=FIRST-LAST"),
        ({"groups": "a=2-1"}, "--groups a=2-1: write"),
        ({"groups": "A=1-2"}, "--groups A=1-2: write"),
        ({"rate": 0}, "--rate 0: it is a positive number"),
        ({"rate": "nan"}, "--rate nan: it is a positive number"),
        ({"validation": 1}, "--validation 1: it is a share"),
        ({"problem": "Other"}, "--problem Other: the source holds Toy"),
    ):
        with pytest.raises(ConfigError, match=message):
            conversion(source, **options)
    (source / "Other_TRAIN.ts").write_text((source / "Toy_TRAIN.ts").read_text())
    with pytest.raises(ConfigError, match="the source holds 2 sets; name one of Other, Toy"):
        conversion(source)
    with pytest.raises(DataError, match=r"Other_TEST.ts is missing"):
        conversion(source, problem="Other")
    (source / "copy").mkdir()
    (source / "copy" / "Toy_TEST.ts").write_text((source / "Toy_TEST.ts").read_text())
    assert len(list(conversion(source, problem="Toy").samples())) == 8  # the same file twice
    (source / "copy" / "Toy_TEST.ts").write_text(HEADER + SERIES[0] + "\n")
    with pytest.raises(DataError, match="another file with this name and other content"):
        conversion(source, problem="Toy")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no NAME_TRAIN.ts"):
        conversion(tmp_path / "empty")
    wide = HEADER.replace("@dimensions 2", "@dimensions 70")
    source = toy(tmp_path / "wide", wide, [":".join(["1,2,3"] * 70) + ":up"], [":".join(["1,2,3"] * 70) + ":up"])
    with pytest.raises(ConfigError, match="for instance --groups all=1-70"):
        conversion(source)
    assert next(iter(conversion(source, groups="all=1-70").samples())).values["all"].shape == (3, 70)
