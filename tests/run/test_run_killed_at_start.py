"""A driver that is killed while it writes the first files of a run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import runs

from maestro_dist.data.storage import Storage
from maestro_dist.errors import StorageError

KILLED = """
import os, signal, sys, time
from maestro_dist.data.storage import Storage
from maestro_dist.train import main
write = Storage.write
def killed(storage, path, *arguments, **options):
    if path == "data/manifest.json":
        time.sleep(2)  # if both are written at the same time, this is the later one
    write(storage, path, *arguments, **options)
    if path == "run.json":
        os.kill(os.getpid(), signal.SIGKILL)
Storage.write = killed
main(sys.argv[1:])
"""


def evaluates(run: Path) -> bool:
    from maestro_dist.evaluate import main

    return main([str(run), "--rates", "0", "--threads", "1"]) == 0


@pytest.mark.slow
def test_a_run_that_was_killed_with_its_record_goes_on_and_is_evaluated(synthetic: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, *runs.arguments(tmp_path, synthetic, "optim.epochs=1")]
    process = subprocess.run(command, cwd=runs.ROOT, check=False, timeout=600)
    assert process.returncode == -signal.SIGKILL
    run = tmp_path / "tiny"
    assert (run / "run.json").exists()
    assert (run / "data" / "manifest.json").exists()
    assert runs.train(tmp_path, synthetic, "optim.epochs=1") == 0
    assert evaluates(run)


@pytest.mark.slow
def test_a_missing_manifest_is_written_again(
    synthetic: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a run that an earlier version has left without one, finished or not."""
    assert runs.train(tmp_path, synthetic, "optim.epochs=2") == 0
    run = tmp_path / "tiny"
    copy = run / "data" / "manifest.json"
    content = copy.read_bytes()
    copy.unlink()
    assert not evaluates(run)
    with monkeypatch.context() as read_only:

        def refuses(storage: Storage, path: str, *_: object, **__: object) -> None:
            raise StorageError(f"cannot write {storage.name(path)}: Read-only file system")

        read_only.setattr(Storage, "write", refuses)
        assert runs.train(tmp_path, synthetic, "optim.epochs=2") == 0  # it is finished all the same
    assert "warning: cannot write" in capsys.readouterr().err
    assert runs.train(tmp_path, synthetic, "optim.epochs=2") == 0
    assert copy.read_bytes() == content
    assert evaluates(run)

    runs.rewind_to(run, 7)
    copy.unlink()
    os.rmdir(run / "data")
    assert runs.train(tmp_path, synthetic, "optim.epochs=2") == 0
    assert copy.read_bytes() == content
    runs.rewind_to(run, 7)
    copy.unlink()
    capsys.readouterr()
    assert runs.train(tmp_path, synthetic, "optim.epochs=2", "optim.lr=1") == 2
    assert not copy.exists()  # another run's
