"""A local file with some blocks of a shard, for any number of threads and processes at the same time.

The file has the bytes of the shard, as far as they are there, and then one byte for each block: its state. Bytes and
states are one file, so they cannot belong to different shards. A state is written after the bytes of its block are on
disk: a process that is killed, or a machine that fails, never leaves a state without its block.

Who writes blocks holds a lock on their states. The kernel releases it when the process ends.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from maestro_dist.data.block_digests import BlockDigests
from maestro_dist.data.manifest import Shard
from maestro_dist.data.storage.retry import Heartbeat
from maestro_dist.data.verified_files import file_identity, note_verified, sha256_of

THERE, VERIFIED = 1, 2
"""States of a block: written with `data.verify=size`; compared with its digest. 0: it is not there."""

_WRITTEN_AT_ONCE = 16 << 20  # bytes after which the states of a long run of blocks are written
_END_BLOCKS = 4  # a tar ends with up to 11 kB of zeros


def has_range_locks() -> bool:
    """Whether this system has the locks that are used here (Linux)."""
    return hasattr(fcntl, "F_OFD_SETLK")


class WrongContent(OSError):
    """What came is not a block of the shard."""


class SparseFile:
    """An open file. `size`: bytes of the shard. Only one thread at a time may use a descriptor; each opens its own."""

    def __init__(self, file: int, size: int, blocks: BlockDigests) -> None:
        self.file, self.size, self.blocks = file, size, blocks

    @property
    def whole_size(self) -> int:
        """Bytes of the shard and of the states."""
        return self.size + len(self.blocks)

    def prepare(self) -> bool:
        """Give a new file its size. Returns False for a file that is something else."""
        found = os.fstat(self.file).st_size
        if found == 0:
            os.ftruncate(self.file, self.whole_size)
        return found in (0, self.whole_size)

    def missing(self, runs: Sequence[range], least: int) -> list[range]:
        """The blocks of `runs` whose state is below `least`, as runs."""
        found: list[range] = []
        for run in runs:
            states = os.pread(self.file, len(run), self.size + run.start)
            if len(states) < len(run):
                if self._is_complete_shard():
                    return []
                states = states.ljust(len(run), b"\0")
            if min(states) >= least:
                continue
            for number, state in zip(run, states, strict=True):
                if state >= least:
                    continue
                if found and found[-1].stop == number:
                    found[-1] = range(found[-1].start, number + 1)
                else:
                    found.append(range(number, number + 1))
        return found

    def claim(self, run: range) -> bool:
        """Lock some blocks; False if another holds one of them.

        Raises:
            OSError: the file can only be read, or is on a file system without such locks.
        """
        try:
            self._lock(fcntl.F_WRLCK, run)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return False
            raise
        return True

    def release(self, run: range) -> None:
        """Unlock what `claim` has locked."""
        self._lock(fcntl.F_UNLCK, run)

    def end_of(self, run: range) -> int:
        """Where the bytes of a run end: the last block of a shard may be shorter."""
        return min(run.stop * self.blocks.size, self.size)

    def set_states(self, run: range, state: int) -> None:
        """Set the state of blocks that are locked, once their bytes are on disk."""
        if run:
            os.fdatasync(self.file)
            write_all(self.file, bytes([state]) * len(run), self.size + run.start)

    def verify(self, run: range) -> bool:
        """Compare the blocks of a locked run that are there with their digests; those that differ are missing then.

        Returns whether one differs.
        """
        states = bytearray(os.pread(self.file, len(run), self.size + run.start))
        if len(states) < len(run):
            return False  # the file has become a copy of the complete shard, which has a hash of its own
        damaged = False
        for place, number in enumerate(run):
            if states[place]:
                right = self.blocks.holds(number, self._read(number))
                states[place] = VERIFIED if right else 0
                damaged = damaged or not right
        write_all(self.file, bytes(states), self.size + run.start)
        return damaged

    def _read(self, number: int) -> bytes:
        start = number * self.blocks.size
        return os.pread(self.file, self.end_of(range(number, number + 1)) - start, start)

    def _is_complete_shard(self) -> bool:
        """Whether all blocks were there, and another process has made the file a copy of the complete shard."""
        return os.fstat(self.file).st_size == self.size

    def _lock(self, kind: int, run: range) -> None:
        start, length, no_process = self.size + run.start, len(run), 0
        lock = struct.pack("@hhqqi4x", kind, os.SEEK_SET, start, length, no_process)  # struct flock
        fcntl.fcntl(self.file, fcntl.F_OFD_SETLK, lock)


class BlockWriter:
    """Takes the bytes of a run of blocks in their order, and writes those that are right.

    next  the first block that is not written
    """

    def __init__(self, file: SparseFile, run: range, *, check: bool) -> None:
        self.next = run.start
        self._file, self._run, self._check = file, run, check
        self._rest = bytearray()
        self._marked = run.start

    def write(self, data: bytes) -> None:
        """Take the next bytes.

        Raises:
            WrongContent: a block does not have its digest.
            OSError: the file cannot be written.
        """
        self._rest += data
        blocks, first, at = self._file.blocks, self.next, 0
        with memoryview(self._rest) as rest:
            try:
                while self.next in self._run:
                    size = self._file.end_of(range(self.next, self.next + 1)) - self.next * blocks.size
                    if at + size > len(rest):
                        break
                    if self._check and not blocks.holds(self.next, rest[at : at + size]):
                        raise WrongContent(f"block {self.next} of {blocks.size} bytes does not have its digest")
                    at, self.next = at + size, self.next + 1
            finally:
                try:
                    write_all(self._file.file, rest[:at], first * blocks.size)
                except BaseException:
                    self.next = first
                    raise
        del self._rest[:at]
        if (self.next - self._marked) * blocks.size >= _WRITTEN_AT_ONCE:
            self.mark()

    def mark(self) -> None:
        """Write the states of the blocks that were written."""
        self._file.set_states(range(self._marked, self.next), VERIFIED if self._check else THERE)
        self._marked = self.next


def write_all(file: int, data: bytes | memoryview, place: int) -> None:
    """Write all of `data` at `place`; one system call may write less."""
    while data:
        done = os.pwrite(file, data, place)
        data, place = data[done:], place + done


def join_parts(path: Path, shard: Shard, target: Path, heartbeat: Heartbeat) -> bool:
    """Make a sparse file a copy of the complete shard, `target`, if it has all of it; whether it did.

    What follows the last sample of a tar are zeros, which no rank asks for: blocks that are not there are zeros too.
    """
    with suppress(OSError), ExitStack() as stack:  # for instance removed to make room, or a read-only cache
        file = os.open(path, os.O_RDWR)
        stack.callback(os.close, file)
        states = os.pread(file, max(0, os.fstat(file).st_size - shard.bytes), shard.bytes)
        sparse = SparseFile(file, shard.bytes, BlockDigests(0, b""))
        if not states or 0 in states[:-_END_BLOCKS] or not sparse.claim(range(len(states))):
            return False
        if sha256_of(path, shard.bytes, heartbeat) != shard.sha256:
            return False
        os.replace(path, target)
        os.ftruncate(file, shard.bytes)
        note_verified(file_identity(os.fstat(file)), shard, target.with_suffix(".verified"))
        return True
    return False
