"""A command and its terminal: no signal comes at a bad time, nothing that is printed ends it, errors are one line."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from maestro_dist.errors import ConfigError, run_main
from maestro_dist.system.terminal import interruptible, shielded

STOPS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(autouse=True)
def harmless() -> Iterator[None]:
    """Outside `interruptible` no signal of these tests may end the tests."""
    before = [(number, signal.signal(number, lambda *_: None)) for number in STOPS]
    yield
    for number, handler in before:
        signal.signal(number, handler)


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", STOPS, ids=lambda number: number.name)
def test_a_request_to_stop_is_obeyed_once_and_all_is_closed(number: int) -> None:
    closed = []

    @interruptible()
    def command() -> None:
        try:
            with interruptible():  # as the launcher's own, within that of the command
                send(number)
        finally:
            for other in STOPS:
                send(other)
            try:
                raise OSError
            except OSError:
                send(number)  # here another error hides the first
            closed.append(number)

    with pytest.raises(KeyboardInterrupt):
        command()
    assert closed == [number]


def test_a_second_request_counts_where_a_library_has_swallowed_the_first() -> None:
    with interruptible():
        with contextlib.suppress(KeyboardInterrupt):
            send(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGTERM)


@pytest.mark.parametrize("number", STOPS, ids=lambda number: number.name)
def test_a_shield_holds_signals_back_until_its_end(number: int) -> None:
    closed = []

    @interruptible()
    def command() -> None:
        with shielded():
            with shielded():
                send(number)
                send(number)
            closed.append(number)
        closed.append(0)

    with pytest.raises(KeyboardInterrupt):
        command()
    assert closed == [number]
    with shielded():
        pass  # nothing is left of it


def test_a_shield_in_a_closing_leaves_the_first_request_alone() -> None:
    @interruptible()
    def command() -> None:
        try:
            raise KeyboardInterrupt("first")
        finally:
            with shielded():
                send(signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt, match="first"):
        command()


def test_nohup_is_respected() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with interruptible():
        send(signal.SIGHUP)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGTERM)
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_what_a_script_ignores_for_its_jobs_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with interruptible():
        send(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_a_closing_that_takes_too_long_can_be_given_up() -> None:
    asked = 0
    with contextlib.suppress(KeyboardInterrupt), interruptible():
        try:
            send(signal.SIGTERM)
        finally:
            while asked < 100:
                asked += 1
                send(signal.SIGINT)
    assert 4 < asked < 20


def raising(error: BaseException) -> Callable[[], int]:
    def main() -> int:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ConfigError("run.name: no"), 2, "run.name: no"),
        (
            PermissionError(errno.EACCES, "Permission denied", "/a/b"),
            1,
            "/a/b: Permission denied; choose a folder that",
        ),
        (OSError(errno.EROFS, "Read-only file system", "/a"), 1, "/a: Read-only file system; choose a writable folder"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "No space left on device; free some space"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", b"/a"), 1, "/a: Disk quota exceeded; free some of your quota"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "n\nn"), 1, "n n: File name too long; choose a shorter"),
        (OSError(errno.ETXTBSY, "Text file busy", "/a", None, "/b"), 1, "/a -> /b: Text file busy (in "),
        (ConnectionResetError("lost\nit"), 1, "lost it (in test_system_terminal.py:"),
        (BrokenPipeError(), 1, "BrokenPipeError (in "),
        (OSError("url: https://me:hunter2@host/x?X-Amz-Signature=abc"), 1, "url: https://host/x (in "),
        (MemoryError(), 1, "not enough memory (MemoryError)"),
        (RuntimeError("[enforce] DefaultCPUAllocator: can't allocate memory: you"), 1, "not enough memory ([enforce"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (SystemExit(signal.SIGTERM), 130, "interrupted"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_what_a_person_can_mend_is_one_line(
    error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(raising(error), debug=False) == code
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: {said}")
    assert printed.count("\n") == 1


def test_debug_shows_where_a_refusal_came_up(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(raising(OSError(errno.EROFS, "no", "/a")), debug=True) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("error", [ValueError("a bug"), RuntimeError("a bug"), SystemExit(0), SystemExit(2)], ids=repr)
def test_bugs_and_exits_of_the_command_line_pass_through(error: BaseException) -> None:
    with pytest.raises(type(error)) as raised:
        run_main(raising(error), debug=False)
    assert raised.value is error


PRINTS = """
import sys
from maestro_dist.errors import run_main

def main():
    for number in range(5000):
        print("0.5 \\u00b1 0.1 \\u65e5\\u672c \\udcff", number)
    print("error stream \\u00b1", file=sys.stderr)
    open(sys.argv[1], "w").close()

sys.exit(run_main(main, debug=False))
"""


@pytest.mark.parametrize(
    ("output", "encoding", "buffering"),
    [
        ("file", "ascii", []),
        ("file", "latin-1", []),
        ("file", "utf-8", ["-u"]),
        ("closed pipe", "ascii", []),
        ("closed pipe", "utf-8", ["-u"]),
        ("full disk", "utf-8", []),
        ("full disk", "utf-8", ["-u"]),
    ],
)
def test_printing_never_ends_a_command(output: str, encoding: str, buffering: list[str], tmp_path: Path) -> None:
    done = f"{tmp_path}/done"
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    environment.pop("PYTHONUNBUFFERED", None)
    if output == "closed pipe":
        read, write = os.pipe()
        os.close(read)
    else:
        name = "/dev/full" if output == "full disk" else f"{tmp_path}/printed"
        write = os.open(name, os.O_WRONLY | os.O_CREAT, 0o600)
    command = [sys.executable, *buffering, "-c", PRINTS, done]
    try:
        found = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, env=environment, timeout=120, check=False)
    finally:
        os.close(write)
    assert (found.returncode, os.path.exists(done)) == (0, True)
    assert b"Traceback" not in found.stderr
    assert found.stderr.startswith(b"error stream")
    if output == "file":
        with open(f"{tmp_path}/printed", "rb") as file:
            lines = file.read().decode(encoding).splitlines()
        assert len(lines) == 5000
        assert (
            lines[-1]
            == {
                "ascii": r"0.5 \xb1 0.1 \u65e5\u672c \udcff 4999",
                "latin-1": "0.5 ± 0.1 \\u65e5\\u672c \\udcff 4999",
                "utf-8": "0.5 ± 0.1 日本 \\udcff 4999",
            }[encoding]
        )


def test_a_closed_output_is_no_place_for_files(tmp_path: Path) -> None:
    """Descriptors that are closed at the start would be given to the next files that are opened."""
    program = PRINTS.replace("def main():", "def main():\n    sys.kept = open(sys.argv[2], 'w'); sys.stdout.flush()")
    command = [sys.executable, "-c", program, str(tmp_path / "done"), str(tmp_path / "file")]
    found = subprocess.run(command, preexec_fn=lambda: os.closerange(0, 3), timeout=120, check=False)
    assert (found.returncode, (tmp_path / "done").exists()) == (0, True)
    assert (tmp_path / "file").read_bytes() == b""


@pytest.mark.parametrize("module", ["maestro_dist.train", "maestro_dist.evaluate"])
def test_help_survives_a_reader_that_has_gone(module: str) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", module, "--help"]
    found = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, timeout=120, check=False)
    os.close(write)
    assert (found.returncode, found.stderr) == (0, b"")
