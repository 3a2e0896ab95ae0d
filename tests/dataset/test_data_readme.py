"""The README of the data folder: its snippets and commands run, and its files exist."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import runs

from maestro_dist.data import converters
from maestro_dist.data.manifest import load_manifest
from maestro_dist.data.pack import pack
from maestro_dist.errors import ConfigError
from maestro_dist.train import main

FOLDER = runs.ROOT / "maestro_dist" / "data"
TEXT = (FOLDER / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def test_it_names_all_files_and_no_others() -> None:
    table = "".join(line for line in TEXT.splitlines() if line.startswith("| `"))
    named = set(re.findall(r"`(\w+\.py|\w+/)`", table))
    files = {path.name for path in FOLDER.glob("*.py")} - {"__init__.py"}
    assert named == files | {"converters/", "storage/"}
    assert len(TEXT.splitlines()) < 150


def test_the_readme_of_storage_names_all_files_and_no_others() -> None:
    text = (FOLDER / "storage" / "README.md").read_text()
    table = "".join(line for line in text.splitlines() if line.startswith("| `"))
    files = {path.name for path in (FOLDER / "storage").glob("*.py")} - {"__init__.py"}
    assert set(re.findall(r"`(\w+\.py)`", table)) == files


def test_what_it_shows_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    own, batch, converter_file = blocks("python")
    exec(own + batch, {"__name__": "own"})
    names = {"__name__": "thermometers"}
    exec(converter_file, names)  # a file of its own
    assert load_manifest("data/ward").splits["train"].samples == 40
    (command,) = blocks("sh")
    program, *arguments = shlex.split(command.removeprefix("python -m "))
    assert program == "maestro_dist.train"
    assert main(arguments) == 0
    assert "dry run: nothing was trained" in capsys.readouterr().out

    assert "Thermometers" in names
    converter = converters._load_converters()["thermometers"]
    parser = argparse.ArgumentParser()
    converter.add_arguments(parser)
    for split, label in (("train", 0), ("train", 1), ("test", 1)):
        np.savetxt(tmp_path / f"{split}-{label}-{split}{label}.csv", np.linspace(36, 40, 25))
    arguments = parser.parse_args(["--window", "10"], argparse.Namespace(splits=None))
    conversion = converter.from_arguments(tmp_path, arguments)
    manifest = pack("data/thermometers", conversion.description, conversion.samples, splits=conversion.splits)
    assert {name: split.class_counts for name, split in manifest.splits.items()} == {
        "train": [2, 2],
        "validation": [0, 0],
        "test": [0, 2],
    }
    with pytest.raises(ConfigError, match="--splits: the names of the files give the splits"):
        converter.from_arguments(tmp_path, argparse.Namespace(window=10, splits=["test=1"]))
