"""A reader in a process of its own: what the training process knows of it, and what it does.

Requests and batches go through a pair of sockets, the arrays as plain bytes. There is nothing with a name or a size
limit in between (no shared memory, no semaphore), so nothing is left behind, whoever is killed. The process imports
neither torch nor the program's main module.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import traceback
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from maestro_dist import errors
from maestro_dist.data.cache import Tell
from maestro_dist.data.reader import Request, SplitReader, SplitSource
from maestro_dist.errors import MaestroError, ReaderError
from maestro_dist.system.logging_setup import configure_logging
from maestro_dist.types import Batch

# Ctrl-C goes to all processes of a terminal, also while they start; the training process ends this one.
_START = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    "from maestro_dist.data.reader_process import serve; serve(*map(int, sys.argv[1:]))"
)
_TELL_S = 1.0  # between two words of a reader on what it is at
_END_S = 5.0


@dataclass(frozen=True)
class _Coming:
    """In the place of an array whose bytes follow."""

    dtype: np.dtype
    shape: tuple[int, ...]


class ReaderProcess:
    """Reads micro-batches of one split, in another process. `tell` hears what that is at.

    Raises:
        ReaderError: the process cannot be started.
    """

    def __init__(self, source: SplitSource, name: str, tell: Tell) -> None:
        self._source: SplitSource | None = source
        self._tell = tell
        self._connection, theirs = Pipe()
        one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        try:
            paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _START, str(theirs.fileno()), str(os.getpid())],
                env={**os.environ, **one_thread, "PYTHONPATH": paths},
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        except OSError as error:
            self._connection.close()
            raise ReaderError(f"{name} cannot be started ({error}); lower data.loader_workers") from error
        finally:
            theirs.close()
        self.name = f"{name} (process {self._process.pid})"

    def arrays(self, request: Request) -> Batch:
        """See `SplitReader.arrays`; errors of ours come as they are.

        Raises:
            ReaderError: the process has ended.
        """
        if self._source is not None:  # not when it is started: a large one is taken only once the process reads
            self._send(self._source)
            self._source = None
        self._send(request)
        try:
            while True:
                kind, content = self._connection.recv()
                if kind == "batch":
                    batch: Batch = content.map(partial(_receive, self._connection.fileno()))
                    return batch
                if kind != "doing":
                    break
                self._tell(content)
        except (EOFError, OSError) as error:
            raise ReaderError(self._obituary()) from error
        if kind == "other":
            raise RuntimeError(f"{self.name} failed:\n{content}")
        raise getattr(errors, kind)(content)

    def kill(self) -> None:
        """End the process at once; whoever waits for it gets a `ReaderError`."""
        self._process.kill()

    def close(self) -> None:
        """Let the process end, or end it."""
        self._connection.close()  # which an idle process notices
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            with suppress(subprocess.TimeoutExpired):  # one that hangs in a system call ends with that
                self._process.wait(_END_S)

    def _send(self, message: Any) -> None:
        try:
            self._connection.send(message)
        except OSError as error:
            raise ReaderError(self._obituary()) from error

    def _obituary(self) -> str:
        try:
            code = self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            return f"{self.name} has closed its connection"
        if code >= 0:
            return f"{self.name} ended with code {code}"
        return f"{self.name} was killed by signal {-code} ({signal.strsignal(-code)})"


def serve(file: int, parent: int) -> None:
    """The process: answer requests on the socket `file` until the other side, process `parent`, has closed it."""
    configure_logging()
    with suppress(EOFError, OSError), Connection(file) as connection:
        source: SplitSource = connection.recv()
        teller = _Teller(connection, parent)
        reader: SplitReader | None = None
        while True:
            request: Request = connection.recv()
            arrays: list[np.ndarray] = []
            try:
                reader = reader or source.open(teller.tell)
                batch = reader.arrays(request)
                answer: Any = "batch", batch.map(partial(_described, arrays))
            except MaestroError as error:
                answer = next(c.__name__ for c in type(error).__mro__ if c.__module__ == errors.__name__), str(error)
            except MemoryError:
                answer = "ReaderError", "a reader has no memory left"
            except Exception:
                answer = "other", traceback.format_exc()
            with teller.alone:
                connection.send(answer)
                for array in arrays:
                    _send(file, array)


class _Teller:
    """Tells the other side what this process is at, from a thread: also of what it is stuck in.

    Ends this process where the one that it serves is gone, also in the middle of a download.
    """

    def __init__(self, connection: Connection, parent: int) -> None:
        self.alone = threading.Lock()  # held by whoever sends
        self._parent = parent
        self._connection, self._doing, self._pause = connection, "", threading.Event()
        threading.Thread(target=self._run, name="teller", daemon=True).start()

    def tell(self, what: str) -> None:
        self._doing = what

    def _run(self) -> None:
        told = ""
        with suppress(OSError):
            while not self._pause.wait(_TELL_S):
                if os.getppid() != self._parent:
                    os._exit(0)
                if self._doing != told:
                    told = self._doing
                    with self.alone:
                        self._connection.send(("doing", told))


def _described(to: list[np.ndarray], array: np.ndarray) -> _Coming:
    to.append(array)
    return _Coming(array.dtype, array.shape)


def _send(file: int, array: np.ndarray) -> None:
    data = _bytes(np.ascontiguousarray(array))
    while data:
        data = data[os.write(file, data) :]


def _receive(file: int, coming: _Coming) -> np.ndarray:
    array = np.empty(coming.shape, coming.dtype)
    data = _bytes(array)
    while data:
        count = os.readv(file, [data])
        if not count:
            raise EOFError
        data = data[count:]
    return array


def _bytes(array: np.ndarray) -> memoryview:
    data: Any = array.reshape(-1).view(np.uint8)  # an array of no elements has no bytes to cast
    return memoryview(data)
