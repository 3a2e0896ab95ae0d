"""One file of a source: where its bytes are. A small value that can be sent to another process and read there."""

from __future__ import annotations

import hashlib
import io
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from maestro_dist.data.parts import Remarks
from maestro_dist.data.storage import ObjectMissing, Storage
from maestro_dist.errors import DataError, StorageError

_BUFFER = 1 << 18  # bytes that are read at a time from a remote archive, to find its members
_OPEN_ARCHIVES = 4

BROKEN = (tarfile.TarError, zipfile.BadZipFile, EOFError, lzma.LZMAError, zlib.error, OSError, RuntimeError)
"""What the readers of archives raise for a damaged one."""


@dataclass(frozen=True)
class StoredFile:
    """Where a file is. `name` is for messages.

    url      the file, or the archive or copy that holds it
    version  differs for other content of `url`
    entry    its number in a zip archive; None: it is not in one
    span     first byte and number of bytes in `url`; None: all of it
    content  the bytes themselves, where there is no place for copies
    """

    name: str
    url: str
    version: str = ""
    entry: int | None = None
    span: tuple[int, int] | None = None
    content: bytes | None = None

    def read(self) -> bytes:
        """The content.

        Raises:
            DataError: the file or archive is damaged, or has vanished.
            StorageError: it cannot be read at present.
        """
        if self.content is not None:
            return self.content
        try:
            if self.entry is not None:
                archive = _open_zip(self.url, self.version)
                return archive.read(archive.infolist()[self.entry])
            if self.span is None:
                return Storage(self.url).read(expected=True)
            data = Storage(self.url).read_range("", *self.span, expected=True)
        except ObjectMissing as error:
            raise DataError(f"{self.name}: cannot be read (it has vanished since the source was listed)") from error
        except StorageError as error:
            if Storage(self.url).local is None:
                raise
            raise DataError(f"{self.name}: cannot be read ({error})") from error
        except BROKEN as error:
            raise damaged(self.name, error) from error
        if len(data) != self.span[1]:
            raise DataError(f"{self.name}: cannot be read ({len(data):,} bytes came instead of {self.span[1]:,})")
        return data

    @contextmanager
    def stream(self) -> Iterator[IO[bytes]]:
        """The content as a stream, for what is too large for the memory. Raises what `read` raises."""
        if self.content is not None or self.entry is None:
            yield io.BytesIO(self.read())
            return
        try:
            archive = _open_zip(self.url, self.version)
            with archive.open(archive.infolist()[self.entry]) as content:
                yield content
        except BROKEN as error:
            raise damaged(self.name, error) from error


@dataclass(frozen=True)
class SourceFile:
    """A file of the data set, which may be in the source more than once."""

    copies: tuple[StoredFile, ...]

    @property
    def name(self) -> str:
        """Its name for messages."""
        return self.copies[0].name

    def read(self, remarks: Remarks) -> bytes:
        """The content of a text; a last line that is not ended is remarked.

        Raises:
            DataError: it cannot be read, or its copies differ.
            StorageError: it cannot be read at present.
        """
        content = self.read_binary()
        if content.strip() and not content.endswith((b"\n", b"\r")):
            remarks.warn("the last line is not ended (was the file cut short?)", self.name)
        return content

    def read_binary(self) -> bytes:
        """The content, which is no text. Raises what `read` raises."""
        content = self.copies[0].read()
        digest = hashlib.sha256(content).digest() if len(self.copies) > 1 else b""
        for copy in self.copies[1:]:
            if hashlib.sha256(copy.read()).digest() != digest:
                raise DataError(
                    f"{copy.name}: there is another file with this name and other content, {self.name}; "
                    "keep one of them in the source"
                )
        return content

    def open(self) -> IO[bytes]:
        """The content as a stream, if it is a file of its own; a member of an archive is in memory."""
        only = self.copies[0]
        if len(self.copies) > 1 or only.entry is not None or only.span is not None or only.content is not None:
            return io.BytesIO(self.read_binary())
        return open_binary(only.url)

    def plain_path(self) -> Path | None:
        """Where it is, if it is a file of its own on a disk of this machine, and there is no second copy of it."""
        only = self.copies[0]
        if len(self.copies) > 1 or only.entry is not None or only.span is not None or only.content is not None:
            return None
        return Storage(only.url).local_path()


def damaged(name: str, error: Exception) -> DataError:
    """The error about a damaged archive."""
    return DataError(f"{name}: damaged or unreadable archive ({error}); fetch it again")


def open_binary(url: str) -> IO[bytes]:
    """A file or object for reading at any place. What is read from a remote store is retried like all else."""
    storage = Storage(url)
    local = storage.local_path()
    return local.open("rb") if local is not None else io.BufferedReader(_RemoteFile(storage), _BUFFER)


@lru_cache(maxsize=_OPEN_ARCHIVES)
def _open_zip(url: str, version: str) -> zipfile.ZipFile:
    """The archive, opened once in this process; another `version` is opened again."""
    return zipfile.ZipFile(open_binary(url))


class _RemoteFile(io.RawIOBase):
    """A remote object, read in ranges."""

    def __init__(self, storage: Storage) -> None:
        self._storage, self._place = storage, 0
        size, _ = storage.details(expected=True)
        if size is None:
            raise StorageError(f"{storage.name()}: the server does not say how large it is; copy it to a disk first")
        self._size = size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        return self._place

    def tell(self) -> int:
        return self._place

    def readinto(self, buffer: Any) -> int:
        wanted = max(0, min(len(buffer), self._size - self._place))
        if not wanted:
            return 0
        data = self._storage.read_range("", self._place, wanted, expected=True)
        if len(data) != wanted:
            raise StorageError(
                f"{self._storage.name()}: {len(data):,} bytes came instead of {wanted:,}; a server that gives only "
                "whole files cannot be used for archives: copy it to a disk or an object store first"
            )
        buffer[:wanted] = data
        self._place += wanted
        return wanted
