"""Read batches ahead of the training step, in a thread or in several processes; always in the same order."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from maestro_dist.data.reader import Request, SplitReader, SplitSource
from maestro_dist.data.reader_process import ReaderProcess
from maestro_dist.data.storage import Storage
from maestro_dist.errors import DataError, ReaderError
from maestro_dist.types import Batch

if TYPE_CHECKING:
    import torch

_LOG = logging.getLogger(__name__)

_POLL_S = 0.5
_REPORT_S = 30.0  # between two reports of what the consumer waits for
_JOIN_S = 5.0  # a reader that hangs in a system call is not waited for any longer
_TRIES = 3  # attempts at a request whose reader process was lost
_REMEDY = "was memory short? Lower data.loader_workers or data.prefetch"
_END = object()


@dataclass(frozen=True)
class Consumer:
    """The side that takes the batches.

    name    its name at the start of log lines: when a reader process is lost, and every 30 s of waiting for data
    device  where the batches go next; for a GPU they come in page-locked memory
    """

    name: str = ""
    device: torch.device | None = None


def read_ahead(
    source: SplitSource, requests: Iterable[Request], workers: int, consumer: Consumer | None = None
) -> Generator[Batch, None, None]:
    """Serve the requests in order, `data.prefetch` of them ahead, with `workers` processes (0: one thread).

    An error is raised unchanged, in the place of the batch that caused it. When a process is lost, a new one is started
    and serves the same request again. Closing the iterator ends the readers.

    Raises:
        DataError: there were more different bad samples than `data.max_bad_samples`.
        ReaderError: a reader has given no sign of life for `data.timeout_s`, or is lost several times.
    """
    ahead = _ReadAhead(source, requests, workers, consumer or Consumer())
    limit = source.config.max_bad_samples
    bad: set[int] = set()
    try:
        for number in itertools.count():
            batch = ahead.take(number)
            if batch is None:
                return
            bad.update(batch.bad_samples)
            if len(bad) > limit:
                count = f" ({len(bad)} bad samples, data.max_bad_samples is {limit})" if limit else ""
                raise DataError(batch.bad[-1] + count)
            yield batch
    finally:
        ahead.close()


class _Reader:
    """One reader: a `SplitReader` in this process, or a reader process."""

    def __init__(self, source: SplitSource, name: str, consumer: str, *, process: bool) -> None:
        self.serving = -1
        self.steps = 0  # heartbeats so far
        self.doing = "starting"
        self._source, self._name, self._consumer, self._in_process = source, name, consumer, not process
        self._reader: SplitReader | ReaderProcess | None = None
        self._ended = False

    @property
    def name(self) -> str:
        reader = self._reader
        return reader.name if isinstance(reader, ReaderProcess) else self._name

    def arrays(self, request: Request, asked: str) -> Batch:
        for attempt in range(_TRIES):
            try:
                reader = self._opened()
                self.heartbeat(asked)
                return reader.arrays(request)
            except ReaderError as error:
                self.close()
                if self._ended or attempt == _TRIES - 1:
                    raise ReaderError(f"{error}; it was {self.doing}; {_REMEDY}") from error
                _LOG.warning("%s%s; it was %s; a new one reads on", self._consumer, error, self.doing)
        raise AssertionError("unreachable")

    def end(self) -> None:
        """Start no further process, and kill the present one if it is busy. Any thread may call this."""
        self._ended = True
        reader = self._reader
        if isinstance(reader, ReaderProcess) and self.serving >= 0:
            reader.kill()

    def close(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()

    def _opened(self) -> SplitReader | ReaderProcess:
        if self._reader is None:
            if self._in_process:
                self._reader = self._source.open(self.heartbeat)
            else:
                self._reader = ReaderProcess(self._source, self._name, self.heartbeat)
        if self._ended:  # checked last: `end` sets it first and then looks for a process
            raise ReaderError(f"{self._name} was ended")
        return self._reader

    def heartbeat(self, what: str) -> None:
        """Count a sign of life of the reader, and keep what it does now."""
        self.doing = what
        self.steps += 1


class _ReadAhead:
    """Gives requests to free readers, and keeps their answers by number until they are taken."""

    def __init__(self, source: SplitSource, requests: Iterable[Request], workers: int, consumer: Consumer) -> None:
        self._patience_s, self._consumer = source.config.timeout_s, consumer.name
        device = consumer.device
        self._device = device if device is not None and device.type == "cuda" else None
        self._requests: Iterator[Request] = iter(requests)
        self._requested = 0
        self._request_lock = threading.Lock()  # a lock of its own: making the order of an epoch may take a while
        self._change = threading.Condition()
        self._answers: dict[int, Any] = {}
        self._free = max(source.config.prefetch, workers)
        self._ended = False
        names = [f"reader {number} of {workers}" for number in range(1, workers + 1)] or ["the reader thread"]
        self._readers = [_Reader(source, name, self._consumer, process=workers > 0) for name in names]
        self._storage, self._shards = Storage(source.url), source.manifest.split(source.split).shards
        self._ends = np.cumsum([shard.samples for shard in self._shards])
        self._threads: list[threading.Thread] = []
        try:
            for reader in self._readers:
                thread = threading.Thread(target=self._serve, args=[reader], name="read-ahead", daemon=True)
                thread.start()
                self._threads.append(thread)
        except RuntimeError as error:
            self.close()
            raise ReaderError(f"no thread can be started ({error}); lower data.loader_workers") from error

    def take(self, number: int) -> Batch | None:
        """The answer to request `number`; None where there are no more requests."""
        with self._change:
            self._wait_for(number)
            answer = self._answers.pop(number)
            self._free += 1
            self._change.notify_all()
        if isinstance(answer, BaseException):
            raise answer
        return None if answer is _END else answer

    def close(self) -> None:
        with self._change:
            self._ended = True
            self._change.notify_all()
        for reader in self._readers:
            reader.end()
        for thread in self._threads:
            thread.join(_JOIN_S)

    def _wait_for(self, number: int) -> None:
        """Wait for an answer as long as the readers give signs of life; the caller holds the lock.

        Polls are counted instead of reading the clock: time in which this process was stopped does not count.
        """
        waited = silent = 0.0
        steps = -1
        while number not in self._answers:
            if self._change.wait(_POLL_S):
                continue
            now = sum(reader.steps for reader in self._readers)
            silent = silent + _POLL_S if now == steps else 0.0
            waited, steps = waited + _POLL_S, now
            reader = next((reader for reader in self._readers if reader.serving == number), self._readers[0])
            if silent >= self._patience_s:
                raise ReaderError(
                    f"{reader.name} has given no sign of life for {silent:.0f} s; it was {reader.doing}; check that "
                    "it can be read from here, or raise data.timeout_s if it is only slow"
                )
            if waited % _REPORT_S < _POLL_S:
                _LOG.info("%swaiting for data for %.0f s: %s is %s", self._consumer, waited, reader.name, reader.doing)

    def _serve(self, reader: _Reader) -> None:
        """A reader's thread: until there are no more requests, or one failed."""
        answer: Any = None
        try:
            while (answer is None or isinstance(answer, Batch)) and self._wait_until_free():
                with self._request_lock:
                    reader.serving, answer = self._next_request()
                if isinstance(answer, Request):
                    answer = self._answer(reader, answer)
                with self._change:
                    self._answers[reader.serving] = answer
                    reader.serving = -1
                    self._change.notify_all()
        finally:
            reader.close()

    def _wait_until_free(self) -> bool:
        with self._change:
            self._change.wait_for(lambda: self._ended or self._free > 0)
            self._free -= 1
            return not self._ended

    def _next_request(self) -> tuple[int, Any]:
        number, self._requested = self._requested, self._requested + 1
        try:
            return number, next(self._requests, _END)
        except Exception as error:
            return number, error

    def _described(self, request: Request) -> str:
        """A request in words, for messages."""
        if not len(request.numbers):
            return "asked for no samples"
        first = self._shards[int(np.searchsorted(self._ends, request.numbers[0], side="right"))]
        return f"asked for {len(request.numbers)} samples, the first of {self._storage.name(first.path)}"

    def _answer(self, reader: _Reader, request: Request) -> Batch | BaseException:
        try:
            batch = reader.arrays(request, self._described(request)).tensors()
            if self._device is None:
                return batch
            import torch

            with torch.cuda.device(
                self._device
            ):  # the current device is set for each thread; the default is the first GPU
                return batch.pin_memory()
        except BaseException as error:
            return error
