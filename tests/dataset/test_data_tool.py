"""`tools/pack_dataset.py` as it is typed: exit codes, places, mistyped options."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import people
import pytest
import stays

from maestro_dist.data.manifest import load_manifest

TOOL = Path(__file__).parents[2] / "tools" / "pack_dataset.py"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home and current folder, with raw files in `raw`."""
    people.hapt(tmp_path / "raw")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def typed(monkeypatch: pytest.MonkeyPatch, line: str) -> int | str | None:
    """The exit code of `pack_dataset.py LINE`."""
    monkeypatch.setattr(sys, "argv", [str(TOOL), *line.split()])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(TOOL), run_name="__main__")
    return end.value.code


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("--help", 0, "physionet2012 PhysioNet/CinC Challenge 2012"),
        ("--help", 0, "stress_predict Stress-Predict: Raw_data"),
        ("--help", 0, "uci_hapt UCI HAPT (data set 341)"),
        ("uci_hapt --help", 0, "--modalities"),
        ("", 2, "required: NAME"),
        ("nope", 2, "invalid choice: 'nope'"),
        ("uci_hapt --source raw", 2, "required: --out"),
        ("uci_hapt --source raw --out out --windw 8", 2, "no option --windw; did you mean --window?"),
        ("uci_hapt --source raw --out out --over-write", 2, "no option --over-write; did you mean --overwrite?"),
        ("uci_hapt --source raw --out out more", 2, "unknown argument: more"),
        ("uci_hapt --source raw --out out --window x", 2, "argument --window: invalid int value: 'x'"),
        ("uci_hapt --source raw --out out --shard-mb 0", 2, "--shard-mb: '0' is not a whole number from 1"),
        ("uci_hapt --source raw --out out --symbols beside --alphabet 1", 2, "error: --alphabet"),
        ("physionet2012 --source raw --out out --fold 7", 2, "error: --fold 7 --times hourly: folds are 0 to 4"),
        ("uci_hapt --source none --out out", 1, "error: --source: none: no such folder or archive"),
        ("uci_hapt --source memory://bucket/raw --out out", 1, "error: memory://bucket/raw: no such folder or archive"),
        ("uci_hapt --source raw --out out --workers -1", 2, "--workers: '-1' is not a whole number from 0"),
        ("uci_hapt --source raw --out out s3.endpoint=http://x", 2, "s3.endpoint: unknown key; did you mean s3.end"),
        ("uci_hapt --source raw --out raw", 2, "error: --out: raw lies in --source raw"),
        ("uci_hapt --source raw --out ~/raw/new", 2, "raw/new lies in --source raw"),
        ("uci_hapt --source raw --out raw/RawData/labels.txt/x", 2, "labels.txt is a file; choose a folder"),
        ("uci_hapt --source raw --out ~nobody-of-that-name/x", 2, "error: --out: ~nobody-of-that-name/x: no h"),
        ("packed --source raw --out raw", 2, "error: --out: raw lies in --source raw"),
    ],
)
def test_what_ends_at_once(
    line: str, code: int, message: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert typed(monkeypatch, line) == code
    said = capsys.readouterr()
    assert message in " ".join((said.err if code else said.out).split())
    assert "interrupted" not in said.err
    assert sorted(path.name for path in home.iterdir()) == ["raw"]


def test_home_overwriting_and_warnings(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "uci_hapt --source ~/raw --out ~/sets/hapt --window 16 --splits validation=6"
    assert typed(monkeypatch, line) == 0
    assert load_manifest(str(home / "sets" / "hapt")).splits["validation"].samples
    assert capsys.readouterr().err.count("warning") == 0
    labels = home / "raw" / "RawData" / "labels.txt"
    labels.write_text(labels.read_text().splitlines()[0] + "\n")
    assert typed(monkeypatch, line) == 1
    assert f"{home}/sets/hapt: a packed data set is there already; replace it with" in capsys.readouterr().err
    assert load_manifest(str(home / "sets" / "hapt")).splits["validation"].samples
    assert typed(monkeypatch, f"{line} --overwrite") == 0
    said = capsys.readouterr().err
    assert "warning: experiments without a row in labels.txt, left out: exp06 (user06)" in said
    assert not load_manifest(str(home / "sets" / "hapt")).splits["validation"].samples
    assert typed(monkeypatch, "packed --source ~/sets/hapt --out ~/sets/symbols") == 0
    assert load_manifest(str(home / "sets" / "symbols")).symbols is not None


def test_a_test_set_alone(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stays.write(home / "sets", "c", {7: stays.stay(7, "01:00,HR,60"), 8: stays.stay(8)}, {7: 1, 8: 0})
    assert typed(monkeypatch, "physionet2012 --source sets --out out --symbols beside") == 0
    assert {name: split.samples for name, split in load_manifest(str(home / "out")).splits.items()} == {"test": 2}
