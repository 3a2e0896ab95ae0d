"""The README of the data folder: its snippets and commands run, and its files exist."""

from __future__ import annotations

import argparse
import os
import pickle
import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import runs
import yaml
from table_folders import wristbands

from maestro_dist.data import converters
from maestro_dist.data.manifest import load_manifest
from maestro_dist.data.prepare import ConversionRequest, pack_conversion
from maestro_dist.data.tables.layout import TableLayout
from maestro_dist.errors import ConfigError
from maestro_dist.train import main

FOLDER = runs.ROOT / "maestro_dist" / "data"
TEXT = (FOLDER / "README.md").read_text()
CONVERTERS = (FOLDER / "converters" / "README.md").read_text()


def blocks(language: str, text: str = TEXT) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_it_names_all_files_and_no_others() -> None:
    table = "".join(line for line in TEXT.splitlines() if line.startswith("| `"))
    named = set(re.findall(r"`(\w+\.py|\w+/)`", table))
    files = {path.name for path in FOLDER.glob("*.py")} - {"__init__.py"}
    assert named == files | {"converters/", "mixture/", "preview/", "recordings/", "storage/", "tables/"}
    assert len(TEXT.splitlines()) < 150


@pytest.mark.parametrize("folder", ["storage", "converters", "recordings", "tables"])
def test_other_readmes_name_all_files_and_no_others(folder: str) -> None:
    text = (FOLDER / folder / "README.md").read_text()
    table = "".join(line for line in text.splitlines() if line.startswith("| `"))
    files = {path.name for path in (FOLDER / folder).glob("*.py")} - {"__init__.py"}
    assert set(re.findall(r"`(\w+\.py)`", table)) == files


def test_what_it_shows_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    frames, own, batch = blocks("python")
    exec(frames + own + batch, {"__name__": "own"})
    assert load_manifest("data/nights").classes == ["calm", "restless"]
    assert load_manifest("data/ward").splits["train"].samples == 40
    assert "`--dry-run` shows a run without training" in TEXT
    assert main(["data.url=data/ward", "--dry-run"]) == 0
    assert "dry run: nothing was trained" in capsys.readouterr().out


def test_recordings_are_packed_and_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = (FOLDER / "recordings" / "README.md").read_text()
    (own,) = blocks("python", text)
    exec(own, {"__name__": "own"})
    (command,) = blocks("sh", text)
    assert main(shlex.split(command.removeprefix("python -m maestro_dist.train "))) == 0
    assert "dry run: nothing was trained" in capsys.readouterr().out


@pytest.mark.slow
def test_its_five_commands_go_from_tables_to_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    wristbands(tmp_path / "my_tables", people=6)
    (text,) = blocks("bash")
    commands = [shlex.split(line, comments=True) for line in text.splitlines()]
    assert len(commands) == 5
    for words in commands:
        more = ["run.launcher=inline", "optim.max_steps=3"] if "maestro_dist.train" in words else []
        place = [str(runs.ROOT / words[1])] if words[1].startswith("tools/") else words[1:2]
        environment = {**os.environ, "PYTHONPATH": f"{runs.ROOT}:{runs.ROOT}/tools"}
        subprocess.run([sys.executable, *place, *words[2:], *more], check=True, env=environment, timeout=600)
    assert (tmp_path / "runs/mine/result.json").exists()


def test_the_layout_that_it_shows_is_one() -> None:
    (text,) = blocks("yaml", (FOLDER / "tables" / "README.md").read_text())
    layout = TableLayout.model_validate(yaml.safe_load(text))
    assert [list(file.modalities) for file in layout.files] == [["acc"], ["heart"], [], ["age"]]


def test_its_converter_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (text,) = blocks("python", CONVERTERS)
    (tmp_path / "thermometers.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    import_module("thermometers")
    converter = converters._load_converters()["thermometers"]
    parser = argparse.ArgumentParser()
    converter.add_arguments(parser)
    for split, label in (("train", 0), ("train", 1), ("test", 1)):
        np.savetxt(tmp_path / f"{split}-{label}-{split}{label}.csv", np.linspace(36, 40, 25))
    arguments = parser.parse_args(["--window", "10"], argparse.Namespace(splits=None))
    conversion = converter.from_arguments(tmp_path, arguments)
    assert pickle.loads(pickle.dumps(conversion.parts)) == conversion.parts
    request = ConversionRequest("thermometers", ".", {"window": 10})
    manifest, _ = pack_conversion(conversion, "data/thermometers", request)
    assert {name: split.class_counts for name, split in manifest.splits.items()} == {
        "train": [2, 2],
        "validation": [0, 0],
        "test": [0, 2],
    }
    with pytest.raises(ConfigError, match="--splits: the names of the files give the splits"):
        converter.from_arguments(tmp_path, argparse.Namespace(window=10, splits=["test=1"]))
