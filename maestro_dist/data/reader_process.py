"""A reader in a separate process: `ReaderProcess` for the training process, `serve` for the reader.

Requests and batches go through a pair of sockets. Large arrays are in memory that both processes see
(`batch_memory.py`); the others are sent as plain bytes. Nothing has a name, so nothing is left behind when a process is
killed. The reader process imports neither torch nor the main module.
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
from maestro_dist.data.batch_memory import BatchFile, ReceivedBatches, SharedArray, WrittenBatches
from maestro_dist.data.index_copies import oldest_copy, use_copies_since
from maestro_dist.data.reader import Request, SplitReader, SplitSource
from maestro_dist.data.storage.request_counts import RequestCounts, add_counts, request_counts
from maestro_dist.data.storage.retry import Heartbeat
from maestro_dist.data.storage.settings import configure, storage_settings
from maestro_dist.errors import MaestroError, ReaderError
from maestro_dist.system.logging_setup import configure_logging
from maestro_dist.types import Batch

# Ctrl-C reaches all processes of a terminal. A reader ignores it: the training process ends its readers.
_START = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    "from maestro_dist.data.reader_process import serve; serve(*map(int, sys.argv[1:]))"
)
_HEARTBEAT_S = 1.0  # seconds between two heartbeats of a reader
_EXIT_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class _ArrayHeader:
    """Type and shape of an array whose bytes follow."""

    dtype: np.dtype
    shape: tuple[int, ...]


class ReaderProcess:
    """Reads micro-batches of one split in another process. `heartbeat` is called with its current activity.

    Raises:
        ReaderError: the process cannot be started.
    """

    def __init__(self, source: SplitSource, name: str, heartbeat: Heartbeat) -> None:
        self._source: SplitSource | None = source
        self._heartbeat = heartbeat
        self._connection, theirs = Pipe()
        self._memory = ReceivedBatches(self._connection.fileno())
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
        """See `SplitReader.arrays`. A `MaestroError` of the process is raised here unchanged.

        Raises:
            ReaderError: the process has ended.
        """
        if self._source is not None:  # not in __init__: sending a large source blocks until the process reads
            self._send((storage_settings(), oldest_copy(), self._source))
            self._source = None
        self._send((request, self._memory.released()))
        try:
            while True:
                kind, content = self._connection.recv()
                if kind == "batch":
                    return self._receive(*content)
                if kind == "requests":
                    add_counts(RequestCounts.from_list(content))
                elif kind == "doing":
                    self._heartbeat(content)
                else:
                    break
        except (EOFError, OSError) as error:
            raise ReaderError(self._exit_message()) from error
        if kind == "other":
            raise RuntimeError(f"{self.name} failed:\n{content}")
        raise getattr(errors, kind)(content)

    def _receive(self, batch: Batch, file: BatchFile | None) -> Batch:
        self._memory.begin(file)
        try:
            return batch.map(self._array)
        finally:
            self._memory.end()

    def _array(self, header: SharedArray | _ArrayHeader) -> np.ndarray:
        if isinstance(header, SharedArray):
            return self._memory.array(header)
        return _receive(self._connection.fileno(), header)

    def kill(self) -> None:
        """Kill the process; a thread that waits for it gets a `ReaderError`."""
        self._process.kill()

    def close(self) -> None:
        """End the process; kill it if it does not end in time."""
        self._connection.close()  # an idle process then ends
        try:
            self._process.wait(_EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            with suppress(subprocess.TimeoutExpired):  # it may hang in a system call
                self._process.wait(_EXIT_TIMEOUT_S)

    def _send(self, message: Any) -> None:
        try:
            self._connection.send(message)
        except OSError as error:
            raise ReaderError(self._exit_message()) from error

    def _exit_message(self) -> str:
        try:
            code = self._process.wait(_EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return f"{self.name} has closed its connection"
        if code >= 0:
            return f"{self.name} ended with code {code}"
        return f"{self.name} was killed by signal {-code} ({signal.strsignal(-code)})"


def serve(file: int, parent: int) -> None:
    """Main function of the process: answer requests on the socket `file` until process `parent` closes it."""
    configure_logging()
    with suppress(EOFError, OSError), Connection(file) as connection:
        settings, oldest, source = connection.recv()
        configure(settings)
        use_copies_since(oldest)
        told = RequestCounts()
        heartbeats = _HeartbeatThread(connection, parent)
        memory = WrittenBatches(file)
        reader: SplitReader | None = None
        while True:
            request, released = connection.recv()
            arrays: list[np.ndarray] = []
            try:
                reader = reader or source.open(heartbeats.heartbeat)
                memory.begin(reader.most_bytes(request), released)
                batch = reader.arrays(request, memory.empty)
                answer: Any = "batch", (batch.map(partial(_described, memory, arrays)), memory.file())
            except MaestroError as error:
                answer = next(c.__name__ for c in type(error).__mro__ if c.__module__ == errors.__name__), str(error)
            except MemoryError:
                answer = "ReaderError", "a reader has no memory left"
            except Exception:
                answer = "other", traceback.format_exc()
            counts = request_counts()
            with heartbeats.sending:
                if counts != told:
                    connection.send(("requests", (counts - told).as_list()))
                    told = counts
                connection.send(answer)
                if answer[0] == "batch":
                    memory.sent()
                for array in arrays:
                    _send(file, array)
            batch = answer = None  # before the next batch: the memory of this one may be used again


class _HeartbeatThread:
    """A thread that sends heartbeats to the training process, also while the main thread is busy.

    It ends this process when the training process has ended, also during a download.
    """

    def __init__(self, connection: Connection, parent: int) -> None:
        self.sending = threading.Lock()
        self._parent = parent
        self._connection, self._activity, self._pause = connection, "", threading.Event()
        threading.Thread(target=self._run, name="heartbeat", daemon=True).start()

    def heartbeat(self, what: str) -> None:
        self._activity = what

    def _run(self) -> None:
        sent = ""
        with suppress(OSError):
            while not self._pause.wait(_HEARTBEAT_S):
                if os.getppid() != self._parent:
                    os._exit(0)
                if self._activity != sent:
                    sent = self._activity
                    with self.sending:
                        self._connection.send(("doing", sent))


def _described(memory: WrittenBatches, arrays: list[np.ndarray], array: np.ndarray) -> SharedArray | _ArrayHeader:
    shared = memory.shared(array)
    if shared is not None:
        return shared
    arrays.append(array)
    return _ArrayHeader(array.dtype, array.shape)


def _send(file: int, array: np.ndarray) -> None:
    data = _bytes(np.ascontiguousarray(array))
    while data:
        data = data[os.write(file, data) :]


def _receive(file: int, header: _ArrayHeader) -> np.ndarray:
    array = np.empty(header.shape, header.dtype)
    data = _bytes(array)
    while data:
        count = os.readv(file, [data])
        if not count:
            raise EOFError
        data = data[count:]
    return array


def _bytes(array: np.ndarray) -> memoryview:
    data: Any = array.reshape(-1).view(np.uint8)  # reshape, because an empty array cannot be cast
    return memoryview(data)
