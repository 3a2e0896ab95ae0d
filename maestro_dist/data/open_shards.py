"""The open shards of a split: their indexes in memory, and a limited number of open files."""

from __future__ import annotations

import errno
import os
import resource
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maestro_dist.config.schema import DataConfig
from maestro_dist.data.block_digests import BlockDigests
from maestro_dist.data.index_copies import index_of
from maestro_dist.data.manifest import Shard
from maestro_dist.data.shard_cache import ShardCache, cached_shard, local_shard
from maestro_dist.data.shard_index import HEADER, ShardIndex
from maestro_dist.data.shard_parts import ShardParts
from maestro_dist.data.storage import Storage
from maestro_dist.data.storage.retry import Heartbeat
from maestro_dist.data.verified_files import FileIdentity, file_identity
from maestro_dist.errors import StorageError

_INDEX_BYTES = 256 << 20  # memory for indexes, without the indexes of shards that are shuffled together
_MOST_FILES = 1024


class KnownSamples:
    """What was read of the N samples of a shard and found to be right; it holds while the file does not change.

    read       bool [N]: whether the json member was read; then `targets` and `recording` are filled
    targets    float64 [N], or [N, K] of K targets
    recording  float32 [N, V, 2]: mean and std of the recording, for the variates of all modalities; V 0: none
    allowed    bool [N, M]: whether the values of a window were checked
    forgotten  how often the file has changed
    """

    def __init__(self, samples: int, modalities: int, variates: int, targets: int = 1) -> None:
        self.read = np.zeros(samples, dtype=bool)
        self.targets = np.zeros(samples if targets == 1 else (samples, targets))
        self.recording = np.zeros((samples, variates, 2), dtype=np.float32)
        self.allowed = np.zeros((samples, modalities), dtype=bool)
        self.forgotten = 0

    @property
    def bytes(self) -> int:
        """Memory of the arrays."""
        return self.read.nbytes + self.targets.nbytes + self.recording.nbytes + self.allowed.nbytes

    def forget(self) -> None:
        """Everything is to be checked again."""
        self.read[:], self.allowed[:] = False, False
        self.forgotten += 1


@dataclass
class OpenShard:
    """A shard with its index: offset and size of each member of each sample, [N, K].

    file    the verified file, which is at `path`
    blocks  digests of the shard's blocks, if it is read in parts
    windows what `WindowsOf` has added
    parts   the parts of it that are on this machine; None: all of it is, at `path`
    """

    position: int
    name: str
    keys: list[str]
    offsets: np.ndarray
    sizes: np.ndarray
    path: Path
    file: FileIdentity
    known: KnownSamples
    blocks: BlockDigests | None = None
    parts: ShardParts | None = None
    windows: Any = None

    @property
    def bytes(self) -> int:
        """Approximate memory of the index, and of what is known about the samples."""
        digests = 0 if self.blocks is None else len(self.blocks.digests)
        arrays = self.offsets.nbytes + self.sizes.nbytes + self.known.bytes
        return digests + arrays + sum(64 + len(key) for key in self.keys)


WindowsOf = Callable[[Shard, ShardIndex], tuple[ShardIndex, Any]]
"""The index of the windows of a shard of recordings, and what else its reader needs to know about them."""


class OpenShards:
    """Opens a shard at its first use. Loads its index and verifies it once, as long as memory allows.

    A file that was closed to open another one is opened again without verification, unless it has changed. Only one
    thread at a time may use it.

    in_parts    of remote shards, download only the parts that `fetch` names, where an index has digests
    windows_of  for shards of recordings
    """

    in_parts = False
    windows_of: WindowsOf | None = None
    targets = 1

    def __init__(
        self,
        storage: Storage,
        shards: Sequence[Shard],
        members: Sequence[str],
        config: DataConfig,
        heartbeat: Heartbeat,
        variates: int = 0,
    ) -> None:
        """`members`: the json member, then one of each modality. `variates`: how many have recording statistics."""
        self._storage, self._shards, self._members, self._variates = storage, shards, members, variates
        self._config, self._heartbeat = config, heartbeat
        self._kept_shards = 0
        self.keep(config.shuffle_shards)
        self._opened: OrderedDict[int, OpenShard] = OrderedDict()
        self._bytes = 0
        self._files: OrderedDict[int, int] = OrderedDict()
        self._most_files = _files_allowed()

    def close(self) -> None:
        """Close all files."""
        while self._files:
            os.close(self._files.popitem()[1])

    def keep(self, shards: int) -> None:
        """Keep at least this many shards (the shards of one batch) in memory.

        The limit is this number plus `data.shuffle_shards`: a batch may have samples of two shuffled groups.
        """
        self._kept_shards = max(self._kept_shards, shards + self._config.shuffle_shards)

    def get(self, position: int) -> OpenShard:
        """A shard by its position in the split.

        Raises:
            DataError: shard or index is missing, damaged, or differs from the manifest.
            StorageError: it cannot be read.
        """
        opened = self._opened.get(position)
        if opened is not None:
            self._opened.move_to_end(position)
            return opened
        shard = self._shards[position]
        self._heartbeat(f"opening {self._storage.name(shard.path)}")
        index, windows = index_of(self._storage, shard, self._config.cache), None
        blocks = index.blocks if self.in_parts and self._storage.local is None else None
        if self.windows_of is not None:
            index, windows = self.windows_of(shard, index)
        offsets, sizes = index.columns(self._members)
        dtype = np.min_scalar_type(shard.bytes)  # 4 bytes per number instead of 8, for shards below 4 GiB
        opened = OpenShard(
            position=position,
            name=self._storage.name(shard.path),
            keys=index.keys,
            offsets=offsets.astype(dtype),
            sizes=sizes.astype(dtype),
            path=Path(),
            file=(0, 0, 0, 0),
            known=KnownSamples(len(index.keys), len(self._members) - 1, self._variates, self.targets),
            blocks=blocks,
            windows=windows,
        )
        if windows is not None and index.targets is not None:
            opened.known.targets[:] = index.targets
        self._verify(opened)
        self._opened[position] = opened
        self._bytes += opened.bytes
        while self._bytes > _INDEX_BYTES and len(self._opened) > self._kept_shards:
            oldest, dropped = self._opened.popitem(last=False)
            self._bytes -= dropped.bytes
            self._close(oldest)
        return opened

    def renewed(self, shard: OpenShard) -> bool:
        """Whether the file of a shard has changed since it was verified; then verify (or download) it again.

        Parts of a shard are compared with their digests: whether some were damaged, which `fetch` then gets again.

        Raises what `get` raises.
        """
        if shard.parts is not None:
            return shard.parts.recheck(self.descriptor(shard))
        try:
            if file_identity(shard.path.stat()) == shard.file:
                return False
        except OSError:  # for instance removed: downloaded again, or an error
            pass
        self._close(shard.position)
        self._verify(shard)
        return True

    def descriptor(self, shard: OpenShard) -> int:
        """The open file of a shard; it is the file that was verified. It may be closed when another shard is opened.

        Raises:
            DataError, StorageError: as `get`.
            OSError: the file cannot be opened.
        """
        position = shard.position
        if position in self._files:
            self._files.move_to_end(position)
            return self._files[position]
        while len(self._files) >= self._most_files:
            os.close(self._files.popitem(last=False)[1])
        opened = self._same_file(shard) if shard.parts is None else self._opened_parts(shard.parts)
        if opened is None:
            self._verify(shard)
            opened = self._opened_file(shard.path) if shard.parts is None else self._opened_parts(shard.parts)
        self._files[position] = opened
        return opened

    def fetch(self, shard: OpenShard, parts: Sequence[tuple[int, int]]) -> int:
        """Download the bytes [start, end) of each part, unless they or the complete shard are on this machine.

        Returns the open file of the shard, as `descriptor`.

        Raises:
            DataError, StorageError, OSError: as `descriptor`.
        """
        file = self.descriptor(shard)  # it finds out if there is no longer a complete shard
        if shard.parts is not None:
            other = shard.parts.fetch(file, parts)
            if other != file:
                os.close(file)
                self._files[shard.position] = other
            return other
        return file

    def read(self, shard: OpenShard, row: int, column: int) -> bytes:
        """Header and content of a member; fewer bytes if the file ends earlier.

        Raises:
            StorageError: the file cannot be read.
        """
        length = HEADER + int(shard.sizes[row, column])
        offset = int(shard.offsets[row, column]) - HEADER
        try:
            return self._read(shard, length, offset)
        except OSError:
            self._close(shard.position)  # a file on a network disk may need to be opened again (ESTALE)
        try:
            return self._read(shard, length, offset)
        except OSError as error:
            self._close(shard.position)
            where = shard.path if shard.parts is None else f"the parts of {shard.name}"
            raise StorageError(f"cannot read {where}: {error.strerror or error}") from error

    def _read(self, shard: OpenShard, length: int, offset: int) -> bytes:
        return _read(self.fetch(shard, [(offset, offset + length)]), length, offset)

    def _verify(self, shard: OpenShard) -> None:
        config = self._config
        entry, cache = self._shards[shard.position], ShardCache.of(config)
        shard.known.forget()
        if shard.windows is not None:
            shard.windows.forget()
        shard.parts = None
        if shard.blocks is not None:
            copy = cached_shard(entry, cache, self._heartbeat)
            if copy is None:
                shard.parts = ShardParts(self._storage, entry, shard.blocks, cache, self._heartbeat)
                return
            shard.path = copy
        else:
            shard.path = local_shard(self._storage, entry, cache, self._heartbeat)
        try:
            shard.file = file_identity(shard.path.stat())
        except OSError as error:
            raise StorageError(f"cannot read {shard.path}: {error.strerror or error}") from error

    def _opened_parts(self, parts: ShardParts) -> int:
        while True:
            try:
                return parts.open()
            except StorageError as error:
                if not self._close_half(error.__cause__):
                    raise

    def _same_file(self, shard: OpenShard) -> int | None:
        with suppress(FileNotFoundError):
            opened = self._opened_file(shard.path)
            if file_identity(os.fstat(opened)) == shard.file:
                return opened
            os.close(opened)
        return None

    def _opened_file(self, path: Path) -> int:
        try:
            return os.open(path, os.O_RDONLY)
        except OSError as error:
            if not self._close_half(error):
                raise
            return os.open(path, os.O_RDONLY)

    def _close_half(self, error: BaseException | None) -> bool:
        """Close half of the files, if other code of this process needs more; whether it did."""
        if getattr(error, "errno", None) != errno.EMFILE or not self._files:
            return False
        self._most_files = max(1, len(self._files) // 2)
        while len(self._files) >= self._most_files:
            os.close(self._files.popitem(last=False)[1])
        return True

    def _close(self, position: int) -> None:
        if position in self._files:
            os.close(self._files.pop(position))


def _read(file: int, length: int, offset: int) -> bytes:
    """`length` bytes, fewer at the end of the file. One system call reads at most 2 GiB, maybe less."""
    data = os.pread(file, length, offset)
    if len(data) == length:
        return data
    parts = [data]
    while parts[-1] and (left := length - sum(map(len, parts))) > 0:
        parts.append(os.pread(file, left, offset + length - left))
    return b"".join(parts)


def _files_allowed() -> int:
    """A quarter of the files that this process may open: training and evaluation each have a reader."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST_FILES if soft == resource.RLIM_INFINITY else max(8, min(_MOST_FILES, soft // 4))
