"""Pack a data set with Ray: tasks convert parts and stream fragments, other tasks write shards.

The driver sees the sizes of samples only; their bytes stay in Ray's object store. It takes the fragments in the order
of the parts. Workers are ahead of it by a few parts and, within a part, by a few fragments, so that the memory does not
grow with the data. Ray repeats a task whose worker has died.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from maestro_dist.data.fragments import PackFormat, PartEnd, SampleRows, part_fragments
from maestro_dist.data.manifest import Shard
from maestro_dist.data.pack_parts import Items
from maestro_dist.data.pack_records import record_shard
from maestro_dist.data.parts import Part
from maestro_dist.data.shard_assembly import ShardSink
from maestro_dist.data.shard_files import ShardFile, ShardId
from maestro_dist.data.storage import Storage
from maestro_dist.data.storage.settings import StorageSettings, configure, storage_settings
from maestro_dist.errors import MaestroError, RunError
from maestro_dist.run.ray_cluster import Head, connected
from maestro_dist.run.ray_log import LogKeeper, log_actor
from maestro_dist.system.logging_setup import configure_logging
from maestro_dist.system.memory import available

_LOG = logging.getLogger(__name__)
_AHEAD = 8
"""Objects that a part may be ahead of the driver: four fragments, each with its sizes."""
_POLL_S, _LOG_S = 0.5, 30.0
_STALL_S = 3600.0
"""Seconds without any progress after which a packing ends."""
_CANCEL_S = 30.0
_FRAGMENT = 4 << 20
_LEAST_STORE = 128 << 20


@contextmanager
def ray_workers(workers: int, shard_bytes: int, splits: int) -> Iterator[RayWorkers]:
    """Context with `workers` workers of the cluster at RAY_ADDRESS, or of a local Ray with as many CPUs.

    Raises:
        RunError: Ray does not start, or the cluster does not have as many CPUs.
    """
    shards = (splits + max(2, workers)) * (shard_bytes + _FRAGMENT)  # open ones, and those that are being written
    store = max(_LEAST_STORE, min(shards + 2 * workers * _AHEAD * _FRAGMENT, (available() or 1 << 40) // 4))
    with connected(workers, store), log_actor(LogKeeper) as log:
        import ray
        from ray.util.placement_group import remove_placement_group

        group = ray.util.placement_group([{"CPU": 1}] * workers, strategy="SPREAD")
        try:
            waiting = _Waiting(f"{workers} CPUs of the Ray cluster")
            ready = group.ready()
            while not ray.wait([ready], timeout=_POLL_S)[0]:
                waiting.check()
            yield RayWorkers(workers, group, log)
        finally:
            remove_placement_group(group)


class RayWorkers:
    """See `PackWorkers`. `group`: the placement group with a CPU for each worker."""

    def __init__(self, workers: int, group: Any, log: Any) -> None:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        self._workers, self._settings, self._log = workers, storage_settings(), log
        self._place = PlacementGroupSchedulingStrategy(placement_group=group)

    def fragments(self, parts: Sequence[tuple[int, Part]], about: PackFormat) -> Items:
        """See `PackWorkers`. The data of a fragment is a reference to it."""
        import ray

        convert: Any = ray.remote(_convert).options(
            num_cpus=1,
            num_returns="streaming",
            scheduling_strategy=self._place,
            _generator_backpressure_num_objects=_AHEAD,
        )
        format_of_all, todo, started = ray.put(about), deque(parts), deque[tuple[int, Part, Any]]()

        def start() -> None:
            """Start parts, in order. Each has a CPU at once: one that waits for a CPU might wait for parts after it."""
            done = (
                ray.wait([s.completed() for *_, s in started], num_returns=len(started), timeout=0)[0]
                if started
                else []
            )
            while todo and len(started) < 2 * self._workers and len(started) - len(done) < self._workers:
                number, part = todo.popleft()
                started.append((number, part, convert.remote(part, format_of_all, self._settings, self._log)))

        start()
        try:
            while started:
                number, part, stream = started[0]
                waiting, item = _Waiting(f"samples of {part.name}"), None
                while not isinstance(item, PartEnd):
                    item = _result(_next(stream, start, waiting), f"converting {part.name}")
                    data = None if isinstance(item, PartEnd) else _next(stream, start, waiting)
                    yield number, item if data is None else replace(item, data=data)
                started.popleft()
                start()
        finally:  # after an error
            for *_, stream in started:
                ray.cancel(stream, force=True)

    def sink(self, url: str) -> ShardSink:
        """See `PackWorkers`."""
        import ray

        write: Any = ray.remote(_write).options(num_cpus=0, scheduling_strategy=self._place)
        return _RaySink(
            lambda shard, pieces, rows: write.remote(url, shard, pieces, rows, self._settings, self._log),
            max(2, self._workers),
        )


class _RaySink:
    """Writes each complete shard in a task, a limited number of them at a time. See `ShardSink`."""

    def __init__(self, write: Callable[..., Any], most: int) -> None:
        self._write, self._most = write, most
        self._pieces: dict[ShardId, list[tuple[Any, int, int]]] = {}
        self._writing: dict[Any, ShardId] = {}
        self._shards: dict[ShardId, Shard] = {}

    def append(self, shard: ShardId, data: Any, start: int, end: int) -> None:
        self._pieces.setdefault(shard, []).append((data, start, end))

    def finish(self, shard: ShardId, rows: SampleRows) -> None:
        self._wait(self._most - 1)
        self._writing[self._write(shard, self._pieces.pop(shard), rows)] = shard

    def shards(self) -> dict[ShardId, Shard]:
        self._wait(0)
        return self._shards

    def abort(self, error: BaseException) -> None:
        import ray

        for task in self._writing:
            ray.cancel(task, force=True)
        if self._writing:
            ray.wait(list(self._writing), num_returns=len(self._writing), timeout=_CANCEL_S)

    def _wait(self, most: int) -> None:
        """Wait until at most this many shards are being written."""
        import ray

        waiting = _Waiting("shards to be written")
        while len(self._writing) > most:
            done = ray.wait(list(self._writing), timeout=_POLL_S)[0]
            for task in done:
                shard = self._writing.pop(task)
                self._shards[shard] = _result(task, f"writing {shard.files[0]}")
            if not done:
                waiting.check()


class _Waiting:
    """Logs what is waited for, and ends a wait that is too long."""

    def __init__(self, what: str) -> None:
        import ray

        self._what = what
        self._since = self._logged = time.monotonic()
        self._head = Head(ray.get_runtime_context().gcs_address)

    def check(self) -> None:
        """Raise `RunError` if the cluster is gone, or nothing has come for too long."""
        self._head.check()
        now = time.monotonic()
        if now - self._since > _STALL_S:
            raise RunError(f"waited {_STALL_S:.0f} s for {self._what} in vain; look at the cluster, then start again")
        if now - self._logged > _LOG_S:
            self._logged = now
            _LOG.info("waiting for %s, for %.0f s now", self._what, now - self._since)

    def came(self) -> None:
        """Something has come."""
        self._since = self._logged = time.monotonic()


def _next(stream: Any, start: Callable[[], None], waiting: _Waiting) -> Any:
    """The reference of the next object of a stream; meanwhile other parts are started."""
    import ray

    while not ray.wait([stream], timeout=_POLL_S, fetch_local=False)[0]:
        start()
        waiting.check()
    start()
    waiting.came()
    return next(stream)


def _result(task: Any, what: str) -> Any:
    """The value of a reference, or the error of the task that made it."""
    import ray

    try:
        return ray.get(task)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, MaestroError | OSError | MemoryError):
            raise cause from error
        raise
    except ray.exceptions.RayError as error:
        text = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise RunError(f"{what}: its worker died again and again ({text}); was it killed, or out of memory?") from error


def _prepare(settings: StorageSettings, log: Any) -> None:
    configure(settings)
    configure_logging(deliver=lambda *record: log.say.remote(*record))


def _convert(part: Part, about: PackFormat, settings: StorageSettings, log: Any) -> Iterator[Any]:
    """A task: each fragment without its data, then its data; the end of the part."""
    _prepare(settings, log)
    for item in part_fragments(part, about):
        if isinstance(item, PartEnd):
            yield item
        else:
            yield replace(item, data=None)
            yield item.data


def _write(
    url: str,
    shard: ShardId,
    pieces: list[tuple[Any, int, int]],
    rows: SampleRows,
    settings: StorageSettings,
    log: Any,
) -> Shard:
    """A task: write and record a shard."""
    import ray

    _prepare(settings, log)
    file = ShardFile(Storage(url), shard)
    try:
        for data, start, end in pieces:
            file.append(ray.get(data)[start:end])
        entry = file.finish(rows)
    except BaseException as error:
        file.abort(error)
        raise
    record_shard(url, shard, entry)
    return entry
