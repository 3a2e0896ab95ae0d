"""The open shards of a split: their indexes in memory, and a limited number of open files."""

from __future__ import annotations

import errno
import os
import resource
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from maestro_dist.config.schema import DataConfig
from maestro_dist.data.index_copies import index_of
from maestro_dist.data.manifest import Shard
from maestro_dist.data.shard_cache import ShardCache, local_shard
from maestro_dist.data.shard_index import HEADER
from maestro_dist.data.storage import Storage
from maestro_dist.data.storage.retry import Heartbeat
from maestro_dist.data.verified_files import FileIdentity, file_identity
from maestro_dist.errors import StorageError

_INDEX_BYTES = 256 << 20  # memory for indexes, without the indexes of shards that are shuffled together
_MOST_FILES = 1024


class KnownSamples:
    """What was read of the N samples of a shard and found to be right; it holds while the file does not change.

    read       bool [N]: whether the json member was read; then `targets` and `recording` are filled
    targets    float64 [N]
    recording  float32 [N, V, 2]: mean and std of the recording, for the variates of all modalities; V 0: none
    allowed    bool [N, M]: whether the values of a window were checked
    """

    def __init__(self, samples: int, modalities: int, variates: int) -> None:
        self.read = np.zeros(samples, dtype=bool)
        self.targets = np.zeros(samples)
        self.recording = np.zeros((samples, variates, 2), dtype=np.float32)
        self.allowed = np.zeros((samples, modalities), dtype=bool)

    @property
    def bytes(self) -> int:
        """Memory of the arrays."""
        return self.read.nbytes + self.targets.nbytes + self.recording.nbytes + self.allowed.nbytes

    def forget(self) -> None:
        """Everything is to be checked again."""
        self.read[:], self.allowed[:] = False, False


@dataclass
class OpenShard:
    """A shard with its index: offset and size of each member of each sample, [N, K]. `file`: the verified file."""

    position: int
    name: str
    keys: list[str]
    offsets: np.ndarray
    sizes: np.ndarray
    path: Path
    file: FileIdentity
    known: KnownSamples

    @property
    def bytes(self) -> int:
        """Approximate memory of the index, and of what is known about the samples."""
        return self.offsets.nbytes + self.sizes.nbytes + self.known.bytes + sum(64 + len(key) for key in self.keys)


class OpenShards:
    """Opens a shard at its first use. Loads its index and verifies it once, as long as memory allows.

    A file that was closed to open another one is opened again without verification, unless it has changed. Only one
    thread at a time may use it.
    """

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
        index = index_of(self._storage, shard, self._config.cache)
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
            known=KnownSamples(len(index.keys), len(self._members) - 1, self._variates),
        )
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

        Raises what `get` raises.
        """
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
        opened = self._same_file(shard)
        if opened is None:
            self._verify(shard)
            opened = self._opened_file(shard.path)
        self._files[position] = opened
        return opened

    def read(self, shard: OpenShard, row: int, column: int) -> bytes:
        """Header and content of a member; fewer bytes if the file ends earlier.

        Raises:
            StorageError: the file cannot be read.
        """
        length = HEADER + int(shard.sizes[row, column])
        offset = int(shard.offsets[row, column]) - HEADER
        try:
            return _read(self.descriptor(shard), length, offset)
        except OSError:
            self._close(shard.position)  # a file on a network disk may need to be opened again (ESTALE)
        try:
            return _read(self.descriptor(shard), length, offset)
        except OSError as error:
            self._close(shard.position)
            raise StorageError(f"cannot read {shard.path}: {error.strerror or error}") from error

    def _verify(self, shard: OpenShard) -> None:
        config = self._config
        entry = self._shards[shard.position]
        shard.path = local_shard(self._storage, entry, ShardCache.of(config), self._heartbeat)
        shard.known.forget()
        try:
            shard.file = file_identity(shard.path.stat())
        except OSError as error:
            raise StorageError(f"cannot read {shard.path}: {error.strerror or error}") from error

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
            if error.errno != errno.EMFILE or not self._files:
                raise
            self._most_files = max(1, len(self._files) // 2)  # other code of this process needs more files
            while len(self._files) >= self._most_files:
                os.close(self._files.popitem(last=False)[1])
            return os.open(path, os.O_RDONLY)

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
