"""The converter of the PhysioNet Challenge 2012: generated files with each kind of error, and the excerpt."""

from __future__ import annotations

import io
import runpy
import shutil
import tarfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import stays
from tiny import source_of

from maestro_dist.config.learning import MissingConfig
from maestro_dist.config.load import load_config
from maestro_dist.config.schema import SourceConfig
from maestro_dist.data.converters import physionet2012
from maestro_dist.data.converters.physionet2012 import PhysioNet2012
from maestro_dist.data.manifest import Manifest, load_manifest
from maestro_dist.data.missing import evaluation_mask
from maestro_dist.data.pack import RawSample, pack
from maestro_dist.data.parts import Remarks
from maestro_dist.data.prepare import prepare
from maestro_dist.data.reader import presence
from maestro_dist.data.stream import DataRank, TrainSchedule, TrainStream
from maestro_dist.errors import ConfigError, DataError

ROOT = Path(__file__).parents[2]
EXCERPT = ROOT / "tests" / "data" / "physionet2012"
NAMES = [name.lower() for name in physionet2012.UNITS]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stays.small(tmp_path_factory.mktemp("stays"))


def one(folder: Path, text: str, **options: str) -> RawSample:
    """The first stay of set-a, converted; set-b must have a stay too."""
    stays.write(folder, "a", {7: text}, {7: 1})
    stays.write(folder, "b", {8: stays.stay(8)}, {8: 0})
    first, second = PhysioNet2012().convert(folder, **options).samples()
    assert (first.split, second.split) == ("validation", "test")
    return first


def by_key(source: Path, **options: object) -> dict[str, RawSample]:
    return {s.key: s for s in PhysioNet2012().convert(source, **options).samples()}  # type: ignore[arg-type]


def test_what_it_says_of_itself(small: Path) -> None:
    about = PhysioNet2012().convert(small).description
    assert len(set(NAMES)) == 36
    assert "weight" not in NAMES
    assert [m.name for m in about.modalities if m.always] == ["static"]
    static = next(m for m in about.modalities if m.always)
    assert (static.variates, static.steps, static.seconds) == (8, 1, about.window_s)
    hourly = {(m.variates, m.steps, m.rate_hz) for m in about.modalities if not m.always}
    assert hourly == {(1, 48, 1 / 3600)}
    native = PhysioNet2012().convert(small, times="native").description
    assert {(m.variates, m.steps, m.rate_hz) for m in native.modalities if not m.always} == {(1, 2880, 1 / 60)}
    assert (about.classes, about.window_s, about.recording) == (("survived", "died"), 172800.0, False)


@pytest.mark.parametrize("fold", range(5))
def test_folds_of_set_a_validate_and_set_b_tests(small: Path, fold: int) -> None:
    samples = list(PhysioNet2012().convert(small, fold=fold).samples())
    records = [132539 + 7 * number for number in range(11)]
    assert [s.key for s in samples if s.split == "validation"] == [str(r) for r in records[fold::5]]
    assert [s.key for s in samples if s.split == "train"] == [str(r) for i, r in enumerate(records) if i % 5 != fold]
    assert [s.key for s in samples if s.split == "test"] == ["142675", "142682", "142689"]
    assert {s.key: s.label for s in samples if s.split == "test"} == {"142675": 1, "142682": 0, "142689": 0}
    assert {int(s.key) for s in samples if s.label and s.split != "test"} == set(records[::3])


@pytest.mark.parametrize(("fold", "times"), [(5, "hourly"), (-1, "hourly"), (0, "daily")])
def test_a_fold_or_grid_that_is_not_there(small: Path, fold: int, times: str) -> None:
    with pytest.raises(ConfigError, match="folds are 0 to 4, times hourly or native"):
        PhysioNet2012().convert(small, fold=fold, times=times)


def test_values_are_hourly_means_of_what_is_known(tmp_path: Path) -> None:
    rows = [
        "00:00,HR,60", "00:59,HR,70", "00:59,HR,77",  # three in an hour, two in a minute
        "01:00,HR,-1", "01:10,HR,80",  # unknown does not count
        "02:05,Temp,-17.8",  # nothing is known of that series
        "03:00,,5", "03:00,,",  # rows without a name
        "04:20,Weight,80",  # not one of the series
        "46:59,pH,7.4", "47:00,pH,7.2", "48:00,pH,7.0",  # the end belongs to the last hour
        "05:00,Urine,0",  # zero is a number
    ]  # fmt: skip
    sample = one(tmp_path, stays.stay(7, *rows, Gender="1", Height="-1", Weight="71.5", ICUType="2"))
    expected = {"hr": {0: 69.0, 1: 80.0}, "ph": {46: 7.4, 47: 7.1}, "urine": {5: 0.0}}
    assert set(sample.values) == {*expected, "static"}
    for name, hours in expected.items():
        grid = np.full((48, 1), np.nan)
        for hour, value in hours.items():
            grid[hour] = value
        np.testing.assert_allclose(sample.values[name], grid)
    np.testing.assert_array_equal(sample.values["static"], [[54, 1, np.nan, 71.5, 0, 1, 0, 0]])
    assert (sample.label, sample.duration_s) == (1, 172800.0)
    conversion, remarks = PhysioNet2012().convert(tmp_path), Remarks()
    list(conversion.samples(remarks))
    notes = " ".join(conversion.notes(remarks.counts))
    assert f"set-a: 1 stays, 1 died, 0 without any series; {5 / 1728:.2%} of the hours" in notes
    assert "set-b: 1 stays, 0 died, 1 without any series; 0.00%" in notes
    assert "2 negative values of series" in notes
    assert "2 rows without a parameter's name" in notes
    assert "1 weights measured later" in notes


def test_native_times_are_minutes_with_gaps(tmp_path: Path) -> None:
    rows = ["00:07,HR,60", "00:07,HR,62", "13:30,HR,70", "48:00,HR,80", "47:58,HR,81"]
    sample = one(tmp_path, stays.stay(7, *rows), times="native")
    values = sample.values["hr"]
    assert values.shape == (2880, 1)
    assert {t: values[t, 0] for t in np.flatnonzero(~np.isnan(values[:, 0])).tolist()} == {
        7: 61.0,
        13 * 60 + 30: 70.0,
        2878: 81.0,
        2879: 80.0,
    }


def test_unknown_descriptors_are_gaps_and_the_first_weight_counts(tmp_path: Path) -> None:
    text = stays.stay(7, "00:00,Weight,90", Age="-1", Gender="-1", Weight="-1", ICUType="1")
    np.testing.assert_array_equal(one(tmp_path, text).values["static"][0, :5], [np.nan] * 4 + [1])


def test_blank_lines_and_repeated_descriptors_say_nothing(small: Path, tmp_path: Path) -> None:
    expected = by_key(small)
    shutil.copytree(small, tmp_path / "copy")
    for path in (tmp_path / "copy").rglob("*.txt"):
        first = next((row for row in path.read_text().splitlines() if row.startswith("00:00,Age")), "")
        path.write_text(f"{path.read_text()}\n{first}\n\n")
    found = by_key(tmp_path / "copy")
    assert list(found) == list(expected)
    for key, sample in found.items():
        for name, values in sample.values.items():
            np.testing.assert_array_equal(values, expected[key].values[name])


@pytest.mark.parametrize("suffix", [".tar.xz", ".tar.gz", ".zip"])
def test_archives_give_the_same(small: Path, tmp_path: Path, suffix: str) -> None:
    target = stays.archived(small, tmp_path / "packed", suffix)
    expected, found = by_key(small), by_key(target)
    assert list(found) == list(expected)
    for key, sample in found.items():
        assert (sample.split, sample.label) == (expected[key].split, expected[key].label)
        assert sample.values.keys() == expected[key].values.keys()
        for name, values in sample.values.items():
            np.testing.assert_array_equal(values, expected[key].values[name])


def test_a_set_may_be_there_twice_but_not_in_two_versions(small: Path, tmp_path: Path) -> None:
    target = stays.archived(small, tmp_path / "both", ".zip")
    shutil.copytree(small / "set-a", target / "set-a")
    assert len(by_key(target)) == 14
    (target / "set-a" / "132539.txt").write_text(stays.stay(132539))
    with pytest.raises(DataError, match=r"set-a.zip:set-a/132539.txt: there is another file with this name"):
        list(PhysioNet2012().convert(target).samples())


GOOD = stays.stay(132539, "01:00,HR,60")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("set-a/132539.txt", None, "stay 132539 is missing in set-a; fetch set-a again"),
        ("Outcomes-a.txt", None, "no Outcomes-a.txt"),
        ("Outcomes-b.txt", f"{stays.OUTCOMES}\n", "stay 142675 is missing in Outcomes-b.txt"),
        ("Outcomes-a.txt", "RecordID,Death\n1,0\n", "Outcomes-a.txt, line 1: its columns are not RecordID"),
        ("Outcomes-a.txt", f"{stays.OUTCOMES}\n1,6,1,5,-1,0\n2,6,1,5,-1,2\n", "Outcomes-a.txt, line 3: "),
        ("Outcomes-a.txt", f"{stays.OUTCOMES}\n1,6,1,5,-1,0\n1,6,1,5,-1,0\n", "Outcomes-a.txt, line 3: "),
        ("set-a/132539.txt", "", "set-a/132539.txt, line 1: it is not 'Time,Parameter,Value'"),
        ("set-a/132539.txt", GOOD[:-4], "132539.txt, line 8: '01:00,HR'"),
        ("set-a/132539.txt", GOOD.replace("01:00", "1:00"), "132539.txt, line 8: .*no time from 00:00 to 48:00"),
        ("set-a/132539.txt", GOOD.replace("01:00", "48:01"), "132539.txt, line 8: .*no time from 00:00 to 48:00"),
        ("set-a/132539.txt", GOOD.replace("HR,60", "HR,sixty"), "132539.txt, line 8: .*could not convert"),
        ("set-a/132539.txt", GOOD.replace("HR,60", "HR,nan"), "132539.txt, line 8: .* has no finite value"),
        ("set-a/132539.txt", GOOD.replace("HR,60", "Hr,60"), "132539.txt, line 8: .* no such parameter"),
        ("set-a/132539.txt", GOOD.replace("01:00,HR", "00:00,Age"), "132539.txt, line 8: .* a descriptor after 00:00"),
        ("set-a/132539.txt", GOOD.replace("HR", "Age"), "132539.txt, line 8: .* a descriptor after 00:00"),
        (
            "set-a/132539.txt",
            GOOD.replace("01:00,HR,60", "00:00,Age,55"),
            "132539.txt, line 8: .* a second value of it",
        ),
        ("set-a/132539.txt", GOOD.replace("00:00,Age,54\n", ""), "132539.txt: no Age at 00:00"),
        ("set-a/132539.txt", GOOD.replace("ID,132539", "ID,132540"), "132539.txt: its RecordID is 132540"),
        ("set-a/132539.txt", GOOD.replace("ICUType,4", "ICUType,5"), "ICUType 5 is not one of 1 to 4"),
    ],
)
def test_errors_name_the_file_and_the_line(
    small: Path, tmp_path: Path, name: str, text: str | None, message: str
) -> None:
    shutil.copytree(small, tmp_path / "copy")
    path = tmp_path / "copy" / name
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        list(PhysioNet2012().convert(tmp_path / "copy").samples())
    assert "\n" not in str(caught.value)


def test_a_damaged_zip_is_named(small: Path, tmp_path: Path) -> None:
    target = stays.archived(small, tmp_path / "cut", ".zip")
    path = target / "set-b.zip"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"set-b.zip: damaged or unreadable archive"):
        list(PhysioNet2012().convert(target).samples())


# packed


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Manifest]:
    url = str(tmp_path_factory.mktemp("excerpt"))
    options: dict[str, str | int | float] = {"fold": 1}
    return url, prepare(SourceConfig(converter="physionet2012", path=str(EXCERPT), options=options), url)


def test_the_excerpt_against_its_text(packed: tuple[str, Manifest]) -> None:
    url, manifest = packed
    conversion = PhysioNet2012().convert(EXCERPT, fold=1)
    assert conversion.warnings == ()
    samples = {s.key: s for s in conversion.samples()}
    counts = {name: (split.samples, split.class_counts[1]) for name, split in manifest.splits.items()}
    assert counts == {"train": (32, 8), "validation": (8, 2), "test": (20, 5)}
    with tarfile.open(EXCERPT / "PhysioNet2012_excerpt.tar.xz") as tar:
        texts = {i.name: tar.extractfile(i).read().decode() for i in tar if i.isreg()}  # type: ignore[union-attr]
    stays_in = {Path(name).stem: text for name, text in texts.items() if name.startswith("set-")}
    assert samples.keys() == stays_in.keys()
    died = {}
    for part in "ab":
        died |= {r.split(",")[0]: int(r.split(",")[5]) for r in texts[f"Outcomes-{part}.txt"].splitlines()[1:]}
    empty = 0
    for key, text in stays_in.items():
        hours: dict[tuple[str, int], list[float]] = {}
        for row in text.splitlines()[1:]:
            time, parameter, value = row.split(",")
            if parameter.lower() in NAMES and float(value) >= 0:
                hours.setdefault((parameter.lower(), min(47, int(time[:2]))), []).append(float(value))
        assert samples[key].label == died[key]
        assert {name for name, _ in hours} == samples[key].values.keys() - {"static"}
        found = {(n, h): v[h, 0] for n, v in samples[key].values.items() if n != "static" for h in range(48)}
        assert {cell for cell, value in found.items() if not np.isnan(value)} == hours.keys()
        assert all(found[cell] == pytest.approx(np.mean(values)) for cell, values in hours.items())
        empty += not hours
    assert empty == 1
    assert load_manifest(url).fingerprint() == manifest.fingerprint()


def test_static_values_are_never_taken_away(packed: tuple[str, Manifest]) -> None:
    url, manifest = packed
    modalities = manifest.select(None)
    names = [m.name for m in modalities]
    always = [m.always for m in modalities]
    assert [n for n, kept in zip(names, always, strict=True) if kept] == ["static"]
    natural = presence(source_of(url))
    assert natural[:, names.index("static")].all()
    others = [i for i, name in enumerate(names) if name != "static"]
    mask = evaluation_mask(natural, 0.9, 2, always)
    assert mask[:, names.index("static")].all()
    assert (mask[:, others] == evaluation_mask(natural[:, others], 0.9, 2)).all()
    schedule = TrainSchedule(3, 16, 2, curriculum=MissingConfig(max_rate=0.9, ramp_start=0.0, ramp_end=0.0))
    stream = TrainStream(source_of(url), schedule, DataRank())
    dropped = 0
    for batch in stream.batches(0, 32):
        before, left = natural[batch.sample.numpy()], batch.present.numpy()
        assert left[:, names.index("static")].all()
        assert ((left[:, others].sum(1) > 0) == (before[:, others].sum(1) > 0)).all()
        dropped += int(before.sum() - left.sum())
        assert batch.values["static"].shape == (16, 1, 8)
    assert dropped > 0.7 * natural[:, others].sum()


def test_the_recipe_starts(packed: tuple[str, Manifest]) -> None:
    from maestro_dist.training.builder import first_batch

    recipe = str(ROOT / "configs" / "physionet2012.yaml")
    loss, taken = first_batch(load_config(recipe, [f"data.url={packed[0]}", "run.workers=1"]))
    assert taken == 32
    assert np.isfinite(loss)


def test_a_stay_without_any_series_is_packed(small: Path, tmp_path: Path) -> None:
    conversion = PhysioNet2012().convert(small)
    pack(str(tmp_path / "p"), conversion.description, conversion.samples())
    present = presence(source_of(str(tmp_path / "p"), "test"))
    assert present.sum(axis=1).tolist() == [3, 3, 1]


def test_the_tool_says_what_it_found(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tool = SimpleNamespace(**runpy.run_path(str(ROOT / "tools" / "pack_dataset.py")))
    command = ["physionet2012", "--source", str(small), "--out", str(tmp_path / "out")]
    with pytest.raises(ConfigError, match="set-b is the test split here"):
        tool.main([*command, "--splits", "test=1"])
    assert tool.main([*command, "--fold", "4"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "set-a: 11 stays, 4 died, 0 without any series;" in shown
    assert "set-b: 3 stays, 1 died, 1 without any series;" in shown
    assert "licence: Open Data Commons Attribution License v1.0" in shown
    splits = load_manifest(str(tmp_path / "out")).splits
    assert {name: split.samples for name, split in splits.items()} == {"train": 9, "validation": 2, "test": 3}


def test_the_excerpt_is_small_and_whole() -> None:
    path = EXCERPT / "PhysioNet2012_excerpt.tar.xz"
    assert path.stat().st_size < 100_000
    with tarfile.open(fileobj=io.BytesIO(path.read_bytes())) as tar:
        assert Counter(Path(name).parts[0] for name in tar.getnames() if name.endswith(".txt")) == {
            "set-a": 40,
            "set-b": 20,
            "Outcomes-a.txt": 1,
            "Outcomes-b.txt": 1,
        }
