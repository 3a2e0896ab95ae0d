"""Download remote shards before their samples are needed: several at a time, in the order of need, within a limit.

The readers find the shards in the cache. Training goes on through an outage of the storage as long as what was read
ahead lasts.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import NamedTuple

from maestro_dist.data.block_digests import BlockDigests
from maestro_dist.data.index_copies import index_of
from maestro_dist.data.memory_shards import MOST_BYTES, held
from maestro_dist.data.reader import SplitSource
from maestro_dist.data.shard_cache import ShardCache, cached_shard, local_shard
from maestro_dist.data.shard_parts import ShardParts
from maestro_dist.data.storage import Storage
from maestro_dist.data.window_layout import SampleParts
from maestro_dist.errors import ReaderError

_LOG = logging.getLogger(__name__)

_JOIN_S = 5.0
_DOWNLOADS = 16  # at the same time: one connection to an object store is slow
_INDEXES = 64  # that are kept in memory


class NeededShard(NamedTuple):
    """A shard (its position in the split), or a sample of it, that is first needed in global batch `step` of the run.

    row  number of the sample in the shard; None: all samples
    """

    step: int
    shard: int
    row: int | None = None


class ShardReadAhead:
    """Downloads the shards of `needed`, in this order, in threads. For local data it does nothing.

    A download that fails is left to the reader, which then tries it again and says what is wrong.
    """

    def __init__(self, source: SplitSource, needed: Iterator[NeededShard], *, processes: bool = False) -> None:
        """`processes`: the readers are other processes, which cannot use shards in the memory of this one."""
        self._storage = Storage(source.url, heartbeat=self._heartbeat)
        self._shards, self._processes = source.manifest.split(source.split).shards, processes
        self._cache, self._limit = ShardCache.of(source.config), source.config.read_ahead_mb * 10**6
        if self._cache.limit is not None:
            self._limit = min(self._limit, self._cache.limit // 2)  # else shards make room before they are read
        self._folder = source.config.cache
        self._needed = needed
        self._source, self._sample_bytes = source, SampleParts(source.format).bytes
        self._index = lru_cache(_INDEXES)(self._load_index)
        self._whole: dict[int, int] = {}  # shards ahead that are not read in parts, and the step that they count for
        self._read: set[int] = set()  # shards whose indexes are on this machine
        self._next: NeededShard | None = None
        self._started = self._begun = False
        self._ahead: dict[int, int] = {}  # bytes of the shards by the step that first needs them
        self._reached = 0
        self._ended = False
        self._threads: list[threading.Thread] = []
        self._change = threading.Condition()

    def reached(self, step: int) -> None:
        """The samples of global batch `step` are now asked for. The first call starts the downloads."""
        if not self._started and self._storage.local is None:
            self._started = True
            for number in range(_DOWNLOADS):
                thread = threading.Thread(target=self._download, name=f"shard download {number}", daemon=True)
                thread.start()
                self._threads.append(thread)
        with self._change:
            self._reached = step
            self._ahead = {when: size for when, size in self._ahead.items() if when > step}
            self._whole = {shard: when for shard, when in self._whole.items() if when > step}
            self._wake_one()

    def close(self) -> None:
        """End the downloads. One that hangs in the network ends later by itself."""
        with self._change:
            self._ended = True
            self._change.notify_all()
        deadline = time.monotonic() + _JOIN_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _heartbeat(self, what: str) -> None:
        """Called at each progress of a download. Raises ReaderError when the downloads are to end."""
        if self._ended:
            raise ReaderError(f"ended while {what}")

    def _download(self) -> None:
        while (needed := self._take()) is not None:
            shard = self._shards[needed.shard]
            try:
                if needed.row is None or not self._fetch_sample(needed, needed.row):
                    if needed.shard not in self._read:
                        index_of(self._storage, shard, self._folder)
                        self._read.add(needed.shard)
                    local_shard(self._storage, shard, self._cache, self._heartbeat)
                    if held(shard.sha256) is not None:
                        self._without_disk()
            except Exception as error:  # whatever it is, the reader meets it too and raises it
                _LOG.debug("%s was not read ahead: %s", self._storage.name(shard.path), error)

    def _fetch_sample(self, needed: NeededShard, row: int) -> bool:
        """Download a rank's parts of a sample; False if the shard is not read in parts."""
        shard, (blocks, parts_of) = self._shards[needed.shard], self._index(needed.shard)
        if blocks is None:
            self._count_whole(needed)
            return False
        if cached_shard(shard, self._cache, self._heartbeat) is not None:
            return True
        parts = ShardParts(self._storage, shard, blocks, self._cache, self._heartbeat)
        given = used = parts.open()
        try:
            used = parts.fetch(given, parts_of(row))
        finally:
            for file in {given, used}:
                os.close(file)
        if parts.in_memory:
            self._without_disk()
        return True

    def _count_whole(self, needed: NeededShard) -> None:
        with self._change:
            if needed.shard not in self._whole and needed.step > self._reached:
                self._whole[needed.shard] = needed.step
                self._ahead[needed.step] = self._ahead.get(needed.step, 0) + self._shards[needed.shard].bytes

    def _load_index(self, position: int) -> tuple[BlockDigests | None, Callable[[int], list[tuple[int, int]]]]:
        shard = self._shards[position]
        index = index_of(self._storage, shard, self._folder)
        return index.blocks, self._source.sample_parts(shard, index)

    def _without_disk(self) -> None:
        """The cache has no space, so shards are in memory: read less ahead, or nothing where readers are processes."""
        with self._change:
            self._limit = min(self._limit, MOST_BYTES // 4)
            self._ended = self._ended or self._processes
            self._change.notify_all()

    def _size(self, needed: NeededShard) -> int:
        """Bytes that it adds to what is read ahead."""
        if needed.row is None:
            return self._shards[needed.shard].bytes
        return 0 if needed.shard in self._whole else self._sample_bytes

    def _take(self) -> NeededShard | None:
        """The next shard to download, when there is room for it; None at the end."""
        with self._change:
            if not self._begun:  # here, because making the order of a large data set takes a while
                self._begun = True
                self._next = next(self._needed, None)
            while not self._ended and self._next is not None:
                if self._has_room(self._next):
                    taken = self._next
                    self._ahead[taken.step] = self._ahead.get(taken.step, 0) + self._size(taken)
                    self._next = next(self._needed, None)
                    self._wake_one()
                    return taken
                self._change.wait()
            self._change.notify_all()
            return None

    def _has_room(self, needed: NeededShard) -> bool:
        ahead = sum(self._ahead.values())
        now = needed.step <= self._reached
        return now or ahead + self._size(needed) <= self._limit or (not ahead and self._limit > 0)

    def _wake_one(self) -> None:
        """Wake a thread, if there is something for it: all of them, at each step, would take time from the reader."""
        if self._next is None or self._has_room(self._next):
            self._change.notify()
