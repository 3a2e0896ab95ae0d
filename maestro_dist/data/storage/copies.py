"""Objects, or parts of them, that are being copied, in as many calls as it takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from maestro_dist.data.storage.client import FileSystemClient


class Writable(Protocol):
    """What takes the bytes of an object in their order."""

    def write(self, data: bytes, /) -> object:
        """Take the next bytes."""


class Hashed:
    """A file that updates `digest` (of hashlib; None: nothing) with all that is written to it."""

    def __init__(self, file: Writable, digest: Any) -> None:
        self._file, self._digest = file, digest

    def write(self, data: bytes) -> None:
        """Write the next bytes."""
        self._file.write(data)
        if self._digest is not None:
            self._digest.update(data)


class ObjectCopy:
    """The bytes from `start` up to `end` of an object that are being copied. `failed`: why `file` did not take them."""

    def __init__(self, file: Writable, start: int, end: int, progress: Callable[[int, int], None]) -> None:
        self.done = start
        self.failed: OSError | None = None
        self._file, self._start, self._end, self._progress = file, start, end, progress

    def go_on(self, client: FileSystemClient, key: str) -> None:
        """Copy what is left. Raises OSError where fewer bytes come."""
        for received in client.pieces(key, self.done, self._end):
            piece = received[: self._end - self.done]  # some servers answer with the complete object
            try:
                self._file.write(piece)
            except OSError as error:  # no request is at fault, and none is made again
                self.failed = error
                return
            self.done += len(piece)
            self._progress(self.done, self._end)
            if len(piece) < len(received):
                return
        if self.done != self._end:
            came, wanted = self.done - self._start, self._end - self._start
            raise OSError(f"{came} bytes came instead of {wanted}, the connection was lost")
