"""Local files: complete writes, and writes that have one winner."""

from __future__ import annotations

import errno
import io
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from maestro_dist.errors import StorageError


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
