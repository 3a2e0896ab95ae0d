"""The shards of a split, opened: their indexes in memory, and as many open files as there may be."""

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
from maestro_dist.data.cache import Identity, Tell, identity, local_shard
from maestro_dist.data.index import HEADER, load_index
from maestro_dist.data.manifest import Shard
from maestro_dist.data.storage import Storage
from maestro_dist.errors import StorageError

_INDEX_BYTES = 256 << 20  # indexes that a reader keeps, besides those of the shards that are shuffled among each other
_MOST_FILES = 1024


@dataclass
class OpenShard:
    """A shard's index; for each of its samples, offset and size of each member [N, K]. `file` is what was verified."""

    position: int
    name: str
    keys: list[str]
    offsets: np.ndarray
    sizes: np.ndarray
    path: Path
    file: Identity

    @property
    def bytes(self) -> int:
        """Memory that it takes, about."""
        return self.offsets.nbytes + self.sizes.nbytes + sum(64 + len(key) for key in self.keys)


class OpenShards:
    """Opens shards when they are first asked for; each is loaded and verified once, as long as memory allows.

    A file that was closed for others is opened again without that, unless it has changed. Not for several threads.
    """

    def __init__(
        self, storage: Storage, shards: Sequence[Shard], members: Sequence[str], config: DataConfig, tell: Tell
    ) -> None:
        self._storage, self._shards, self._members, self._config, self._tell = storage, shards, members, config, tell
        self._fewest = 0
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
        """Say that a batch has samples of this many shards, so that these stay.

        Besides those of a window: where one ends and the next one begins, a batch has samples of both.
        """
        self._fewest = max(self._fewest, shards + self._config.shuffle_shards)

    def get(self, position: int) -> OpenShard:
        """A shard by its position in the split.

        Raises:
            DataError: shard or index is missing, damaged, or not what the manifest says.
            StorageError: it cannot be read.
        """
        found = self._opened.get(position)
        if found is not None:
            self._opened.move_to_end(position)
            return found
        shard = self._shards[position]
        self._tell(f"opening {self._storage.name(shard.path)}")
        index = load_index(self._storage, shard)
        offsets, sizes = index.columns(self._members)
        small = np.min_scalar_type(shard.bytes)  # 4 bytes a number instead of 8, for shards below 4 GiB
        found = OpenShard(
            position=position,
            name=self._storage.name(shard.path),
            keys=index.keys,
            offsets=offsets.astype(small),
            sizes=sizes.astype(small),
            path=Path(),
            file=(0, 0, 0, 0),
        )
        self._verify(found)
        self._opened[position] = found
        self._bytes += found.bytes
        while self._bytes > _INDEX_BYTES and len(self._opened) > self._fewest:
            oldest, dropped = self._opened.popitem(last=False)
            self._bytes -= dropped.bytes
            self._close(oldest)
        return found

    def renewed(self, shard: OpenShard) -> bool:
        """Whether the file of a shard had changed since it was verified; it is verified (or fetched) again then.

        Raises as `get` does.
        """
        try:
            if identity(shard.path.stat()) == shard.file:
                return False
        except OSError:  # gone, say: it will be fetched again, or named
            pass
        self._close(shard.position)
        self._verify(shard)
        return True

    def read(self, shard: OpenShard, row: int, column: int) -> bytes:
        """Header and content of a member; fewer bytes where the file ends before.

        Raises:
            StorageError: the file cannot be read.
        """
        length = HEADER + int(shard.sizes[row, column])
        offset = int(shard.offsets[row, column]) - HEADER
        try:
            return _read(self._file(shard), length, offset)
        except OSError:
            self._close(shard.position)  # a file of a network disk may have to be opened anew (ESTALE)
        try:
            return _read(self._file(shard), length, offset)
        except OSError as error:
            self._close(shard.position)
            raise StorageError(f"cannot read {shard.path}: {error.strerror or error}") from error

    def _verify(self, shard: OpenShard) -> None:
        config = self._config
        entry = self._shards[shard.position]
        shard.path = local_shard(self._storage, entry, config.cache, config.verify, self._tell)
        try:
            shard.file = identity(shard.path.stat())
        except OSError as error:
            raise StorageError(f"cannot read {shard.path}: {error.strerror or error}") from error

    def _file(self, shard: OpenShard) -> int:
        """The open file of a shard, checked to be the one that was verified."""
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

    def _same_file(self, shard: OpenShard) -> int | None:
        with suppress(FileNotFoundError):
            opened = self._opened_file(shard.path)
            if identity(os.fstat(opened)) == shard.file:
                return opened
            os.close(opened)
        return None

    def _opened_file(self, path: Path) -> int:
        try:
            return os.open(path, os.O_RDONLY)
        except OSError as error:
            if error.errno != errno.EMFILE or not self._files:
                raise
            self._most_files = max(1, len(self._files) // 2)  # others of this process need more than was left to them
            while len(self._files) >= self._most_files:
                os.close(self._files.popitem(last=False)[1])
            return os.open(path, os.O_RDONLY)

    def _close(self, position: int) -> None:
        if position in self._files:
            os.close(self._files.pop(position))


def _read(file: int, length: int, offset: int) -> bytes:
    """All bytes up to the file's end: a system call gives 2 GiB at most, and may give less."""
    data = os.pread(file, length, offset)
    if len(data) == length:
        return data
    parts = [data]
    while parts[-1] and (left := length - sum(map(len, parts))) > 0:
        parts.append(os.pread(file, left, offset + length - left))
    return b"".join(parts)


def _files_allowed() -> int:
    """A quarter of what this process may open: there may be a reader for training and one for an evaluation."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST_FILES if soft == resource.RLIM_INFINITY else max(8, min(_MOST_FILES, soft // 4))
