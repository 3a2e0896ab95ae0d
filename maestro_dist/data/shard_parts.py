"""Parts of remote shards as local files: only the blocks that are asked for are downloaded, each once for a machine."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from maestro_dist.data.block_digests import BlockDigests
from maestro_dist.data.cache_room import SPARSE_SUFFIX, free_space, room_for
from maestro_dist.data.manifest import Shard
from maestro_dist.data.memory_shards import held, hold_new
from maestro_dist.data.shard_cache import POLL_S, STALLED_S, ShardCache, in_memory_instead
from maestro_dist.data.sparse_file import THERE, VERIFIED, BlockWriter, SparseFile, WrongContent
from maestro_dist.data.storage import ObjectDamaged, ObjectMissing, Storage
from maestro_dist.data.storage.retry import Damaged, Heartbeat, RemoteCall, retried
from maestro_dist.data.verified_files import progress
from maestro_dist.errors import DataError, StorageError

_FILE_SYSTEM_BYTES = 16 << 10  # of a download: pages that are partly filled, and where the file has its blocks
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


class ShardParts:
    """The parts of a shard that are on this machine, and what it takes to get others.

    They are in one sparse file of the cache, which all processes of the machine share; or in the memory of this
    process, where the cache cannot be written or its disk is full. Descriptors belong to the caller.
    """

    def __init__(
        self, storage: Storage, shard: Shard, blocks: BlockDigests, cache: ShardCache, heartbeat: Heartbeat
    ) -> None:
        self.in_memory = self._read_only = False
        self._storage, self._shard, self._blocks, self._cache = storage, shard, blocks, cache
        self._heartbeat = heartbeat
        self._name = storage.name(shard.path)
        self._file_name = f"{shard.sha256}.{blocks.name}"  # other digests of the same shard have another file
        self._path: Path | None = None

    def open(self) -> int:
        """A descriptor of the file.

        Raises:
            StorageError: there is neither a cache nor memory for it.
        """
        kept = held(self._file_name)
        if kept is not None:
            with suppress(OSError):  # let go of in the meantime
                return self._opened_in_memory(kept)
        try:
            self._path = self._cache.path() / self._shard.sha256[:2] / f"{self._file_name}{SPARSE_SUFFIX}"
            return self._opened_on_disk(self._path)
        except (OSError, RuntimeError) as error:
            return self._memory_instead(error)

    def fetch(self, file: int, parts: Sequence[tuple[int, int]]) -> int:
        """Download the blocks with the bytes [start, end) of each part, unless they are there.

        `file` is a descriptor of `open`. Returns it; or, where the file has vanished from the cache or the disk is
        full, a new descriptor of another file that has these parts.

        Raises:
            DataError: the shard is missing, truncated, or its bytes do not have the digests of the index.
            StorageError: it cannot be read, or there is neither space on disk nor memory for it.
        """
        runs, used = self._blocks.runs(parts), file
        try:
            try:
                if not self._sparse(file).missing(runs, self._least):
                    return file
                if not self.in_memory and os.fstat(file).st_nlink == 0:  # removed to make room for other shards
                    used = self.open()
                self._fetch_with_room(used, runs)
            except OSError as error:
                used = _instead_of(used, file, self._memory_instead(error))
                with in_memory_instead(error, self._path, self._cache):
                    self._fetch(used, runs)
        except ObjectMissing as error:
            _instead_of(used, file, file)
            raise DataError(f"{self._name}: the shard is missing{error.asked}; pack the data set again") from error
        except BaseException:
            _instead_of(used, file, file)
            raise
        return used

    def recheck(self, file: int) -> bool:
        """Compare all parts that are there with their digests. Returns whether some were damaged: `fetch` gets them."""
        sparse, damaged = self._sparse(file), False
        with suppress(OSError):  # of a read-only cache
            for number in range(len(self._blocks)):
                block = range(number, number + 1)
                if not sparse.missing([block], THERE) and sparse.claim(block):
                    try:
                        damaged = sparse.verify(block) or damaged
                    finally:
                        sparse.release(block)
        return damaged

    # the file

    @property
    def _least(self) -> int:
        return VERIFIED if self._cache.verify == "sha256" else THERE

    def _sparse(self, file: int) -> SparseFile:
        return SparseFile(file, self._shard.bytes, self._blocks)

    def _opened_on_disk(self, path: Path) -> int:
        self.in_memory = self._read_only = False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            if error.errno not in _READ_ONLY or not path.exists():
                raise
            self._read_only = True
            return os.open(path, os.O_RDONLY)  # it may have all that is needed
        try:
            if not self._sparse(file).prepare():
                path.unlink(missing_ok=True)
                raise FileNotFoundError(errno.ESTALE, "not a file of this version, it was removed", str(path))
            os.utime(file, ns=(time.time_ns(), os.fstat(file).st_mtime_ns))  # used now
        except FileNotFoundError:
            os.close(file)
            return self._opened_on_disk(path)
        except BaseException:
            os.close(file)
            raise
        return file

    def _opened_in_memory(self, path: Path) -> int:
        file = os.open(path, os.O_RDWR)
        try:
            self._sparse(file).prepare()
        except BaseException:
            os.close(file)
            raise
        self.in_memory, self._read_only = True, False
        return file

    def _memory_instead(self, error: Exception) -> int:
        with in_memory_instead(error, self._path, self._cache):
            return self._opened_in_memory(hold_new(self._file_name))
        raise AssertionError("unreachable")

    def _size(self, runs: Sequence[range]) -> int:
        return sum(len(run) for run in runs) * self._blocks.size

    def _free_space(self, size: int) -> bool:
        return self._path is not None and not self.in_memory and free_space(self._path.parents[1], size)

    # downloads

    def _fetch_with_room(self, file: int, runs: Sequence[range]) -> None:
        try:
            self._fetch(file, runs)
        except OSError as error:
            missing = self._size(self._sparse(file).missing(runs, self._least))
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not self._free_space(missing):
                raise
            self._fetch(file, runs)

    def _fetch(self, file: int, runs: Sequence[range]) -> None:
        """Download what is missing of `runs`, in any order: what others download now is left to them.

        Raises:
            OSError: the file cannot be written.
        """
        sparse = self._sparse(file)
        pending = sparse.missing(runs, self._least)
        if pending and self._read_only:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        waited, last_state = 0.0, (-1, -1)
        while pending:
            busy = [run for run in pending if not self._fetch_unless_busy(sparse, run)]
            if len(busy) == len(pending):
                status = os.fstat(file)
                state = status.st_blocks, status.st_mtime_ns
                if state != last_state:
                    waited, last_state = 0.0, state
                    self._heartbeat(f"waiting for another process that downloads parts of {self._name}")
                if waited >= STALLED_S:
                    raise StorageError(
                        f"{self._path}: another process downloads parts of this shard and has made no progress for "
                        f"{waited:.0f} s; end it, or set data.cache to another folder"
                    )
                time.sleep(POLL_S)
                waited += POLL_S
            pending = sparse.missing(busy, self._least)

    def _fetch_unless_busy(self, sparse: SparseFile, run: range) -> bool:
        """Download what is still missing of a run, unless another process does; whether it did."""
        if not sparse.claim(run):
            return False
        try:
            if self._least == VERIFIED:
                for part in sparse.missing([run], VERIFIED):  # maybe there, written by a run with data.verify=size
                    sparse.verify(part)
            for part in sparse.missing([run], self._least):
                self._make_room(sparse, part)
                self._download(sparse, part)
        finally:
            sparse.release(run)
        return True

    def _make_room(self, sparse: SparseFile, run: range) -> None:
        """Take the space of a run, so that it counts for others that make room at the same time."""
        if self.in_memory or self._path is None or self._cache.limit is None:
            return
        start = run.start * self._blocks.size
        size = sparse.end_of(run) - start
        taken = size + len(self._blocks) + _FILE_SYSTEM_BYTES
        with room_for(self._path.parents[1], taken, self._cache.limit, keep=self._path):
            try:
                os.posix_fallocate(sparse.file, start, size)
                os.posix_fallocate(sparse.file, sparse.size, len(self._blocks))  # the states
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # of file systems that cannot do it
                    raise

    def _download(self, sparse: SparseFile, run: range) -> None:
        """Download a run of blocks. Wrong bytes are asked for again, as long as an outage may last.

        Raises:
            DataError: what was downloaded are not these blocks.
            OSError: the file cannot be written.
        """
        left, end = run, sparse.end_of(run)

        def alive(what: str) -> None:
            self._heartbeat(what)
            with suppress(OSError):
                os.utime(sparse.file)  # for processes that wait for this download

        source = self._storage.with_heartbeat(alive)

        def attempt() -> OSError | None:
            nonlocal left
            start, first = left.start * self._blocks.size, run.start * self._blocks.size
            writer = BlockWriter(sparse, left, check=self._least == VERIFIED)

            def tell(done: int, _: int) -> None:
                alive(f"downloading parts of {self._name}, {progress(done - first, end - first)}")

            try:
                try:
                    source.copy_part(self._shard.path, writer, start, end, tell, expected=True)
                finally:
                    left = range(writer.next, run.stop)
                    writer.mark()
            except StorageError as error:
                source.raise_other_size(self._shard.path, self._shard.bytes, error)
                raise
            except WrongContent as error:
                raise Damaged(str(error)) from error
            except OSError as error:  # of the local file; no other attempt can help
                return error
            return None

        try:
            failed = retried(attempt, RemoteCall("read", self._name, True), source.longest_wait_s, alive)
        except ObjectDamaged as error:
            raise DataError(f"{error}; upload or pack the data set again") from error
        if failed is not None:
            raise failed


def _instead_of(used: int, given: int, other: int) -> int:
    """Close `used`, unless it is the descriptor that a caller has given; returns `other`."""
    if used not in (given, other):
        os.close(used)
    return other
