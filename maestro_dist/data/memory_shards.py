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
_files: OrderedDict[str, int] = OrderedDict()  # descriptors by name


def can_hold_shards() -> bool:
    """Whether this system has anonymous files (Linux)."""
    return hasattr(os, "memfd_create")


def new_file(name: str) -> tuple[int, Path]:
    """An empty anonymous file: its descriptor, and the path by which this process opens it."""
    file = os.memfd_create(name)
    return file, _path(file)


def held(name: str) -> Path | None:
    """The path of a file that is held in memory."""
    with _lock:
        if name not in _files:
            return None
        _files.move_to_end(name)
        return _path(_files[name])


def hold(name: str, file: int) -> None:
    """Keep an anonymous file, and let go of the least recently used ones beyond 1 GiB."""
    with _lock:
        if name in _files:
            os.close(_files.pop(name))
        _files[name] = file
        _let_go()


def hold_new(name: str) -> Path:
    """The path of a file that is held in memory; an empty one, if there is none with this name."""
    with _lock:
        if name not in _files:
            _files[name] = new_file(name)[0]
        _files.move_to_end(name)
        _let_go()
        return _path(_files[name])


def _let_go() -> None:
    """The caller holds the lock. Files may have grown since they were taken in."""
    while len(_files) > 1 and sum(os.fstat(file).st_blocks * 512 for file in _files.values()) > MOST_BYTES:
        with suppress(OSError):
            os.close(_files.popitem(last=False)[1])


def _path(file: int) -> Path:
    return Path(f"/proc/self/fd/{file}")
