"""The size of the shard cache: the least recently used shards make room for new ones."""

from __future__ import annotations

import fcntl
import logging
import os
import time
from contextlib import suppress
from pathlib import Path

_LOG = logging.getLogger(__name__)


def mark_used(path: Path) -> None:
    """Note that a cached shard is used now: its access time changes, its modification time does not."""
    with suppress(OSError):  # a read-only cache is not tidied
        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))


def make_room(folder: Path, size: int, limit: int | None) -> None:
    """Remove the least recently used shards until `size` more bytes fit below `limit` bytes (None: no limit).

    A process that reads a removed shard keeps its open file; a later use downloads the shard again.

    Raises:
        OSError: the folder cannot be written.
    """
    if limit is None:
        return
    with (folder / ".room.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        shards = _files(folder, "??/*.tar")
        total = sum(status.st_size for _, status in shards + _files(folder, "??/*.part"))  # other downloads too
        for path, status in sorted(shards, key=lambda item: item[1].st_atime_ns):
            if total + size <= limit:
                return
            _remove(path)
            total -= status.st_size


def free_space(folder: Path, size: int) -> bool:
    """Remove the least recently used shards of at least `size` bytes, where the disk is full; whether it did."""
    removed = 0
    for path, status in sorted(_files(folder, "??/*.tar"), key=lambda item: item[1].st_atime_ns):
        if removed >= size:
            break
        _remove(path)
        removed += status.st_size
    return removed >= size


def _files(folder: Path, pattern: str) -> list[tuple[Path, os.stat_result]]:
    found = []
    for path in folder.glob(pattern):
        with suppress(OSError):
            found.append((path, path.stat()))
    return found


def _remove(path: Path) -> None:
    _LOG.debug("the shard cache removes %s", path)
    for file in (path, path.with_suffix(".verified")):  # not the lock: another process may hold it
        with suppress(OSError):
            file.unlink(missing_ok=True)
