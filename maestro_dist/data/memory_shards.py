"""Shards in memory, where the cache has no space: anonymous files of the kernel, which end with the process."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

MOST_BYTES = 1 << 30
"""Shards of a process that are in memory have at most this size together, or are a single one."""

_lock = threading.Lock()
_files: OrderedDict[str, tuple[int, int]] = OrderedDict()  # by hash: descriptor and size


def can_hold_shards() -> bool:
    """Whether this system has anonymous files (Linux)."""
    return hasattr(os, "memfd_create")


def new_file(name: str) -> tuple[int, Path]:
    """An empty anonymous file: its descriptor, and the path by which this process opens it."""
    file = os.memfd_create(name)
    return file, Path(f"/proc/self/fd/{file}")


def held(sha256: str) -> Path | None:
    """The path of a shard that is in memory."""
    with _lock:
        if sha256 not in _files:
            return None
        _files.move_to_end(sha256)
        return Path(f"/proc/self/fd/{_files[sha256][0]}")


def hold(sha256: str, file: int, size: int) -> None:
    """Keep a shard's anonymous file, and let go of the least recently used ones beyond 1 GiB."""
    with _lock:
        if sha256 in _files:
            os.close(_files.pop(sha256)[0])
        _files[sha256] = file, size
        while len(_files) > 1 and sum(size for _, size in _files.values()) > MOST_BYTES:
            with suppress(OSError):
                os.close(_files.popitem(last=False)[1][0])
