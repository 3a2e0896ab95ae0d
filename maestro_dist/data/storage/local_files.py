"""Local files: complete writes, and writes that have one winner."""

from __future__ import annotations

import errno
import fcntl
import io
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from maestro_dist.errors import StorageError

_SPOOL = ".writing-"
_WRITTEN = re.compile(r"\..+\.[0-9a-f]{32}")  # files of `write_file`


class SpoolFile(io.FileIO):
    """A new file; a failed write raises the error that `failed` returns."""

    def __init__(self, path: Path, failed: Callable[[OSError], StorageError]) -> None:
        super().__init__(path, "w+")
        self._failed = failed

    def write(self, data: Any) -> int:
        """Write, as a file does."""
        try:
            return super().write(data)
        except OSError as error:
            raise self._failed(error) from error


@contextmanager
def spool_folder(place: Path | None) -> Iterator[Path]:
    """Context with a new folder for a file that is being written, in `place` or the temporary folder.

    It is locked, so that `remove_abandoned` tells it from one whose process was killed.
    """
    with tempfile.TemporaryDirectory(prefix=_SPOOL, dir=place, ignore_cleanup_errors=True) as folder:
        lock = os.open(folder, os.O_RDONLY)
        try:
            _lock(lock)
            yield Path(folder)
        finally:
            os.close(lock)


def _lock(file: int) -> None:
    with suppress(OSError):  # some file systems have no locks
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def remove_abandoned(place: Path) -> None:
    """Remove what processes that were killed have left in a folder. Nothing of processes that write there now."""
    for path in place.glob(".*"):
        if path.name.startswith(_SPOOL) or _WRITTEN.fullmatch(path.name):
            with suppress(OSError):
                _remove_unlocked(path)


def _remove_unlocked(path: Path) -> None:
    lock = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        empty = not (any(path.iterdir()) if path.is_dir() else path.stat().st_size)
        if empty:  # it may be new, and not locked yet
            return
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    finally:
        os.close(lock)


def read_range(path: Path, start: int, length: int) -> bytes:
    """`length` bytes from `start`; fewer at the end of the file."""
    with path.open("rb") as file:
        file.seek(start)
        return file.read(length)


def make_folder(path: Path) -> None:
    """Create a folder and those above it. Raises NotADirectoryError if a file is in the way."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, "a file has the name of its folder") from error


def write_file(path: Path, data: bytes, *, create: bool) -> None:
    """Write a complete file through a temporary file. With `create`, raise FileExistsError if it exists."""
    make_folder(path.parent)
    if create and path.exists():
        raise FileExistsError(str(path))
    spool = path.parent / f".{path.name}.{uuid.uuid4().hex}"
    try:
        with spool.open("wb") as file:
            _lock(file.fileno())
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            if create:
                os.link(spool, path)  # fails if the name exists, so only one writer succeeds
            else:
                os.replace(spool, path)
    finally:
        spool.unlink(missing_ok=True)


def local_sizes(folder: Path) -> dict[str, int]:
    """Sizes of the files directly below a folder, by name, without hidden ones; empty for a missing folder."""
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as entries:
        return {entry.name: _size(Path(entry.path)) for entry in entries if entry.name[0] != "."}


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # a broken link
        return path.lstat().st_size
