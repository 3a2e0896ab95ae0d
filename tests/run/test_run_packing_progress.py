"""The progress of a packing on a terminal, and in a log."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
import runs

from maestro_dist.data.pack_parts import PackProgress
from maestro_dist.run import packing_progress
from maestro_dist.run.packing_progress import shown_progress

CODE = "import sys, packing; from maestro_dist.run.packing_progress import shown_progress\n"
CODE += "with shown_progress() as shown: packing.packed(sys.argv[1], packing.parts(sys.argv[2]), progress=shown)"


def test_a_bar_on_a_terminal_also_where_it_does_not_know_its_size(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()  # its size is 0 x 0
    environment = {**os.environ, "PYTHONPATH": f"{runs.ROOT}{os.pathsep}{runs.ROOT / 'tests'}"}
    environment.pop("COLUMNS", None)
    command = [sys.executable, "-c", CODE, str(tmp_path / "data"), str(tmp_path / "log")]
    with subprocess.Popen(command, stderr=theirs, env=environment):
        os.close(theirs)
        said = b""
        while True:
            try:
                piece = os.read(ours, 4096)
            except OSError:  # the other side is closed
                break
            said += piece
    os.close(ours)
    last = said.decode().replace("\r", "\n").strip().splitlines()[-1]
    shards = len(list((tmp_path / "data").glob("*.tar")))
    assert last.startswith("packing 100%|")
    assert f"14/14 parts, 503 samples, {shards} shards, " in last
    assert "MB/s" in last
    assert len(last) <= 80


def test_lines_in_a_log(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing_progress, "_EVERY_S", 0.0)
    with shown_progress() as show:
        show(PackProgress(14, parts=3, samples=1200, bytes=10, shards=2))
    assert "packing: 3 of 14 parts, 1,200 samples, 2 shards, " in capsys.readouterr().out
    monkeypatch.undo()
    with shown_progress() as show:
        show(PackProgress(14))
    assert capsys.readouterr().out == ""
