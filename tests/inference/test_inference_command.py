"""`python -m maestro_dist.predict`: data sets and files in, a table out; and the list of commands."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exported_models import CLASSES, FULL, MODALITIES, TASK, as_lists, exported

from maestro_dist.data.pack import Description, RawSample, pack
from maestro_dist.inference.command import main
from maestro_dist.inference.predictor import load_model

SAMPLES = [FULL, {"acc": FULL["acc"]}, {"eda": FULL["eda"]}, {}]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with its exported model, a packed data set, and files."""
    folder = tmp_path_factory.mktemp("place")
    exported(folder / "runs" / "mine" / "model")
    packed(folder / "data")
    rows = [{name: as_lists(array) for name, array in sample.items()} for sample in SAMPLES]
    (folder / "s.json").write_text(json.dumps(rows))
    (folder / "s.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    arrays = {name: np.full((4, *array.shape), np.nan) for name, array in FULL.items()}
    for row, sample in enumerate(SAMPLES):
        for name, array in sample.items():
            arrays[name][row] = array
    np.savez(folder / "s.npz", **arrays)
    np.savez(folder / "one.npz", **FULL)
    return folder


def packed(folder: Path, scale: float = 1.0) -> None:
    """The samples as a data set without labels."""
    about = Description("some", "", "", "", "none", (), "", 4.0, tuple(replace(m, mean=(), std=()) for m in MODALITIES))
    samples = [
        RawSample("test", f"k{n}", 0, "", "", 0.0, 4.0, {name: array * scale for name, array in sample.items()})
        for n, sample in enumerate(SAMPLES)
    ]
    pack(str(folder), about, samples, splits=("test",))


def table(text: str) -> tuple[list[str], np.ndarray]:
    """Keys and answers of a CSV; NaN where a cell is empty."""
    header, *rows = csv.reader(io.StringIO(text))
    assert header == ["sample", *CLASSES]
    return [row[0] for row in rows], np.array([[float(cell or "nan") for cell in row[1:]] for row in rows])


@pytest.mark.parametrize("data", ["data", "data.url=data", "s.json", "s.jsonl", "s.npz"])
def test_data_sets_and_files_give_the_models_answers(
    place: Path, data: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    assert main(["mine", data, "--batch", "3"]) == 0
    keys, answers = table(capsys.readouterr().out)
    assert keys == [f"k{n}" if "data" in data else str(n) for n in range(4)]
    found = load_model("runs/mine").predict(SAMPLES, unobserved="nan")
    assert answers == pytest.approx(found, abs=1e-6, nan_ok=True)
    assert np.isnan(answers).any(axis=1).tolist() == [False, False, False, True]


def test_json_lines_and_one_sample(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    assert main([str(place / "runs" / "mine" / "model"), str(place / "one.npz"), "--out", str(out)]) == 0
    (line,) = out.read_text().splitlines()
    row = json.loads(line)
    assert row["sample"] == "0"
    assert list(row["answer"]) == list(CLASSES)
    assert sum(row["answer"].values()) == pytest.approx(1.0)


def test_a_number_has_one_column_and_recordings_come_beside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exported(tmp_path, replace(TASK, kind="regression", classes=()), normalize="recording")
    sample = {"eda": as_lists(FULL["eda"]), "eda_recording": [[2.0, 1.0]]}
    (tmp_path / "s.json").write_text(json.dumps(sample))
    assert main([str(tmp_path), str(tmp_path / "s.json")]) == 0
    header, answer = capsys.readouterr().out.splitlines()
    assert header == "sample,value"
    assert np.isfinite(float(answer.removeprefix("0,")))
    del sample["eda_recording"]
    (tmp_path / "s.json").write_text(json.dumps(sample))
    assert main([str(tmp_path), str(tmp_path / "s.json")]) == 1
    assert "sample 0, eda, its recording: mean and standard deviation are missing" in capsys.readouterr().err


def bad_files(folder: Path) -> dict[str, tuple[list[str], str]]:
    """Arguments after the model, and what is said of them."""
    contents: dict[str, Any] = {
        "cut.json": '[{"eda": [[1',
        "number.json": "5",
        "other.json": '{"edaa": [1]}',
        "cut.npz": b"PK\x03\x04nothing",
        "text.npz": "nothing",
    }
    packed_arrays = io.BytesIO()
    np.savez_compressed(packed_arrays, eda=np.arange(4096.0))
    damaged = bytearray(packed_arrays.getvalue())
    damaged[200:260] = bytes(60)
    contents["damaged.npz"] = bytes(damaged)
    for name, content in contents.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    np.savez(folder / "uneven.npz", acc=np.zeros((2, 32, 3)), eda=np.zeros((3, 16, 1)))
    np.savez(folder / "pickled.npz", eda=np.array([{}]))
    packed(folder / "micro", 1e4)
    said = {
        "cut.json": "cut.json: damaged (",
        "number.json": "give a sample (a dict: modality -> array) or a list of samples, not int",
        "other.json": "sample 0: no modality 'edaa' (did you mean 'eda'?)",
        "cut.npz": "cut.npz: damaged (",
        "text.npz": "text.npz: damaged (",
        "damaged.npz": "damaged.npz: damaged (",
        "pickled.npz": "pickled.npz: damaged (",
        "uneven.npz": "the arrays have different numbers of samples: acc [2, 32, 3], eda [3, 16, 1]",
        "missing.json": "missing.json: no such file",
        "nothing": "not a packed data set (it has no manifest.json) nor a .npz, .json or .jsonl file",
        "micro": "--any-units takes the numbers as they are",
    }
    cases = {name: ([str(folder / name)], text) for name, text in said.items()}
    cases["split"] = (
        [str(folder / "micro"), "--split", "train"],
        "no split 'train' in 'some'; it has test (choose another with --split",
    )
    cases["out"] = ([str(folder / "micro"), "--out", str(folder)], f"--out {folder}: not writable")
    cases["batch"] = ([str(folder / "micro"), "--batch", "0"], "--batch: 0 is not 1 or more")
    return cases


def test_what_cannot_be_answered_is_one_line(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = bad_files(tmp_path)
    capsys.readouterr()  # what packing has said
    for name, (arguments, said) in cases.items():
        assert main([str(place / "runs" / "mine"), *arguments]) != 0, name
        printed, line = capsys.readouterr()
        assert printed == "", name
        assert line.startswith("error: "), name
        assert said in line, name
        assert line.count("\n") == 1, name


def test_a_run_that_is_not_there_is_told(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "runs" / "mine" / "config.yaml").touch()
    (place / "runs" / "begun").mkdir()
    (place / "runs" / "begun" / "config.yaml").touch()
    monkeypatch.chdir(place)
    for model, said in (
        ("mime", "; did you mean runs/mine?"),
        ("runs", "; it contains the runs begun, mine"),
        ("begun", ""),
    ):
        assert main([model, "data"]) == 2
        assert f"nor a run with one{said}" in capsys.readouterr().err


@pytest.mark.parametrize("module", ["maestro_dist", "maestro_dist.predict"])
def test_the_commands_say_what_they_are(module: str) -> None:
    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True, timeout=120)

    helped = call("--help")
    assert (helped.returncode, helped.stderr) == (0, "")
    assert "python -m maestro_dist.predict MODEL DATA" in helped.stdout
    wrong = call("nonsense")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "error: " in wrong.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_answers_that_do_not_arrive_are_an_error(place: Path, tmp_path: Path) -> None:
    packed(tmp_path / "data", 1.0)
    command = [sys.executable, "-m", "maestro_dist.predict", str(place / "runs" / "mine"), str(tmp_path / "data")]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == 1
    assert "error: the predictions were not written completely: No space left on device" in done.stderr


def test_a_table_is_replaced_whole(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed(tmp_path / "data", 1.0)
    out = tmp_path / "answers.csv"
    out.write_text("before")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    arguments = [str(place / "runs" / "mine"), str(tmp_path / "data"), "--out", str(out)]
    assert main(arguments) == 1
    assert out.read_text() == "before"
    monkeypatch.undo()
    assert main(arguments) == 0
    assert out.read_text().startswith("sample,")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["answers.csv", "data"]
