"""Tools answer `--help` as files and as modules, wherever they are started."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-m", "tools.benchmarks.baselines"], "baseline.trees = 1000"),
        ([str(ROOT / "tools" / "benchmarks" / "baselines")], "baseline.penalties = [10, 100,"),
        (["-m", "tools.benchmark"], "--quick"),
        (["-m", "tools.run_suite"], "--report"),
    ],
)
def test_help(arguments: list[str], said: str, tmp_path: Path) -> None:
    folder = ROOT if arguments[0] == "-m" else tmp_path
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, *arguments, "--help"], cwd=folder, env=env, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert said in done.stdout
