"""Local copies of the indexes of remote shards, and of tables of recordings, so that each is read once on a machine.

An evaluation opens its readers anew, and each reader needs the indexes again. A copy lies beside the cached shard. It
is used if it has the hash that the manifest names. Manifests of an older version name none; then a copy is used only
if it is younger than the worker: an index that was replaced on storage is seen by the next run.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from maestro_dist.data.manifest import Shard
from maestro_dist.data.shard_cache import POLL_S
from maestro_dist.data.shard_index import ShardIndex, is_index, load_index, parse_index, read_index
from maestro_dist.data.storage import Storage
from maestro_dist.data.user_folders import user_folder
from maestro_dist.errors import DataError

_PATIENCE_S = 30.0  # how long another process may take to read an index; then this one reads it too

_oldest = time.time()


def oldest_copy() -> float:
    """The Unix time before which a copy is not used: the start of this process, or of its parent."""
    return _oldest


def use_copies_since(oldest: float) -> None:
    """Use the copies of the parent process too; `oldest` is its `oldest_copy()`."""
    global _oldest
    _oldest = oldest


def index_of(storage: Storage, shard: Shard, cache: str | None) -> ShardIndex:
    """The index of a shard, from its copy if there is one. `cache` is `data.cache`.

    It has the samples of the split only, where the data set was divided anew.

    Raises:
        DataError: it is missing, damaged, of another format, or does not fit the shard.
    """
    index, rows = _whole_index(storage, shard, cache), shard.selected
    return index if rows is None else index.some(rows)


def _whole_index(storage: Storage, shard: Shard, cache: str | None) -> ShardIndex:
    if storage.local is not None:
        return load_index(storage, shard)
    try:
        folder = Path(cache).expanduser() if cache else user_folder("shards")
    except (OSError, RuntimeError):  # the shard itself will name the problem
        return load_index(storage, shard)
    name = storage.name(shard.index)
    place = shard.index_sha256 or hashlib.sha256(name.encode()).hexdigest()
    copy = folder / shard.sha256[:2] / f"{shard.sha256}.{place[:16]}.index"
    index = _from_copy(copy, shard, name)
    if index is None:
        with _one_at_a_time(copy.parent):
            index = _from_copy(copy, shard, name)
            if index is None:
                index, data = read_index(storage, shard)
                with suppress(OSError):  # a copy is only a help
                    _write(copy, data)
    return index


def once_a_machine(storage: Storage, sha256: str, cache: str | None, read: Callable[[], bytes]) -> bytes:
    """The bytes with this hash: from their copy if there is one, else from `read`, which checks them.

    `cache` is `data.cache`. Raises what `read` raises.
    """
    if storage.local is not None:
        return read()
    try:
        folder = Path(cache).expanduser() if cache else user_folder("shards")
    except (OSError, RuntimeError):  # a shard will name the problem
        return read()
    copy = folder / sha256[:2] / f"{sha256}.table"
    data = _copied(copy, sha256)
    if data is None:
        with _one_at_a_time(copy.parent):
            data = _copied(copy, sha256)
            if data is None:
                data = read()
                with suppress(OSError):  # a copy is only a help
                    _write(copy, data)
    return data


def _copied(copy: Path, sha256: str) -> bytes | None:
    with suppress(OSError):
        data = copy.read_bytes()
        if hashlib.sha256(data).hexdigest() == sha256:
            return data
    return None


def _from_copy(copy: Path, shard: Shard, name: str) -> ShardIndex | None:
    with suppress(OSError, DataError):
        if shard.index_sha256 is not None or copy.stat().st_mtime >= _oldest:
            data = copy.read_bytes()
            if is_index(data, shard):
                return parse_index(data, shard, name)
    return None


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Only one process reads an index for this folder, as far as it does so in time: the others use its copy."""
    with ExitStack() as stack:
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context((folder / ".indexes.lock").open("w"))
            for _ in range(int(_PATIENCE_S / POLL_S)):
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    time.sleep(POLL_S)
        yield


def _write(copy: Path, data: bytes) -> None:
    copy.parent.mkdir(parents=True, exist_ok=True)
    part = copy.with_name(f"{copy.name}.{uuid.uuid4().hex}")
    try:
        part.write_bytes(data)
        os.replace(part, copy)
    finally:
        part.unlink(missing_ok=True)
