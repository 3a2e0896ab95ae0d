"""Readers ahead of the training step: one thread, or spawned processes; the same batches in the same order."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable
from typing import Any

from maestro_dist.data.reader import Request, SplitReader, SplitSource
from maestro_dist.errors import DataError, MaestroError
from maestro_dist.types import Batch

_POLL_S = 0.1
_JOIN_S = 5.0  # a reader that is in the middle of a download is left to end by itself


def read_ahead(source: SplitSource, requests: Iterable[Request], workers: int) -> Generator[Batch, None, None]:
    """Serve the requests in order, `data.prefetch` of them ahead, with a number of processes (0: a thread).

    Errors come out where the bad batch would have, unchanged. Closing the iterator stops the readers.

    Raises:
        DataError: more bad samples than `data.max_bad_samples` since the iterator's start.
    """
    batches = _by_processes(source, requests, workers) if workers else _by_thread(source, requests)
    limit, seen = source.config.max_bad_samples, 0
    try:
        for batch in batches:
            seen += len(batch.bad)
            if seen > limit:
                count = f" ({seen} bad samples, data.max_bad_samples is {limit})" if limit else ""
                raise DataError(batch.bad[-1] + count)
            yield batch
    finally:
        batches.close()


def _by_thread(source: SplitSource, requests: Iterable[Request]) -> Any:
    done = object()
    ready: queue.Queue[Any] = queue.Queue(maxsize=source.config.prefetch)
    stopped = threading.Event()

    def offer(item: Any) -> bool:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=_POLL_S)
                return True
            except queue.Full:
                continue
        return False

    def read() -> None:
        reader = source.open()
        try:
            for request in requests:
                if not offer(reader.batch(request)):
                    return
            offer(done)
        except BaseException as error:
            offer(error)
        finally:
            reader.close()

    thread = threading.Thread(target=read, name="read-ahead", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not done:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        thread.join(_JOIN_S)


class _Served:
    """A map-style dataset whose keys are requests. An error of ours travels as a value: torch would reword it."""

    def __init__(self, source: SplitSource) -> None:
        self.source = source
        self.reader: SplitReader | None = None

    def __getitem__(self, request: Request) -> Batch | MaestroError:
        self.reader = self.reader or self.source.open()
        try:
            return self.reader.batch(request)
        except MaestroError as error:
            return error


def _unchanged(item: Any) -> Any:
    return item


def _by_processes(source: SplitSource, requests: Iterable[Request], workers: int) -> Any:
    import torch
    from torch.utils.data import DataLoader

    loader: Any = DataLoader(
        _Served(source),  # type: ignore[arg-type]
        batch_size=None,
        sampler=requests,  # type: ignore[arg-type]
        num_workers=workers,
        collate_fn=_unchanged,
        prefetch_factor=-(-source.config.prefetch // workers),
        multiprocessing_context="spawn",
        generator=torch.Generator(),  # so that the global generator is left alone
    )
    try:
        for item in loader:
            if isinstance(item, MaestroError):
                raise item
            yield item
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        first = str(error).splitlines()[0]
        raise DataError(f"a reader process died ({first}); check the memory or lower data.loader_workers") from error
