"""The size of the shard cache: the least recently used shards make room for new ones."""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

SPARSE_SUFFIX = ".sparse"
"""Of files with some blocks of a shard (`sparse_file.py`)."""

_LOG = logging.getLogger(__name__)


def mark_used(path: Path) -> None:
    """Note that a cached shard is used now: its access time changes, its modification time does not."""
    with suppress(OSError):  # a read-only cache is not tidied
        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))


@contextmanager
def room_for(folder: Path, size: int, limit: int | None, keep: Path | None = None) -> Iterator[None]:
    """Remove the least recently used shards until `size` more bytes fit below `limit` bytes (None: no limit).

    Other processes make room after the block: what it takes of the disk is then counted. `keep` is not removed: a file
    that is to grow. A process that reads a removed shard keeps its open file; a later use downloads the shard again.

    Raises:
        OSError: the folder cannot be written.
    """
    if limit is None:
        yield
        return
    with (folder / ".room.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        shards = _shards(folder)
        total = sum(file.bytes for file in shards + _files(folder, "??/*.part"))  # other downloads too
        for file in shards:
            if total + size <= limit:
                break
            if file.path != keep:
                _remove(file.path)
                total -= file.bytes
        yield


def free_space(folder: Path, size: int) -> bool:
    """Remove the least recently used shards of at least `size` bytes, where the disk is full; whether it did."""
    removed = 0
    for file in _shards(folder):
        if removed >= size:
            break
        _remove(file.path)
        removed += file.bytes
    return removed >= size


class _File(NamedTuple):
    """A file of the cache: when it was used last (ns), its path, and what it takes of the disk."""

    used: int
    path: Path
    bytes: int


def _shards(folder: Path) -> list[_File]:
    """Complete shards and parts of shards, the least recently used first."""
    return sorted(_files(folder, "??/*.tar") + _files(folder, f"??/*{SPARSE_SUFFIX}"))


def _files(folder: Path, pattern: str) -> list[_File]:
    found = []
    for path in folder.glob(pattern):
        with suppress(OSError):
            status = path.stat()
            size = status.st_blocks * 512 if path.suffix == SPARSE_SUFFIX else status.st_size
            found.append(_File(status.st_atime_ns, path, size))
    return found


def _remove(path: Path) -> None:
    _LOG.debug("the shard cache removes %s", path)
    for file in (path, path.with_suffix(".verified")):  # not the lock: another process may hold it
        with suppress(OSError):
            file.unlink(missing_ok=True)
