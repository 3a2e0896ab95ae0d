"""Unusual sources: links, copies, files of other programs, missing files."""

from __future__ import annotations

import argparse
import io
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import people
import pytest
import stays

from maestro_dist.data.converters import Conversion, stress_predict
from maestro_dist.data.converters.physionet2012 import PhysioNet2012
from maestro_dist.data.converters.stress_predict import StressPredict
from maestro_dist.data.converters.uci_hapt import UciHapt
from maestro_dist.data.parts import Remarks
from maestro_dist.errors import DataError


@dataclass(frozen=True)
class Kind:
    """A converter, a writer of a small source for it, and one of that source's files."""

    write: Callable[[Path], Path]
    file: str
    convert: Callable[[Path], Conversion]


KINDS = {
    "stress_predict": Kind(
        people.stress, "Raw_data/S04/EDA.csv", lambda path: StressPredict().convert(path, window_s=4, stride_s=4)
    ),
    "uci_hapt": Kind(
        people.hapt, "RawData/acc_exp06_user06.txt", lambda path: UciHapt().convert(path, window=16, stride=16)
    ),
    "physionet2012": Kind(stays.small, "set-a/132539.txt", PhysioNet2012().convert),
}


@pytest.fixture(params=sorted(KINDS))
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


def contents(conversion: Conversion) -> dict[str, list[tuple[str, bytes]]]:
    return {s.key: [(name, np.asarray(v).tobytes()) for name, v in s.values.items()] for s in conversion.samples()}


def warnings_of(conversion: Conversion) -> tuple[str, ...]:
    """The warnings about the files, and those of the parts."""
    remarks = Remarks()
    list(conversion.samples(remarks))
    return (*conversion.warnings, *remarks.lines())


def same_without_a_word(kind: Kind, source: Path, expected: dict[str, list[tuple[str, bytes]]]) -> None:
    conversion = kind.convert(source)
    assert warnings_of(conversion) == ()
    assert contents(conversion) == expected
    assert expected


def archived(source: Path, target: Path) -> Path:
    """The source as one archive."""
    if target.suffix == ".zip":
        with zipfile.ZipFile(target, "w") as archive:
            for path in sorted(source.rglob("*")):
                archive.write(path, path.relative_to(source).as_posix())
    else:
        with tarfile.open(target, "w:gz") as tar:
            tar.add(source, ".")
    return target


def test_traces_of_other_programs_are_nobodys_data(kind: Kind, tmp_path: Path) -> None:
    source = kind.write(tmp_path / "source")
    expected = contents(kind.convert(source))
    file = source / kind.file
    for ghost in (f"._{file.name}", ".DS_Store", f"{file.name}.part", f"{file.name}~", f"{file.name}.sha256"):
        (file.parent / ghost).write_bytes(b"\0\5\26\7 no data")
    for folder in ("__MACOSX", ".Trash-1000", ".snapshot", "@eaDir", "#recycle"):
        (source / folder / kind.file).parent.mkdir(parents=True)
        (source / folder / kind.file).write_bytes(b"no data")
    for suffix in (".zip", ".tar.gz"):  # in archives too
        same_without_a_word(kind, archived(source, tmp_path / f"all{suffix}"), expected)
    names = ("._all.tar.xz", ".all.zip", "all.tar.xz.sha256", "all.tgz.part", "all.zip.crdownload", "all.tar~")
    for ghost in names:
        (source / ghost).write_bytes(b"no archive")
    same_without_a_word(kind, source, expected)


def test_links_are_followed_and_loops_end(kind: Kind, tmp_path: Path) -> None:
    source = kind.write(tmp_path / "source")
    expected = contents(kind.convert(source))
    folder = (source / kind.file).parent
    shutil.move(folder, tmp_path / "disk2")
    folder.symlink_to(tmp_path / "disk2")
    moved = tmp_path / "disk3"
    shutil.move(folder / Path(kind.file).name, moved)
    (source / kind.file).symlink_to(moved)
    (tmp_path / kind.file).parent.mkdir(parents=True)
    (tmp_path / kind.file).write_text("beside the source, so no part of it")
    for place in (source, tmp_path / "disk2"):
        for name, target in {"loop": source, "self": ".", "up": "..", "all": "/"}.items():
            (place / name).symlink_to(target)
    same_without_a_word(kind, source, expected)


def test_a_link_that_leads_nowhere_is_named(kind: Kind, tmp_path: Path) -> None:
    source = kind.write(tmp_path / "source")
    (source / "notes").symlink_to(tmp_path / "unmounted")
    assert kind.convert(source).warnings == (f"a broken link is skipped: {source}/notes -> {tmp_path}/unmounted",)
    (source / "round").symlink_to("round")
    assert "round -> round" in kind.convert(source).warnings[0]
    (source / kind.file).unlink()
    (source / kind.file).symlink_to(tmp_path / "gone")
    with pytest.raises(DataError, match=rf"is missing; a broken link .*{kind.file} -> {tmp_path}/gone"):
        list(kind.convert(source).samples())


def test_the_same_file_twice_counts_once_and_another_is_refused(kind: Kind, tmp_path: Path) -> None:
    source = kind.write(tmp_path / "source")
    expected = contents(kind.convert(source))
    archived(source, tmp_path / "copy.zip").rename(source / "copy.zip")
    copy = source / "old" / kind.file
    copy.parent.mkdir(parents=True)
    shutil.copy(source / kind.file, copy)
    same_without_a_word(kind, source, expected)
    copy.write_text(copy.read_text().replace("2", "3"))
    with pytest.raises(DataError, match="there is another file with this name and other content") as caught:
        list(kind.convert(source).samples())
    assert str(source / kind.file) in str(caught.value)
    assert str(copy) in str(caught.value)


def test_a_member_of_an_archive_twice_with_different_content_is_refused(kind: Kind, tmp_path: Path) -> None:
    archive = tmp_path / "all.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(kind.write(tmp_path / "source"), ".")
        content = (tmp_path / "source" / kind.file).read_bytes()
        info = tarfile.TarInfo(kind.file)
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content.replace(b"2", b"3")))
    with pytest.raises(DataError, match="there is another file with this name and other content"):
        list(kind.convert(archive).samples())


def test_a_file_cut_in_its_last_line_is_named(kind: Kind, tmp_path: Path) -> None:
    source = kind.write(tmp_path / "source")
    (source / kind.file).write_bytes((source / kind.file).read_bytes()[:-1])
    (warning,) = warnings_of(kind.convert(source))
    assert warning == f"the last line is not ended (was the file cut short?): {source / kind.file}"


def test_a_zip_that_windows_wrote(kind: Kind, tmp_path: Path) -> None:
    source = kind.write(tmp_path / "source")
    target = tmp_path / "windows" / "all.zip"
    target.parent.mkdir()
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(source.rglob("*")):
            if path.is_file():
                name = "\\".join(path.relative_to(source).parts)
                archive.writestr(zipfile.ZipInfo(name), path.read_bytes())
    same_without_a_word(kind, target.parent, contents(kind.convert(source)))


def test_a_link_in_an_archive_is_named(kind: Kind, tmp_path: Path) -> None:
    source = kind.write(tmp_path / "source")
    (source / "old").mkdir()
    (source / "old" / Path(kind.file).parent).mkdir(parents=True)
    (source / "old" / kind.file).symlink_to("/etc/passwd")
    (warning,) = kind.convert(archived(source, tmp_path / "all.tar.gz")).warnings
    assert warning == f"a link inside an archive is skipped: {tmp_path}/all.tar.gz:./old/{kind.file}"


def test_what_cannot_be_read_is_named(kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = kind.write(tmp_path / "source")
    folder, read = (source / kind.file).parent, Path.iterdir

    def refused(path: Path) -> object:
        if path == folder:
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "iterdir", refused)  # tests may run as a user whom nothing is refused
    with pytest.raises(DataError, match=rf"{folder}: the folder cannot be read \(Permission denied\)"):
        list(kind.convert(source).samples())


# who is missing


def test_stress_people_without_data_or_labels_are_named(tmp_path: Path) -> None:
    source = people.stress(tmp_path, subjects=(4, 5, 19, 30))
    for subject in ("S05", "S30"):
        shutil.rmtree(source / "Raw_data" / subject)
    shutil.copytree(source / "Raw_data" / "S04", source / "Raw_data" / "S33")
    shutil.copytree(source / "Raw_data" / "S04", source / "Raw_data" / "S01")
    conversion = StressPredict().convert(source, window_s=4)
    assert {s.subject for s in conversion.samples()} == {"S04", "S19"}
    assert conversion.warnings == (
        "people with labels but without data, left out (2): S05, S30",
        "people with data but without labels, left out (1): S33",
    )
    assert conversion.notes({}) == ["S01 has no labels, as published, and is left out"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"EDA": None}, r"S04/EDA.csv is missing$"),
        ({"EDA": None, "HR": None}, r"S04/EDA.csv is missing \(2 are: S04/EDA.csv, S04/HR.csv\)"),
        ({"EDA": ""}, r"S04/EDA.csv: not a table of numbers \(it is empty\)"),
        ({"EDA": "1000\n4\n"}, r"S04/EDA.csv: 2 rows, so no sample"),
        ({"EDA": people.stream("eda", 8)}, r"S04/EDA.csv: it ends 92 s before other streams of S04: it is incomplete"),
        (
            {"HR": people.stream("hr", 100).replace("1000\n", "9000\n")},
            r"S04/HR.csv: it starts 8000 s after other streams",
        ),
    ],
)
def test_a_person_with_a_part_of_the_streams_is_refused(
    changes: dict[str, str | None], message: str, tmp_path: Path
) -> None:
    source = people.stress(tmp_path, subjects=(4,), seconds=100)
    for name, text in changes.items():
        path = source / "Raw_data" / "S04" / f"{name}.csv"
        path.unlink() if text is None else path.write_text(text)
    with pytest.raises(DataError, match=message):
        list(StressPredict().convert(source).samples())


def test_people_with_less_data_than_labels_are_named(tmp_path: Path) -> None:
    source = people.stress(tmp_path, subjects=(4, 5), seconds=100)
    for kind in stress_predict.KINDS:
        (source / "Raw_data" / "S05" / f"{kind.upper()}.csv").write_text(people.stream(kind, 10))
    assert warnings_of(StressPredict().convert(source)) == (
        "people with labels beyond their data, which are left out: S05 (90 s)",
        "people with less than 32 s of labelled data, left out: S05",
    )


def test_labels_without_a_row_are_refused(tmp_path: Path) -> None:
    labels = people.stress(tmp_path) / "Processed_data" / stress_predict.LABELS
    labels.write_text(labels.read_text().splitlines()[0])
    with pytest.raises(DataError, match=r"binary.csv: not a table of numbers \(it is empty\)"):
        list(StressPredict().convert(tmp_path).samples())


def test_hapt_experiments_without_labels_are_named_and_lost_ones_refused(tmp_path: Path) -> None:
    source = people.hapt(tmp_path, users=(1, 6, 9))
    labels = source / "RawData" / "labels.txt"
    labels.write_text("".join(labels.read_text().splitlines(keepends=True)[:2]))
    conversion = UciHapt().convert(source, window=16)
    assert {s.subject for s in conversion.samples()} == {"user01", "user06"}
    assert conversion.warnings == ("experiments without a row in labels.txt, left out: exp09 (user09)",)
    (source / "RawData" / "acc_exp01_user01.txt").unlink()
    with pytest.raises(DataError, match=r"acc_exp01_user01.txt is missing, but labels.txt has rows of it"):
        list(UciHapt().convert(source).samples())
    (source / "RawData" / "gyro_exp06_user06.txt").unlink()
    with pytest.raises(DataError, match=r"\(2 are: acc_exp01_user01.txt, gyro_exp06_user06.txt\)"):
        list(UciHapt().convert(source).samples())


@pytest.mark.parametrize("user", ["06", "6", "07"])
def test_hapt_experiment_of_two_users_or_twice(user: str, tmp_path: Path) -> None:
    folder = people.hapt(tmp_path) / "RawData"
    copy = folder / f"gyro_exp6_user{user}.txt"
    copy.write_text((folder / "acc_exp06_user06.txt").read_text())
    with pytest.raises(DataError, match="there is another file with this name and other content"):
        list(UciHapt().convert(tmp_path).samples())
    (folder / "gyro_exp06_user06.txt").rename(copy)
    if int(user) == 6:
        assert UciHapt().convert(tmp_path, window=16).parts
    else:
        with pytest.raises(DataError, match="says that experiment 6 is of user 6"):
            list(UciHapt().convert(tmp_path).samples())


def test_people_whom_the_splits_name_in_vain(tmp_path: Path) -> None:
    for converter, write, present in ((UciHapt(), people.hapt, 6), (StressPredict(), people.stress, 5)):
        parser = argparse.ArgumentParser()
        converter.add_arguments(parser)
        arguments = parser.parse_args(
            ["--window", "8"], argparse.Namespace(splits=[f"test={present},21", "validation=3"])
        )
        conversion = converter.from_arguments(write(tmp_path / converter.name), arguments)
        assert conversion.warnings == ("--splits names people without any sample (2): 3, 21",)
        arguments.splits = [f"test={present}"]
        assert converter.from_arguments(tmp_path / converter.name, arguments).warnings == ()


def test_hapt_labels_are_whole_numbers(tmp_path: Path) -> None:
    (people.hapt(tmp_path) / "RawData" / "labels.txt").write_text("1 1 5 0 20\n1 1.5 5 30 50\n")
    with pytest.raises(DataError, match=r"labels.txt: row 2 has a number that is not whole"):
        list(UciHapt().convert(tmp_path).samples())


# the sets of PhysioNet


def sets(folder: Path, parts: str) -> Path:
    for number, part in enumerate(parts, start=1):
        records = range(100 * number, 100 * number + 10)
        texts = {record: stays.stay(record, f"01:00,HR,{60 + record % 10}") for record in records}
        stays.write(folder, part, texts, {record: record % 2 for record in records})
    return folder


@pytest.mark.parametrize(
    ("parts", "splits", "source"),
    [
        ("a", {"train": 8, "validation": 2}, "set a"),
        ("b", {"test": 10}, "set b"),
        ("c", {"test": 10}, "set c"),
        ("ab", {"train": 8, "validation": 2, "test": 10}, "sets a and b"),
        ("ac", {"train": 8, "validation": 2, "test": 10}, "sets a and c"),
    ],
)
def test_any_of_the_sets_is_packed(parts: str, splits: dict[str, int], source: str, tmp_path: Path) -> None:
    from maestro_dist.data.pack import pack

    conversion = PhysioNet2012().convert(sets(tmp_path / "source", parts))
    manifest = pack(str(tmp_path / "out"), conversion.description, conversion.samples(), splits=conversion.splits)
    assert {name: split.samples for name, split in manifest.splits.items() if split.samples} == splits
    assert manifest.source.endswith(f", {source}")
    assert conversion.warnings == ()


def test_set_c_is_left_out_beside_set_b_and_a_set_lost_is_named(tmp_path: Path) -> None:
    source = sets(tmp_path, "abc")
    (source / "set-c" / "300.txt").write_text("of no use, so it is not read\n")
    conversion = PhysioNet2012().convert(source)
    assert {int(s.key) // 100 for s in conversion.samples()} == {1, 2}
    assert conversion.warnings == ("set-c, 10 stays, is left out: set-b is the test split; pack it alone",)
    shutil.rmtree(source / "set-c")
    shutil.rmtree(source / "set-b")
    assert [text for text in PhysioNet2012().convert(source).warnings if "b.txt" in text] == [
        "Outcomes-b.txt names 10 stays, but there is no set-b"
    ]
    shutil.rmtree(source / "set-a")
    with pytest.raises(DataError, match=r"no set-a/RECORD.txt or set-b/RECORD.txt or set-c/RECORD.txt"):
        list(PhysioNet2012().convert(source).samples())


def test_a_stay_of_two_sets_is_refused(tmp_path: Path) -> None:
    source = sets(tmp_path, "ab")
    shutil.copy(source / "set-a" / "103.txt", source / "set-b")
    with (source / "Outcomes-b.txt").open("a") as file:
        file.write("103,6,1,5,3,1\n")
    with pytest.raises(DataError, match=r"set-b/103.txt: stay 103 is in another set too, .*set-a/103.txt"):
        list(PhysioNet2012().convert(source).samples())


@pytest.mark.parametrize(("lost", "where"), [("set-a/10[13].txt", "set-a"), ("rows", "Outcomes-a.txt")])
def test_stays_without_outcome_and_outcomes_without_stay_are_counted(lost: str, where: str, tmp_path: Path) -> None:
    source = sets(tmp_path, "a")
    if lost == "rows":
        outcomes = source / "Outcomes-a.txt"
        rows = outcomes.read_text().splitlines(keepends=True)
        outcomes.write_text("".join(row for row in rows if row[:3] not in ("101", "103")))
    for path in source.glob(lost):
        path.unlink()
    with pytest.raises(DataError, match=rf"stay 101 is missing in {where} \(2 are: stay 101, stay 103\); fetch set-a"):
        list(PhysioNet2012().convert(source).samples())
