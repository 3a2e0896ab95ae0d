"""Local copies of the indexes of remote shards, so that each is read once by a worker and its reader processes.

An evaluation opens its readers anew, and each reader needs the indexes again. A copy lies beside the cached shard.
It is used only if it is younger than the worker: an index that was replaced on storage is seen by the next run.
"""

from __future__ import annotations

import hashlib
import os
import time
import uuid
from contextlib import suppress
from pathlib import Path

from maestro_dist.data.manifest import Shard
from maestro_dist.data.shard_index import ShardIndex, load_index, parse_index
from maestro_dist.data.storage import Storage
from maestro_dist.data.user_folders import user_folder
from maestro_dist.errors import DataError

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

    Raises:
        DataError: it is missing, not JSON, of another format, or does not fit the shard.
    """
    if storage.local is not None:
        return load_index(storage, shard)
    try:
        folder = Path(cache).expanduser() if cache else user_folder("shards")
    except (OSError, RuntimeError):  # the shard itself will name the problem
        return load_index(storage, shard)
    name = storage.name(shard.index)
    place = hashlib.sha256(name.encode()).hexdigest()[:12]
    copy = folder / shard.sha256[:2] / f"{shard.sha256}.{place}.index"
    with suppress(OSError, DataError):
        if copy.stat().st_mtime >= _oldest:
            return parse_index(copy.read_bytes(), shard, name)
    index = load_index(storage, shard)
    with suppress(OSError):  # a copy is only a help
        _write(copy, index.to_bytes())
    return index


def _write(copy: Path, data: bytes) -> None:
    copy.parent.mkdir(parents=True, exist_ok=True)
    part = copy.with_name(f"{copy.name}.{uuid.uuid4().hex}")
    try:
        part.write_bytes(data)
        os.replace(part, copy)
    finally:
        part.unlink(missing_ok=True)
