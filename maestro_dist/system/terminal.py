"""A command and its terminal: text that cannot be shown, a reader that has gone, and requests to stop."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any, TextIO

_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PATIENCE = 8
"""Requests to stop after which a closing that takes too long is given up."""
_NOTE = b"stopping as soon as all is closed; to give that up, ask again a few times\n"

_shields = 0
_held_back = False
_requests = 0


def never_fail_to_print() -> None:
    """From now on no text that is printed can end this process, whatever becomes of its terminal, pipe or log file.

    Characters that the output's encoding lacks are escaped (`\\xb1`). What cannot be written because the reader has
    gone (`| head`), the terminal is closed or the disk of a log file is full, is dropped.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed (`>&-`): the next file to be opened would take its place, and what is printed
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdout, sys.stderr = _tolerant(sys.stdout), _tolerant(sys.stderr)


class _Raw(io.FileIO):
    """A file descriptor that takes all that is written to it, whether or not it can pass it on.

    `lost` says why something could not be passed on; a reader or a terminal that has gone is no loss.
    """

    lost: OSError | None = None

    def write(self, data: Any, /) -> int:
        try:
            while (written := super().write(data)) is None:  # a pipe that does not block, and is full
                select.select([], [self], [])
            return written
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                self.lost = error
            return len(data)


def lost(stream: TextIO) -> OSError | None:
    """Why what was printed to `stream` has not arrived whole; None where it has, or where nobody reads any more."""
    stream.flush()
    buffer = getattr(stream, "buffer", None)
    found: OSError | None = getattr(getattr(buffer, "raw", buffer), "lost", None)
    return found


def _tolerant(stream: TextIO | None) -> TextIO:
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8", errors="backslashreplace")
    buffer = getattr(stream, "buffer", None)
    raw = getattr(buffer, "raw", buffer)  # `python -u` has no buffer between
    if type(stream) is not io.TextIOWrapper or type(raw) is not io.FileIO:
        return stream  # not the process's own (a notebook's, a test's), or made tolerant before
    with contextlib.suppress(OSError):
        stream.flush()
    tolerant: Any = _Raw(stream.fileno(), "wb", closefd=False)
    return io.TextIOWrapper(
        tolerant if stream.write_through else io.BufferedWriter(tolerant),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM and the hang-up of a terminal (SIGHUP) end what runs inside as Ctrl-C does: by `KeyboardInterrupt`.

    A signal that comes while an earlier one is being dealt with does not disturb the closing; after many of them the
    closing itself is given up. A hang-up that this process was told to ignore (`nohup`) stays ignored, and so does
    Ctrl-C (`train ... &` in a script). In a thread other than the main one nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    global _requests
    ignored = [n for n in (signal.SIGHUP, signal.SIGINT) if signal.getsignal(n) == signal.SIG_IGN]
    before = [(number, signal.signal(number, _stop)) for number in _STOPS if number not in ignored]
    if all(handler is not _stop for _, handler in before):
        _requests = 0
    try:
        yield
    finally:
        for number, handler in before:
            if handler is not None:  # a C library's, which cannot be put back
                signal.signal(number, handler)


@contextlib.contextmanager
def shielded() -> Iterator[None]:
    """What runs inside is ended by no signal that `interruptible` deals with; one that comes is obeyed afterwards."""
    global _shields, _held_back
    _shields += 1
    try:
        yield
    finally:
        _shields -= 1
        if _held_back and not _shields:
            _held_back = False
            if not _is_stopping():
                raise KeyboardInterrupt


@contextlib.contextmanager
def handlers_kept() -> Iterator[None]:
    """Signal handlers that a library sets inside are taken back; processes that it starts do not hear of a hang-up.

    They would die of it before this process can close what it shares with them.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _STOPS}
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})  # inherited by what is started, and kept for us
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})


def _stop(*_: object) -> None:
    global _held_back, _requests
    _requests += 1
    if not (_shields or _is_stopping()) or _requests > _PATIENCE:
        raise KeyboardInterrupt
    _held_back = _shields > 0
    with contextlib.suppress(OSError):
        os.write(2, _NOTE)  # print() may be what was interrupted, and cannot be entered twice


def _is_stopping() -> bool:
    """Whether an earlier request to stop is on its way up, through `except`, `finally` and the ends of `with`."""
    error = sys.exception()
    while error is not None:
        if isinstance(error, KeyboardInterrupt | SystemExit):
            return True
        error = error.__context__
    return False
