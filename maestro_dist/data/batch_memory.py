"""Memory that a reader process shares with its training process: an array that is read into it is not copied again.

It consists of anonymous files of the kernel, which have no name and end with the processes. A file is used again when
nobody holds the batch in it any more, because fresh memory is slow.
"""

from __future__ import annotations

import math
import mmap
import os
import socket
import tempfile
import weakref
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

_ALIGNED = 64  # bytes
_LEAST = 1 << 14  # bytes of an array; smaller ones are sent as they are
_MOST_FILES = 32  # of batches that are held; further batches are copied


@dataclass(frozen=True)
class SharedArray:
    """An array in the file of its batch: where it begins, its type and shape."""

    start: int
    dtype: np.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True)
class BatchFile:
    """The file of a batch. `new`: its descriptor follows. `dropped`: files that are not used any more."""

    number: int
    size: int
    new: bool
    dropped: list[int]


class WrittenBatches:
    """The side of the reader process. Each batch has a file of its own, if it has large arrays."""

    def __init__(self, connection: int) -> None:
        """`connection`: the descriptor of a Unix socket to the training process."""
        self._connection = connection
        self._files: dict[int, np.ndarray] = {}
        self._free: list[int] = []
        self._made = 0
        self._size = self._used = 0
        self._current: int | None = None
        self._new: dict[int, int] = {}  # descriptors of the files that the training process does not have yet
        self._dropped: list[int] = []

    def begin(self, size: int, released: Iterable[int]) -> None:
        """Begin a batch of at most `size` bytes. The training process does not hold the files `released` any more."""
        self._free += released
        if self._current is not None:  # the last batch was not sent
            self._free.append(self._current)
        self._size, self._used, self._current = size, 0, None

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """As `np.empty`; in the file of the batch if the array is large and has room there."""
        length = math.prod(shape) * dtype.itemsize
        start = -(-self._used // _ALIGNED) * _ALIGNED
        if length < _LEAST or start + length > self._size:
            return np.empty(shape, dtype)
        self._used = start + length
        return self._bytes()[start : self._used].view(dtype).reshape(shape)

    def shared(self, array: np.ndarray) -> SharedArray | None:
        """Where an array is in the file of the batch; None if it is elsewhere."""
        if self._current is None or not array.nbytes or not array.flags.c_contiguous:
            return None
        whole = self._files[self._current]
        start = array.ctypes.data - whole.ctypes.data
        return SharedArray(start, array.dtype, array.shape) if 0 <= start < len(whole) else None

    def file(self) -> BatchFile | None:
        """The file of the batch, to be sent with it; None if there is none."""
        if self._current is None:
            return None
        return BatchFile(self._current, len(self._files[self._current]), self._current in self._new, self._dropped)

    def sent(self) -> None:
        """Send the descriptor of a new file. The training process holds the file of the batch from now on."""
        if self._current in self._new:
            descriptor = self._new.pop(self._current)
            with socket.socket(fileno=os.dup(self._connection)) as connection:
                socket.send_fds(connection, [b"."], [descriptor])
            os.close(descriptor)
        self._current, self._dropped = None, []

    def _bytes(self) -> np.ndarray:
        """All bytes of the file of the batch: of a free one that is large enough, or of a new one."""
        if self._current is None:
            large = [file for file in self._free if len(self._files[file]) >= self._size]
            if not large:
                self._drop_free_files()
                large = [self._make()]
            self._current = large[-1]
            if self._current in self._free:
                self._free.remove(self._current)
        return self._files[self._current]

    def _make(self) -> int:
        descriptor, size = _anonymous_file(), -(-self._size // mmap.PAGESIZE) * mmap.PAGESIZE
        os.ftruncate(descriptor, size)  # no memory yet: that comes with the bytes that are written
        self._made += 1
        self._new[self._made] = descriptor
        self._files[self._made] = np.frombuffer(mmap.mmap(descriptor, size), dtype=np.uint8)
        return self._made

    def _drop_free_files(self) -> None:
        for file in self._free:
            del self._files[file]
            if file in self._new:
                os.close(self._new.pop(file))
            else:
                self._dropped.append(file)
        self._free = []


class ReceivedBatches:
    """The side of the training process."""

    def __init__(self, connection: int) -> None:
        """`connection`: the descriptor of a Unix socket to the reader process."""
        self._connection = connection
        self._files: dict[int, mmap.mmap] = {}
        self._held: set[int] = set()
        self._released: deque[int] = deque()
        self._bytes = np.empty(0, dtype=np.uint8)
        self._copied = False

    def released(self) -> list[int]:
        """The files that nobody holds any more, since the last call."""
        files = []
        while self._released:
            files.append(self._released.popleft())
        self._held.difference_update(files)
        return files

    def begin(self, file: BatchFile | None) -> None:
        """Begin a batch; takes the descriptor of a new file from the socket.

        Raises:
            EOFError: the reader process has ended.
            OSError: the file cannot be used.
        """
        if file is None:
            return
        for number in file.dropped:
            del self._files[number]
        if file.new:
            with socket.socket(fileno=os.dup(self._connection)) as connection:
                _, descriptors, _, _ = socket.recv_fds(connection, 1, 1)
            if not descriptors:
                raise EOFError
            self._files[file.number] = mmap.mmap(descriptors[0], file.size)
            os.close(descriptors[0])
        self._copied = len(self._held) >= _MOST_FILES
        self._held.add(file.number)
        # every array of the batch has this one as its base, so it lives as long as any of them
        self._bytes = np.frombuffer(self._files[file.number], dtype=np.uint8)
        weakref.finalize(self._bytes, self._released.append, file.number).atexit = False

    def array(self, shared: SharedArray) -> np.ndarray:
        """An array of the batch."""
        length = math.prod(shared.shape) * shared.dtype.itemsize
        array = self._bytes[shared.start : shared.start + length].view(shared.dtype).reshape(shared.shape)
        return array.copy() if self._copied else array

    def end(self) -> None:
        """The batch is complete."""
        self._bytes = np.empty(0, dtype=np.uint8)


def _anonymous_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("batch")
    with tempfile.TemporaryFile() as file:  # macOS
        return os.dup(file.fileno())
