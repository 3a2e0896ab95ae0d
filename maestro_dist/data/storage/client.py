"""What a `Storage` calls: the operations of a remote store, in as few requests as the store allows.

All errors of a client are Python's own where one exists (FileNotFoundError, PermissionError, FileExistsError). No
client retries: `retry.py` does, for all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from maestro_dist.data.storage.request_counts import count_received, count_request

_RANGE = 16 << 20  # bytes of one ranged read


class FileSystemClient:
    """Any file system of fsspec. Each call counts as one request of its kind."""

    counts_calls = True

    def __init__(self, fs: Any, *, has_folders: bool) -> None:
        self._fs, self._has_folders = fs, has_folders

    def read(self, key: str) -> bytes:
        """The complete object."""
        self._count("GET")
        return count_received(self._fs.cat_file(key))

    def read_range(self, key: str, start: int, end: int) -> bytes:
        """The bytes from `start` up to `end`."""
        self._count("GET")
        return count_received(self._fs.cat_file(key, start=start, end=end))

    def pieces(self, key: str, start: int, end: int) -> Iterator[bytes]:
        """The bytes from `start` up to `end`, in pieces. Raises OSError where fewer bytes come."""
        for first in range(start, end, _RANGE):
            size = min(_RANGE, end - first)
            data = self.read_range(key, first, first + size)
            if len(data) != size:
                raise OSError(f"{len(data)} bytes came instead of {size}, the connection was lost")
            yield data

    def size(self, key: str) -> int:
        """Size of an object in bytes."""
        self._count("HEAD")
        return int(self._fs.info(key)["size"])

    def find(self, key: str) -> None:
        """Raise FileNotFoundError unless there is an object or a folder with this name."""
        self._count("HEAD")
        self._fs.info(key)  # `fs.exists` returns False for any failure

    def sizes(self, key: str) -> dict[str, int]:
        """Objects and folders directly below a folder, by name, with their sizes; a folder has size 0."""
        self._count("LIST")
        folder = key.strip("/")
        listed = [(str(item["name"]).strip("/"), item) for item in self._fs.ls(key, detail=True)]
        return {name.rsplit("/", 1)[-1]: int(item["size"] or 0) for name, item in listed if name != folder}

    def details(self, key: str) -> tuple[int | None, str]:
        """Size of an object in bytes (None: unknown), and a text that differs for other content ("": unknown)."""
        self._count("HEAD")
        return _details(self._fs.info(key))

    def tree(self, key: str) -> dict[str, tuple[int | None, str]]:
        """`details` of all objects below a folder, by their path below it; empty for a missing folder."""
        self._count("LIST")
        start = len(str(self._fs._strip_protocol(key)).rstrip("/")) + 1
        return {name[start:]: _details(info) for name, info in self._fs.find(key, detail=True).items()}

    def write(self, key: str, data: bytes, *, create: bool) -> None:
        """Write the complete object. With `create`, raise FileExistsError if it exists."""
        self._count("PUT")
        mode = "create" if create else "overwrite"
        try:
            self._fs.pipe_file(key, data, mode=mode)
        except FileNotFoundError:
            if not self._has_folders:
                raise
            self._fs.makedirs(self._fs._parent(key), exist_ok=True)
            self._fs.pipe_file(key, data, mode=mode)

    def upload(self, path: Path, key: str) -> None:
        """Write a local file to an object."""
        self._count("PUT")
        self._fs.put_file(str(path), key)

    def remove(self, key: str) -> None:
        """Remove an object."""
        self._count("DELETE")
        self._fs.rm(key)

    def remove_many(self, keys: Sequence[str]) -> None:
        """Remove objects; missing ones are no error."""
        for key in keys:
            with suppress(FileNotFoundError):
                self.remove(key)

    def remove_folder(self, key: str) -> None:
        """Remove all objects below a folder."""
        self._count("DELETE")
        self._fs.rm(key, recursive=True)

    def _count(self, kind: str) -> None:
        if self.counts_calls:
            count_request(kind)


def _details(info: dict[str, Any]) -> tuple[int | None, str]:
    """Size and version in the description that a file system gives of an object."""
    versions = (info.get(name) for name in ("ETag", "etag", "e_tag", "Last-Modified", "LastModified", "mtime"))
    size = info.get("size")
    return None if size is None else int(size), str(next(filter(None, versions), ""))
