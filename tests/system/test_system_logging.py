"""Logging: what a person sees by default, more on request, and never an error."""

from __future__ import annotations

import io
import logging
import sys

import pytest

from maestro_dist.system.logging_setup import LEVEL_VARIABLE, NOTE, configure_logging

LOG = logging.getLogger("maestro_dist.some.module")


def test_lines_are_plain_and_warnings_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging()
    LOG.debug("hidden")
    LOG.info("step 1, 50 % done")
    LOG.log(NOTE, "the run has not ended")
    LOG.warning("%d samples are skipped", 3)
    printed, said = capsys.readouterr()
    assert printed == "step 1, 50 % done\n"
    assert said == "note: the run has not ended\nwarning: 3 samples are skipped\n"


def test_debug_shows_more_and_a_second_setup_replaces_the_first(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging()
    configure_logging(debug=True)
    LOG.debug("costs: %s", [1, 2])
    assert capsys.readouterr().out == "debug: maestro_dist.some.module: costs: [1, 2]\n"


@pytest.mark.parametrize(("level", "shown"), [("warning", ""), ("INFO", "line\n"), ("loud", "line\n")])
def test_the_environment_sets_the_level(
    level: str, shown: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(LEVEL_VARIABLE, level)
    configure_logging()
    LOG.info("line")
    printed, said = capsys.readouterr()
    assert printed == shown
    assert ("warning: MAESTRO_LOG_LEVEL: 'LOUD' is not a level" in said) == (level == "loud")


def test_a_worker_delivers_levels_and_texts() -> None:
    found: list[tuple[str, int, str]] = []
    configure_logging(deliver=lambda *record: found.append(record))
    LOG.info("line")
    LOG.warning("bad sample %s", "a")
    LOG.debug("hidden")
    assert found == [(LOG.name, logging.INFO, "line"), (LOG.name, logging.WARNING, "bad sample a")]


class Speechless:
    def __str__(self) -> str:
        raise RuntimeError("not even that")


def test_logging_never_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(name: str, level: int, text: str) -> None:
        raise OSError("no connection")

    configure_logging(deliver=refuses)
    LOG.warning("nobody hears")
    configure_logging()
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stdout", closed)
    monkeypatch.setattr(sys, "stderr", closed)
    LOG.info("nobody hears")
    LOG.warning("nobody hears")
    LOG.warning("%s", Speechless())
    LOG.warning("%d", "no number")


def test_a_reader_that_is_gone_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        def write(self, text: str, /) -> int:
            raise BrokenPipeError

    configure_logging()
    gone = Gone()
    monkeypatch.setattr(sys, "stdout", gone)
    LOG.info("into the void")
    assert sys.stdout is not gone
    print("nothing happens", flush=True)
    sys.stdout.close()
