"""Shards as local files: the file itself where the data is local, a checked and cached copy where it is remote."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from maestro_dist.data.manifest import Shard
from maestro_dist.data.storage import ObjectMissing, Storage
from maestro_dist.errors import DataError, StorageError

DEFAULT_CACHE = "~/.cache/maestro_dist/shards"

_checked: set[tuple[str, int, int]] = set()  # (path, size, mtime) of files whose hash this process has seen to be right


def local_shard(storage: Storage, shard: Shard, cache: str | None, verify: Literal["size", "sha256"]) -> Path:
    """A local file with exactly the shard's bytes.

    Remote shards are copied once a machine to `cache`, under their hash, and get their name only once they are whole
    and right; ranks that want the same shard wait for the one that fetches it. A damaged copy is fetched again.

    Raises:
        DataError: the shard is missing, cut short, or not what the manifest says.
        StorageError: it cannot be read, or the cache cannot be written.
    """
    local = storage.local_path(shard.path)
    if local is not None:
        try:
            problem = _problem(local, shard, verify)
        except OSError as error:
            raise StorageError(f"cannot read {local}: {error.strerror}") from error
        if problem:
            raise DataError(f"{local}: {problem}; copy the shard or pack the data set again")
        return local
    target = Path(cache or DEFAULT_CACHE).expanduser() / shard.sha256[:2] / f"{shard.sha256}.tar"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target.with_suffix(".lock")):
            if _problem(target, shard, verify):
                spool = target.with_suffix(".part")
                storage.download(shard.path, spool)
                problem = _problem(spool, shard, verify)
                if problem:
                    spool.unlink()
                    raise DataError(f"{storage.name(shard.path)}: {problem}; upload or pack the data set again")
                os.replace(spool, target)
    except ObjectMissing as error:
        raise DataError(f"{storage.name(shard.path)}: the shard is missing; pack the data set again") from error
    except OSError as error:
        raise StorageError(f"cannot write the shard cache {target}: {error.strerror}; set data.cache") from error
    return target


def _problem(path: Path, shard: Shard, verify: str) -> str | None:
    """What is wrong with a file, in words; None when it is the shard. A hash is computed once a process."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return "the shard is missing"
    if found.st_size != shard.bytes:
        return f"{found.st_size} bytes instead of {shard.bytes}"
    known = (str(path), found.st_size, found.st_mtime_ns)
    if verify == "size" or known in _checked:
        return None
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
            return "its sha256 is not that of the manifest"
    _checked.add(known)
    return None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # freed by the kernel when a process dies
        yield
