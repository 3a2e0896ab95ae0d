"""Raw files that a configuration names: where they may be packed, and wrong places."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import tarfile
from pathlib import Path

import people
import pytest
import runs
import yaml

from maestro_dist.config.schema import SourceConfig
from maestro_dist.data import converters
from maestro_dist.data.converters import Conversion, Converter
from maestro_dist.data.manifest import load_manifest
from maestro_dist.data.pack_records import RECORDS
from maestro_dist.data.prepare import check_place, check_typed, prepare
from maestro_dist.errors import ConfigError, DataError, MaestroError
from maestro_dist.train import main


@pytest.fixture
def source(tmp_path: Path) -> SourceConfig:
    raw = people.stress(tmp_path / "raw", subjects=(4, 25, 29), seconds=80)
    return SourceConfig(converter="stress_predict", path=str(raw), options={"window": 8})


@pytest.fixture
def recipe(tmp_path: Path, source: SourceConfig) -> Path:
    """A configuration whose raw files are packed beside it."""
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"data": {"url": f"{tmp_path}/data", "source": source.model_dump()}}))
    return path


def tried(recipe: Path, *overrides: str) -> int:
    tiny = [text for text in runs.arguments(recipe.parent / "runs", "") if not text.startswith("data.url")]
    return main([str(recipe), *tiny, "--dry-run", *overrides])


def test_a_url_typed_alone_is_where_the_data_is(
    recipe: Path, source: SourceConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = f"data.url={tmp_path}/dta"
    assert tried(recipe, typed) == 2
    said = capsys.readouterr().err
    assert f"data.url: {tmp_path}/dta was given alone, but holds no manifest.json" in said
    remedy = said.strip().rpartition("add ")[2]
    assert remedy == f"data.source.path={source.path}"
    assert tried(recipe, typed, remedy) == 0
    assert not (tmp_path / "dta").exists()
    prepare(source, f"{tmp_path}/dta")
    capsys.readouterr()
    check_typed(source, f"{tmp_path}/dta", [typed])
    assert capsys.readouterr().out == ""
    check_typed(source, f"{tmp_path}/dta", [typed, remedy])
    assert capsys.readouterr().out == f"data.source is not read: there is a packed data set at {tmp_path}/dta already\n"


@pytest.mark.parametrize(
    ("overrides", "refused"),
    [
        (["data.url=x"], True),
        (["run.name=a", "data.url=y", "data.url=x"], True),
        (["data.url=x", "data.sources=1"], True),
        (["data.url=x", "data.source.options.window=4"], False),
        (["data.source={converter: uci_hapt, path: p}", "data.url=x"], False),
        (["data={url: x, source: {converter: uci_hapt, path: p}}"], False),
        (["data.train=a"], False),
    ],
)
def test_what_counts_as_typed_alone(overrides: list[str], refused: bool, source: SourceConfig, tmp_path: Path) -> None:
    if refused:
        with pytest.raises(ConfigError, match=r"data\.url: .* was given alone"):
            check_typed(source, f"{tmp_path}/x", overrides)
    else:
        check_typed(source, f"{tmp_path}/x", overrides)
    check_typed(None, f"{tmp_path}/x", overrides)


@pytest.mark.parametrize(
    ("url", "files", "message"),
    [
        (
            "no/such/place",
            [],
            r"data\.url: .*: there is no folder .*/no/such; correct data\.url, .*\(.*raw\)",
        ),
        ("used", ["thesis.tex"], r"holds no manifest.json but other files \(thesis.tex\); correct data\.url"),
        ("used", ["a-000000.tar", "a-000001.tar"], r"other files \(a-000000.tar, a-000001.tar\)"),
        ("used", ["a-000000.index"], r"other files \(a-000000.index\)"),
        ("used", ["train-000000.tar", "train-000000.index", "train-000001.tar"], None),  # a packing was killed
        ("used", [".packing/request.json", "a-000000.tar", "a-000001.tar"], None),  # with several workers
        ("used", [".packing/request.json", "thesis.tex"], r"other files \(thesis.tex\)"),
        ("used", [], None),
        ("new", [], None),
        ("raw", [], r"data\.url: .*/raw lies in data\.source\.path .*/raw; choose a place outside"),
        ("link/new", [], r"data\.url: .*/link/new lies in data\.source\.path"),
        ("raw/Processed_data/../packed", [], r"lies in data\.source\.path"),
        ("recipe.yaml", [], r"recipe.yaml is a file; choose a folder"),
        ("recipe.yaml/new", [], r"recipe.yaml is a file; choose a folder"),
        ("unmounted/new", [], r"/unmounted is a broken link; choose a folder"),
    ],
)
def test_places_that_are_taken(
    url: str, files: list[str], message: str | None, recipe: Path, source: SourceConfig, tmp_path: Path
) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "link").symlink_to("raw")
    (tmp_path / "unmounted").symlink_to("gone")
    for name in files:
        (tmp_path / "used" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "used" / name).write_text("")
    if message is None:
        check_place(source, f"{tmp_path}/{url}")
    else:
        with pytest.raises(ConfigError, match=message):
            check_place(source, f"{tmp_path}/{url}")


def test_the_raw_files_may_lie_in_the_place(source: SourceConfig, tmp_path: Path) -> None:
    check_place(source, f"{tmp_path}")
    (tmp_path / "notes").write_text("")
    with pytest.raises(ConfigError, match=r"other files \(notes\)"):
        check_place(source, f"{tmp_path}")


def test_a_place_below_the_current_folder_may_be_as_deep_as_it_likes(
    source: SourceConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    check_place(source, f"{tmp_path}/no/such/place")


def test_raw_files_that_are_not_there(source: SourceConfig, tmp_path: Path) -> None:
    lost = source.model_copy(update={"path": "nowhere"})
    with pytest.raises(
        DataError, match=r"data\.source\.path \(to be packed to data\.url .*x\): nowhere: no such folder"
    ):
        check_place(lost, f"{tmp_path}/x")
    lost = source.model_copy(update={"path": "memory://nowhere"})
    check_place(lost, f"{tmp_path}/x")
    with pytest.raises(DataError, match="memory://nowhere: no such folder or archive; check the URL of the source"):
        prepare(lost, f"{tmp_path}/x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"windw": 8}, r"data\.source\.options: no option --windw; did you mean --window\?"),
        ({"foo": 1, "windw": 8}, r"data\.source\.options: no option --foo, --windw; did you mean --window\?"),
        ({"x": 1}, r"no option --x; there are --fold, --folds, --form, --shift, --stride, --window"),
        ({"window": "long"}, r"data\.source\.options: argument --window: invalid int value: 'long'"),
        ({"window": "-x"}, r"argument --window: invalid int value: '-x'"),
        ({"window": -1}, r"data\.source\.options: --window -1 --stride 16: both are 1 or more"),
        ({"fold": 7}, r"data\.source\.options: --folds 5 --fold 7: use 3 folds or more; --fold counts from 0"),
        ({"folds": 7}, r"data\.source\.options: --folds N goes together with --fold K"),
    ],
)
def test_wrong_options_are_named(
    options: dict[str, str | int | float], message: str, source: SourceConfig, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        prepare(source.model_copy(update={"options": options}), f"{tmp_path}/x")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "x").exists()


def test_what_is_odd_about_the_raw_files_is_said(
    source: SourceConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(Path(source.path) / "Raw_data" / "S25")
    prepare(source, f"{tmp_path}/x")
    assert capsys.readouterr().err == "warning: people with labels but without data, left out (1): S25\n"
    assert load_manifest(f"{tmp_path}/x").splits["test"].samples


def test_a_damaged_source_leaves_no_data_set(source: SourceConfig, tmp_path: Path) -> None:
    (Path(source.path) / "Raw_data" / "S25" / "HR.csv").unlink()
    with pytest.raises(MaestroError, match=r"S25/HR.csv is missing"):
        prepare(source, f"{tmp_path}/x")
    assert not (tmp_path / "x").exists()


def test_a_converter_that_is_not_there_is_named(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tried(recipe, "data.source.converter=uci_hap") == 2
    message = "data.source.converter: no converter 'uci_hap'; did you mean uci_hapt? There are edf, meds, mimic"
    assert message in capsys.readouterr().err
    prepare(SourceConfig.model_validate(yaml.safe_load(recipe.read_text())["data"]["source"]), f"{recipe.parent}/data")
    assert tried(recipe, "data.source.converter=uci_hap") == 2  # also where nothing has to be packed


def test_a_file_with_a_converter_is_enough() -> None:
    class Mine(Converter):
        name, reads = "a_mine", "nothing"

        def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

        def from_arguments(self, source: Path, arguments: argparse.Namespace) -> Conversion: ...  # type: ignore[empty-body]

    assert list(converters._load_converters()) == ["a_mine", *converters.CONVERTERS]
    assert isinstance(converters._load_converters()["a_mine"], Mine)


def test_copies_of_a_compressed_archive_are_made_once_and_go_at_the_end(
    source: SourceConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import maestro_dist.data.pack_parts as module

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    archive, data = tmp_path / "raw.tar.xz", tmp_path / "data"
    with tarfile.open(archive, "w:xz") as tar:
        tar.add(source.path, "..")  # no name of a member becomes the name of a file
    packed = source.model_copy(update={"path": str(archive)})
    with monkeypatch.context() as patch:
        patch.setattr(module, "check_complete", stopped)
        with pytest.raises(KeyboardInterrupt):
            prepare(packed, str(data))
    (copies,) = (data / RECORDS).glob("source-*")
    assert all(re.fullmatch(r"[0-9a-f]{16}(-000000|\.json)", path.name) for path in copies.iterdir())
    status = archive.stat()
    archive.write_bytes(b"x" * status.st_size)  # it is not read again
    os.utime(archive, ns=(status.st_atime_ns, status.st_mtime_ns))
    prepare(packed, str(data))
    prepare(source, str(tmp_path / "folder"))
    names = sorted(os.listdir(data))
    assert names == sorted(os.listdir(tmp_path / "folder"))
    assert all((data / name).read_bytes() == (tmp_path / "folder" / name).read_bytes() for name in names)
