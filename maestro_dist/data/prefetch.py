"""Readers ahead of the training step: a thread, or processes with a thread each; the same batches in the same order."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from maestro_dist.data.reader import Request, SplitReader, SplitSource
from maestro_dist.data.reader_process import ReaderProcess
from maestro_dist.data.storage import Storage
from maestro_dist.errors import DataError, ReaderError
from maestro_dist.types import Batch

if TYPE_CHECKING:
    import torch

Say = Callable[[str], None]
"""Shows a line to the person who started the run."""

by_log: Say = logging.getLogger(__name__).warning

_LOOK_S = 0.5
_SAY_S = 30.0  # between two words on what is waited for
_JOIN_S = 5.0  # a reader that is in the middle of a system call is left to end by itself
_TRIES = 3  # of a request whose reader process was lost
_REMEDY = "was memory short? Lower data.loader_workers or data.prefetch"
_END = object()


def read_ahead(
    source: SplitSource,
    requests: Iterable[Request],
    workers: int,
    *,
    say: Say = by_log,
    device: torch.device | None = None,
) -> Generator[Batch, None, None]:
    """Serve the requests in order, `data.prefetch` of them ahead, with a number of processes (0: a thread).

    Errors come out where the bad batch would have, unchanged. A process that is lost is started anew, and its request
    served again. `say` hears of that, and every 30 s what is waited for. Where `device` is a GPU, batches come
    in page-locked memory. Closing the iterator ends the readers.

    Raises:
        DataError: more different bad samples than `data.max_bad_samples` since the iterator's start.
        ReaderError: a reader has given no sign of life for `data.timeout_s`, or is lost again and again.
    """
    ahead = _Ahead(source, requests, workers, say, device)
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


class _Lane:
    """A reader: in this process, or in one of its own."""

    def __init__(self, source: SplitSource, name: str, say: Say, *, process: bool) -> None:
        self.serving = -1
        self.steps = 0  # signs of life so far
        self.doing = "starting"
        self._source, self._name, self._say, self._in_process = source, name, say, not process
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
                self.hear(asked)
                return reader.arrays(request)
            except ReaderError as error:
                self.close()
                if self._ended or attempt == _TRIES - 1:
                    raise ReaderError(f"{error}; it was {self.doing}; {_REMEDY}") from error
                self._say(f"warning: {error}; it was {self.doing}; a new one reads on")
        raise AssertionError("unreachable")

    def end(self) -> None:
        """Keep from starting another process, and end the one there is if it is busy. From any thread."""
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
                self._reader = self._source.open(self.hear)
            else:
                self._reader = ReaderProcess(self._source, self._name, self.hear)
        if self._ended:  # looked at last: whoever sets it looks for a process afterwards
            raise ReaderError(f"{self._name} was ended")
        return self._reader

    def hear(self, what: str) -> None:
        """A sign of life of the reader."""
        self.doing = what
        self.steps += 1


class _Ahead:
    """Requests are dealt to lanes as these get free; answers wait here, under their numbers, until they are taken."""

    def __init__(
        self, source: SplitSource, requests: Iterable[Request], workers: int, say: Say, device: torch.device | None
    ) -> None:
        self._patience_s, self._say = source.config.timeout_s, say
        self._device = device if device is not None and device.type == "cuda" else None
        self._requests: Iterator[Request] = iter(requests)
        self._dealt = 0
        self._dealing = threading.Lock()  # apart from the other lock: to choose an epoch's samples may take a while
        self._change = threading.Condition()
        self._answers: dict[int, Any] = {}
        self._room = max(source.config.prefetch, workers)
        self._ended = False
        names = [f"reader {number} of {workers}" for number in range(1, workers + 1)] or ["the reader thread"]
        self._lanes = [_Lane(source, name, say, process=workers > 0) for name in names]
        self._storage, self._shards = Storage(source.url), source.manifest.split(source.split).shards
        self._ends = np.cumsum([shard.samples for shard in self._shards])
        self._threads: list[threading.Thread] = []
        try:
            for lane in self._lanes:
                thread = threading.Thread(target=self._serve, args=[lane], name="read-ahead", daemon=True)
                thread.start()
                self._threads.append(thread)
        except RuntimeError as error:
            self.close()
            raise ReaderError(f"no thread can be started ({error}); lower data.loader_workers") from error

    def take(self, number: int) -> Batch | None:
        """The answer to a request; None where there are no more requests."""
        with self._change:
            self._await(number)
            answer = self._answers.pop(number)
            self._room += 1
            self._change.notify_all()
        if isinstance(answer, BaseException):
            raise answer
        return None if answer is _END else answer

    def close(self) -> None:
        with self._change:
            self._ended = True
            self._change.notify_all()
        for lane in self._lanes:
            lane.end()
        for thread in self._threads:
            thread.join(_JOIN_S)

    def _await(self, number: int) -> None:
        """Wait for an answer as long as the readers get on; the lock is held.

        Looks are counted, not the clock: a process that was stopped for an hour has not waited for an hour.
        """
        waited = silent = 0.0
        steps = -1
        while number not in self._answers:
            if self._change.wait(_LOOK_S):
                continue
            now = sum(lane.steps for lane in self._lanes)
            silent = silent + _LOOK_S if now == steps else 0.0
            waited, steps = waited + _LOOK_S, now
            lane = next((lane for lane in self._lanes if lane.serving == number), self._lanes[0])
            if silent >= self._patience_s:
                raise ReaderError(
                    f"{lane.name} has given no sign of life for {silent:.0f} s; it was {lane.doing}; see whether "
                    "that can be read from here, or raise data.timeout_s if it is only slow"
                )
            if waited % _SAY_S < _LOOK_S:
                self._say(f"waiting for data for {waited:.0f} s: {lane.name} is {lane.doing}")

    def _serve(self, lane: _Lane) -> None:
        """A lane's thread, until there are no more requests, or one failed."""
        answer: Any = None
        try:
            while (answer is None or isinstance(answer, Batch)) and self._has_room():
                with self._dealing:
                    lane.serving, answer = self._deal()
                if isinstance(answer, Request):
                    answer = self._answer(lane, answer)
                with self._change:
                    self._answers[lane.serving] = answer
                    lane.serving = -1
                    self._change.notify_all()
        finally:
            lane.close()

    def _has_room(self) -> bool:
        with self._change:
            self._change.wait_for(lambda: self._ended or self._room > 0)
            self._room -= 1
            return not self._ended

    def _deal(self) -> tuple[int, Any]:
        number, self._dealt = self._dealt, self._dealt + 1
        try:
            return number, next(self._requests, _END)
        except Exception as error:
            return number, error

    def _asked(self, request: Request) -> str:
        """In words, for messages."""
        if not len(request.numbers):
            return "asked for no samples"
        first = self._shards[int(np.searchsorted(self._ends, request.numbers[0], side="right"))]
        return f"asked for {len(request.numbers)} samples, the first of {self._storage.name(first.path)}"

    def _answer(self, lane: _Lane, request: Request) -> Batch | BaseException:
        import torch

        try:
            batch = lane.arrays(request, self._asked(request)).tensors()
            if self._device is None:
                return batch
            with torch.cuda.device(self._device):  # it belongs to a thread: the first GPU would be taken otherwise
                return batch.pin_memory()
        except BaseException as error:
            return error
