"""Logging of a process: one handler at the logger `maestro_dist`, one format, one level.

Every module logs to `logging.getLogger(__name__)`. Commands, workers and reader processes call `configure_logging`
once; a program that imports the package as a library sets up logging itself.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable

ROOT = "maestro_dist"
LEVEL_VARIABLE = "MAESTRO_LOG_LEVEL"
"""Environment variable with the lowest level that is shown: DEBUG, INFO (default), NOTE, WARNING or ERROR."""
NOTE = 25
"""Level between INFO and WARNING: a remark on the input. It is shown on stderr, so a table on stdout stays clean."""

_LEVELS = ("DEBUG", "INFO", "NOTE", "WARNING", "ERROR")
logging.addLevelName(NOTE, "NOTE")

Deliver = Callable[[str, int, str], object]
"""Sends the logger's name, the level and the text of a record to another process, which shows it."""


def configure_logging(*, debug: bool = False, deliver: Deliver | None = None) -> None:
    """Set up the logger `maestro_dist` of this process; a later call replaces the earlier setup.

    Records up to INFO go to stdout as plain lines, others to stderr as `note: ...`, `warning: ...` or `error: ...`.
    `debug` shows everything, in this process and in those that it starts. With `deliver`, records are passed on
    instead: a worker on another machine sends them to the driver.

    A record that cannot be shown is dropped: a closed terminal or a full disk under a log file never raises.
    """
    if debug:
        os.environ[LEVEL_VARIABLE] = "DEBUG"
    wanted = os.environ.get(LEVEL_VARIABLE, "INFO").strip().upper()
    logger = logging.getLogger(ROOT)
    logger.handlers[:] = [_ConsoleHandler() if deliver is None else _DeliveryHandler(deliver)]
    logger.propagate = False  # a library that sets up the root logger must not show the lines twice
    logger.setLevel(wanted if wanted in _LEVELS else logging.INFO)
    if wanted not in _LEVELS:
        logger.warning("%s: %r is not a level; choose one of %s", LEVEL_VARIABLE, wanted, ", ".join(_LEVELS))


class _DeliveryHandler(logging.Handler):
    """Passes records on to another process."""

    def __init__(self, deliver: Deliver) -> None:
        super().__init__()
        self._deliver = deliver

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._deliver(record.name, record.levelno, _text(record))
        except Exception:
            return


class _ConsoleHandler(logging.Handler):
    """Writes to the `sys.stdout` and `sys.stderr` of the moment, and flushes."""

    def emit(self, record: logging.LogRecord) -> None:
        plain = record.levelno <= logging.INFO
        try:
            print(_prefix(record) + _text(record), file=sys.stdout if plain else sys.stderr, flush=True)
        except BrokenPipeError:  # the reader is gone; Python would write the rest again at its end, and fail
            null = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
            sys.stdout, sys.stderr = (null, sys.stderr) if plain else (sys.stdout, null)
        except Exception:
            return


def _text(record: logging.LogRecord) -> str:
    text = record.getMessage()
    return text if record.exc_info is None else f"{text}\n{logging.Formatter().formatException(record.exc_info)}"


def _prefix(record: logging.LogRecord) -> str:
    if record.levelno == logging.INFO:
        return ""
    if record.levelno < logging.INFO:
        return f"debug: {record.name}: "
    return {NOTE: "note: ", logging.WARNING: "warning: "}.get(record.levelno, "error: ")
