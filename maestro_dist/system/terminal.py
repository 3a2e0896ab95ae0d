"""A command and its terminal: output that cannot be written, and signals to stop."""

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
_MOST_REQUESTS = 8
"""Number of signals after which cleanup is aborted."""
_NOTE = b"stopping after cleanup; to abort the cleanup, repeat the signal a few times\n"

_shields = 0
_pending = False
_requests = 0


def never_fail_to_print() -> None:
    """From now on, printing never raises in this process.

    Characters that the encoding of the output does not have are escaped (`\\xb1`). Output is dropped if the reader is
    gone (`| head`), the terminal is closed or the disk of a log file is full.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed (`>&-`): the next opened file would get its number, and the printed text
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdout, sys.stderr = _tolerant(sys.stdout), _tolerant(sys.stderr)


class _Raw(io.FileIO):
    """A file descriptor that accepts all output and drops what it cannot write.

    `lost` is the error of dropped output; output for a reader or terminal that is gone does not count.
    """

    lost: OSError | None = None

    def write(self, data: Any, /) -> int:
        try:
            while (written := super().write(data)) is None:  # a full pipe in non-blocking mode
                select.select([], [self], [])
            return written
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                self.lost = error
            return len(data)


def lost(stream: TextIO) -> OSError | None:
    """The error if output of `stream` was lost; None if all was written, or if the reader is gone."""
    stream.flush()
    buffer = getattr(stream, "buffer", None)
    error: OSError | None = getattr(getattr(buffer, "raw", buffer), "lost", None)
    return error


def _tolerant(stream: TextIO | None) -> TextIO:
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8", errors="backslashreplace")
    buffer = getattr(stream, "buffer", None)
    raw = getattr(buffer, "raw", buffer)  # `python -u` has no buffer
    if type(stream) is not io.TextIOWrapper or type(raw) is not io.FileIO:
        return stream  # not the process's own (a notebook, a test), or already tolerant
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
    """Context in which SIGTERM and SIGHUP (the terminal is closed) raise `KeyboardInterrupt`, as Ctrl-C does.

    Further signals do not interrupt the cleanup, until there are many of them. Signals that the process already
    ignores stay ignored: SIGHUP under `nohup`, SIGINT for `train ... &` in a script. Outside the main thread nothing
    changes.
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
            if handler is not None:  # set by a C library: cannot be restored
                signal.signal(number, handler)


@contextlib.contextmanager
def shielded() -> Iterator[None]:
    """Context that the signals of `interruptible` do not interrupt; a signal that arrives takes effect at its end."""
    global _shields, _pending
    _shields += 1
    try:
        yield
    finally:
        _shields -= 1
        if _pending and not _shields:
            _pending = False
            if not _is_stopping():
                raise KeyboardInterrupt


@contextlib.contextmanager
def handlers_kept() -> Iterator[None]:
    """Context that restores signal handlers which a library sets inside. Processes started inside ignore SIGHUP.

    Otherwise they would end before this process can shut them down properly.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _STOPS}
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})  # inherited by child processes; pending for this process
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})


def _stop(*_: object) -> None:
    global _pending, _requests
    _requests += 1
    if not (_shields or _is_stopping()) or _requests > _MOST_REQUESTS:
        raise KeyboardInterrupt
    _pending = _shields > 0
    with contextlib.suppress(OSError):
        os.write(2, _NOTE)  # not print(): it may be what was interrupted


def _is_stopping() -> bool:
    """Whether an earlier stop is being handled, in an `except`, a `finally` or at the end of a `with`."""
    error = sys.exception()
    while error is not None:
        if isinstance(error, KeyboardInterrupt | SystemExit):
            return True
        error = error.__context__
    return False
