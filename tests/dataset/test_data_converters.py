"""The converters on the excerpts: counts, and windows against the text of the original files."""

from __future__ import annotations

import dataclasses
import io
import runpy
import shutil
import tarfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from maestro_dist.data.converters import stress_predict
from maestro_dist.data.converters.source import parse_splits
from maestro_dist.data.converters.stress_predict import StressPredict
from maestro_dist.data.converters.uci_hapt import UciHapt
from maestro_dist.data.manifest import load_manifest
from maestro_dist.data.pack import RawSample
from maestro_dist.errors import ConfigError, DataError

EXCERPTS = Path(__file__).parent.parent / "data"
HAPT = EXCERPTS / "uci_hapt" / "HAPT_RawData_excerpt.tar.xz"
STRESS = EXCERPTS / "stress_predict" / "Stress_Predict_excerpt.tar.xz"
TOOL = Path(__file__).parents[2] / "tools" / "pack_dataset.py"


def texts(archive: Path) -> dict[str, list[str]]:
    with tarfile.open(archive) as tar:
        return {i.name: tar.extractfile(i).read().decode().splitlines() for i in tar if i.isreg()}  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def hapt_text() -> dict[str, list[str]]:
    return texts(HAPT)


@pytest.fixture(scope="module")
def stress_text() -> dict[str, list[str]]:
    return texts(STRESS)


@pytest.fixture(scope="module")
def small_hapt(tmp_path_factory: pytest.TempPathFactory, hapt_text: dict[str, list[str]]) -> Path:
    """A folder with the raw files of users 1, 2 and 6."""
    folder = tmp_path_factory.mktemp("hapt") / "RawData"
    folder.mkdir()
    for name, lines in hapt_text.items():
        if name.endswith(("_user01.txt", "_user02.txt", "_user06.txt")):
            (folder / Path(name).name).write_text("\n".join(lines))
    rows = [line for line in hapt_text["RawData/labels.txt"] if line.split()[1] in ("1", "2", "6")]
    (folder / "labels.txt").write_text("\n".join(rows))
    return folder.parent


def numbers(lines: list[str], separator: str | None = None) -> np.ndarray:
    return np.array([[float(x) for x in line.split(separator)] for line in lines])


# UCI HAPT


def test_hapt_excerpt_counts() -> None:
    conversion = UciHapt().convert(HAPT)
    found = Counter((s.split, s.subject) for s in conversion.samples())
    split = Counter()  # type: ignore[var-annotated]
    for (name, _), count in found.items():
        split[name] += count
    assert split == {"train": 4311, "validation": 727, "test": 971}
    assert sum(found.values()) == 6009
    assert conversion.warnings == ()
    assert {u for s, u in found if s == "test"} == {"user02", "user04", "user09"}
    assert {u for s, u in found if s == "validation"} == {"user01", "user03"}


def test_hapt_windows_are_the_rows_of_the_text(small_hapt: Path, hapt_text: dict[str, list[str]]) -> None:
    samples = {s.key: s for s in UciHapt().convert(small_hapt).samples()}
    axes = {s.key: s for s in UciHapt().convert(small_hapt, modalities="axes").samples()}
    # labels.txt begins "1 1 5 250 1232": the second window of that segment of experiment 1 starts at row 314
    assert hapt_text["RawData/labels.txt"][0] == "1 1 5 250 1232"
    sample = samples["exp01-user01-000314"]
    acc = numbers(hapt_text["RawData/acc_exp01_user01.txt"])
    gyro = numbers(hapt_text["RawData/gyro_exp01_user01.txt"])
    assert np.array_equal(sample.values["acc"], acc[314:442])
    assert np.array_equal(sample.values["gyro"], gyro[314:442])
    assert (sample.label, sample.split, sample.recording) == (4, "validation", "exp01")
    assert (sample.start_s, sample.duration_s) == (6.28, 2.56)
    assert sample.statistics["acc"] == pytest.approx(np.stack([acc[:442].mean(0), acc[:442].std(0)], axis=1))
    other = axes["exp01-user01-000314"]
    assert sorted(other.values) == ["acc_x", "acc_y", "acc_z", "gyro_x", "gyro_y", "gyro_z"]
    assert np.array_equal(other.values["gyro_y"], gyro[314:442, 1:2])
    assert other.statistics["gyro_y"] == pytest.approx(sample.statistics["gyro"][1:2])


def test_hapt_windows_stay_inside_their_segment(small_hapt: Path, hapt_text: dict[str, list[str]]) -> None:
    keys = {s.key: s.label for s in UciHapt().convert(small_hapt, window=100, stride=30).samples()}
    expected = {}
    for line in hapt_text["RawData/labels.txt"]:
        experiment, user, activity, first, last = map(int, line.split())
        start = first
        while user in (1, 2, 6) and start + 99 <= last:
            expected[f"exp{experiment:02d}-user{user:02d}-{start:06d}"] = activity - 1
            start += 30
    assert keys == expected


def test_hapt_splits(small_hapt: Path) -> None:
    by_default = {(s.subject, s.split) for s in UciHapt().convert(small_hapt).samples()}
    assert by_default == {("user01", "validation"), ("user02", "test"), ("user06", "train")}
    chosen = UciHapt().convert(small_hapt, splits=parse_splits(["test=6", "validation=2"]))
    assert {(s.subject, s.split) for s in chosen.samples()} == {
        ("user06", "test"),
        ("user02", "validation"),
        ("user01", "train"),
    }


@pytest.mark.parametrize("items", [["test"], ["dev=1"], ["test=a"], ["test=1", "validation=1"], ["test=1", "test=2"]])
def test_wrong_splits(items: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"--splits (test|dev|validation)"):
        parse_splits(items)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gyro_exp01_user01.txt", None, r"gyro_exp01_user01.txt is missing"),
        ("labels.txt", None, "no labels.txt"),
        ("acc_exp01_user01.txt", "1 2 3\n1 2\n", r"acc_exp01_user01.txt: not a table of numbers"),
        ("acc_exp01_user01.txt", "1 2 x\n", r"acc_exp01_user01.txt: not a table of numbers"),
        ("acc_exp01_user01.txt", "", r"acc_exp01_user01.txt: not a table of numbers \(it is empty\)"),
        ("acc_exp01_user01.txt", "1 2\n1 2\n", "2 columns instead of 3"),
        ("acc_exp01_user01.txt", "1 2 3\n1 nan 3\n", "row 2 is not finite"),
        ("acc_exp01_user01.txt", "1 2 3\n", "acc and gyro of experiment 1 differ in length"),
        ("labels.txt", "1 1 5 250 999999\n", "labels.txt: row 1 does not fit experiment 1"),
        ("labels.txt", "1 1 13 250 900\n", "labels.txt: row 1 does not fit experiment 1"),
        ("labels.txt", "1 7 5 250 900\n", "labels.txt: row 1 does not fit experiment 1"),
        ("labels.txt", "9 1 5 250 900\n", r"acc_exp09_user01.txt is missing"),
    ],
)
def test_hapt_errors_name_the_file(
    small_hapt: Path, tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    shutil.copytree(small_hapt, tmp_path / "copy")
    path = tmp_path / "copy" / "RawData" / name
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        list(UciHapt().convert(tmp_path / "copy").samples())
    assert "\n" not in str(caught.value)


def test_archives_never_touch_the_disk(small_hapt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    outside = tmp_path.parent / "acc_exp99_user99.txt"
    with tarfile.open("evil.tar.xz", "w:xz") as tar:
        tar.add(small_hapt / "RawData", "RawData")
        for name in ("../acc_exp99_user99.txt", f"{tmp_path}/gyro_exp99_user99.txt"):
            info = tarfile.TarInfo(name)
            info.size = 6
            tar.addfile(info, io.BytesIO(b"1 2 3\n"))
        link = tarfile.TarInfo("RawData/acc_exp98_user98.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    evil, good = UciHapt().convert(Path("evil.tar.xz")), UciHapt().convert(small_hapt)
    assert [s.key for s in evil.samples()] == [s.key for s in good.samples()]
    assert [path.name for path in tmp_path.iterdir()] == ["evil.tar.xz"]
    assert not outside.exists()


def test_damaged_and_missing_archives(tmp_path: Path) -> None:
    cut = tmp_path / "cut.tar.xz"
    cut.write_bytes(HAPT.read_bytes()[:100_000])
    with pytest.raises(DataError, match=r"cut.tar.xz: damaged or unreadable archive"):
        list(UciHapt().convert(cut).samples())
    cut.write_bytes(b"hello")
    with pytest.raises(DataError, match=r"cut.tar.xz: damaged or unreadable archive"):
        list(UciHapt().convert(cut).samples())
    with pytest.raises(DataError, match="no such folder or archive"):
        list(UciHapt().convert(tmp_path / "none").samples())


# Stress-Predict


def test_stress_excerpt_counts() -> None:
    conversion = StressPredict().convert(STRESS)
    samples = list(conversion.samples())
    assert len(samples) == 438
    assert conversion.warnings == ()
    assert Counter(s.split for s in samples) == {"train": 219, "validation": 73, "test": 146}
    assert {s.subject for s in samples if s.split == "test"} == {"S29", "S31"}
    assert {s.label for s in samples if s.split == "train"} == {0, 1}
    shapes = {name: values.shape for name, values in samples[0].values.items()}
    assert shapes == {"acc": (1024, 3), "bvp": (2048, 1), "eda": (128, 1), "temp": (128, 1), "hr": (32, 1)}


def test_stress_windows_are_the_rows_of_the_text(stress_text: dict[str, list[str]]) -> None:
    mine = [s for s in StressPredict().convert(STRESS).samples() if s.subject == "S04"]
    labels = numbers([r.replace(",,", ",0,") for r in stress_text[f"Processed_data/{stress_predict.LABELS}"][1:]], ",")
    labels = labels[labels[:, 0] == 4]
    files = {k: stress_text[f"Raw_data/S04/{k.upper()}.csv"] for k in ("acc", "bvp", "eda", "temp", "hr")}
    start = {k: float(lines[0].split(",")[0]) for k, lines in files.items()}
    begin = max([labels[0, 3], *start.values()])
    assert begin == start["hr"] == start["acc"] + 10  # the heart rate starts last
    number = 30
    t = begin + number * 16
    for name, lines in files.items():
        rate = float(lines[1].split(",")[0])
        first = int((t - start[name]) * rate)
        rows = numbers(lines[2:], ",") / (64 if name == "acc" else 1)
        window = rows[first : first + int(32 * rate)]
        assert np.array_equal(mine[number].values[name], window)
        past = rows[: first + int(32 * rate)]
        expected = np.stack([past.mean(axis=0), past.std(axis=0)], axis=1)
        assert mine[number].statistics[name] == pytest.approx(expected)
    for number, sample in enumerate(mine):
        seconds = labels[(labels[:, 3] >= begin + 16 * number) & (labels[:, 3] < begin + 16 * number + 32), 4]
        assert len(seconds) == 32
        assert sample.label == int(seconds.sum() > 16)
    assert any(labels[(labels[:, 3] >= begin + 16 * n) & (labels[:, 3] < begin + 16 * n + 32), 4].sum() not in (0, 32)
               for n in range(len(mine)))  # fmt: skip


def test_stress_label_is_the_majority_and_a_tie_is_none(tmp_path: Path) -> None:
    for name, kind in stress_predict.KINDS.items():
        row = ",".join(["1"] * kind.variates)
        start, rate = row.replace("1", "1000"), row.replace("1", str(kind.rate_hz))
        path = tmp_path / "Raw_data" / "S02" / f"{name.upper()}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join([start, rate, *[row] * (kind.rate_hz * 20)]))
    labels = [0, 0, 0, 1, 1, 1, 0, 1, 1, 0, 0, 1, 1, 1, 1, 1]
    rows = [f"2,70,12,{1002 + second},{label}" for second, label in enumerate(labels)]
    (tmp_path / stress_predict.LABELS).write_text("\n".join(["Participant,HR,respr,Time(sec),Label", *rows]))
    samples = list(StressPredict().convert(tmp_path, window_s=4, stride_s=2).samples())
    assert [s.label for s in samples] == [0, 1, 1, 0, 0, 1, 1]
    assert [s.start_s for s in samples] == [2, 4, 6, 8, 10, 12, 14]


def test_stress_folds() -> None:
    subjects = list(range(2, 36))
    seen = []
    for fold in range(5):
        splits = stress_predict.fold_splits(5, fold)
        assert list(splits["test"]) == [s for i, s in enumerate(subjects) if i % 5 == fold]
        assert list(splits["validation"]) == [s for i, s in enumerate(subjects) if i % 5 == (fold + 1) % 5]
        seen += splits["test"]
    assert sorted(seen) == subjects
    for folds, fold in ((2, 0), (5, 5), (5, -1)):
        with pytest.raises(ConfigError, match="use 3 folds or more"):
            stress_predict.fold_splits(folds, fold)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("Raw_data/S04/EDA.csv", None, r"S04/EDA.csv is missing"),
        (f"Processed_data/{stress_predict.LABELS}", None, "binary.csv is missing"),
        ("Raw_data/S04/HR.csv", lambda rows: [*rows[:1], "2.0", *rows[2:]], "HR.csv: the first rows are not a start"),
        ("Raw_data/S04/ACC.csv", lambda rows: [*rows[:5], "1,2"], "ACC.csv: not a table of numbers"),
        (f"Processed_data/{stress_predict.LABELS}", lambda rows: rows[:9] + rows[10:], "participant 4 needs one label"),
        (
            f"Processed_data/{stress_predict.LABELS}",
            lambda rows: [*rows[:-1], rows[-1][:-1] + "7"],
            "needs one label, 0 or 1",
        ),
    ],
)
def test_stress_errors_name_the_file(
    stress_text: dict[str, list[str]], tmp_path: Path, name: str, change: object, message: str
) -> None:
    for path, lines in stress_text.items():
        rows = lines
        if path == name:
            if change is None:
                continue
            rows = change(lines)  # type: ignore[operator]
        if "/S04/" in path or "Processed" in path:
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text("\n".join(rows) + "\n")
    with pytest.raises(DataError, match=message) as caught:
        list(StressPredict().convert(tmp_path).samples())
    assert "\n" not in str(caught.value)


# the command line


def test_the_tool_packs_and_says_what_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tool = SimpleNamespace(**runpy.run_path(str(TOOL)))
    out = tmp_path / "stress"
    source = str(STRESS.parent)
    assert tool.main(["stress_predict", "--source", source, "--out", str(out), "--folds", "5", "--fold", "3"]) == 0
    shown = capsys.readouterr().out
    for text in ("train", "219", "146", "no_stress", "licence: MIT", "Sensors 2022;22(21):8135"):
        assert text in shown
    manifest = load_manifest(str(out))
    assert {k: v.samples for k, v in manifest.splits.items()} == {"train": 219, "validation": 146, "test": 73}
    assert manifest.recording
    other = str(tmp_path / "other")
    tool.main(["stress_predict", "--source", source, "--out", other, "--fold", "3"])  # five folds are the default
    assert load_manifest(other).fingerprint() == manifest.fingerprint()
    for wrong in (["--folds", "5"], ["--fold", "3", "--splits", "test=4"]):
        with pytest.raises(ConfigError, match="goes together with --fold K"):
            tool.main(["stress_predict", "--source", source, "--out", str(tmp_path / "none"), *wrong])
    with pytest.raises(DataError, match="is there already"):
        tool.main(["stress_predict", "--source", source, "--out", str(out)])


def test_the_tool_prints_the_notice(small_hapt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tool = SimpleNamespace(**runpy.run_path(str(TOOL)))
    tool.main(["uci_hapt", "--source", str(small_hapt), "--out", str(tmp_path), "--modalities", "axes"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "any commercial use is prohibited" in shown
    assert "licence: CC BY 4.0" in shown
    assert "acc_x: 1 x 128 steps at 50 Hz, g" in shown


def test_no_position_in_the_session_is_given_to_the_model() -> None:
    from maestro_dist.data.sample import DecodedSample

    assert {f.name for f in dataclasses.fields(DecodedSample)} == {"number", "key", "target", "values", "recording"}
    assert "start_s" in {f.name for f in dataclasses.fields(RawSample)}
