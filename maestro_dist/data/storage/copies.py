"""An object that is being copied to a local file, in as many calls as it takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import IO, Any

from maestro_dist.data.storage.client import FileSystemClient


class ObjectCopy:
    """An object that is being copied to a local file. `failed`: why the file cannot be written."""

    def __init__(self, file: IO[bytes], size: int, progress: Callable[[int, int], None], digest: Any) -> None:
        self.done = 0
        self.failed: OSError | None = None
        self._file, self._size, self._progress, self._digest = file, size, progress, digest

    def go_on(self, client: FileSystemClient, key: str) -> None:
        """Copy what is left. Raises OSError where fewer bytes come."""
        for piece in client.pieces(key, self.done, self._size):
            try:
                self._file.write(piece)
            except OSError as error:  # no request is at fault, and none is made again
                self.failed = error
                return
            if self._digest is not None:
                self._digest.update(piece)
            self.done += len(piece)
            self._progress(self.done, self._size)
        if self.done != self._size:
            raise OSError(f"{self.done} bytes came instead of {self._size}, the connection was lost")
