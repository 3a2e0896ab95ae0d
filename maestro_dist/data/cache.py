"""Shards as local files: the file itself where the data is local, a checked and cached copy where it is remote."""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from maestro_dist.data.home import own_folder
from maestro_dist.data.manifest import Shard
from maestro_dist.data.storage import ObjectMissing, Storage
from maestro_dist.errors import DataError, StorageError

_TRIES = 2  # of a download whose content is wrong: a cut connection is not always noticed
_LOOK_S = 0.2
_PIECE = 16 << 20  # bytes that are hashed between two signs of life
_PATIENCE_S = 240.0  # for another process that fetches a shard, from its last sign of life on

Tell = Callable[[str], None]
"""Hears what a reader does, and with that that it gets on."""

Identity = tuple[int, int, int, int]
"""Of a file as it is now: another one, or one that was written to, has another."""

_checked: set[tuple[Identity, str]] = set()  # files, and the hash that this process has seen them to have


def local_shard(
    storage: Storage,
    shard: Shard,
    cache: str | None,
    verify: Literal["size", "sha256"],
    tell: Tell = lambda what: None,
) -> Path:
    """A local file with exactly the shard's bytes.

    Remote shards are copied once a machine to `cache`, under their hash, and get their name only once they are whole
    and right; ranks that want the same shard wait for the one that fetches it. A damaged copy is fetched again. A copy
    that is there needs no right to write. `tell` hears what is done, again with each sign of progress.

    Raises:
        DataError: the shard is missing, cut short, or not what the manifest says.
        StorageError: it cannot be read, or the cache cannot be written.
    """
    local = storage.local_path(shard.path)
    if local is not None:
        try:
            problem = _problem(local, shard, verify, tell)
        except OSError as error:
            raise StorageError(f"cannot read {local}: {error.strerror}") from error
        if problem:
            raise DataError(f"{local}: {problem}; copy the shard or pack the data set again")
        return local
    target: Path | None = None
    try:
        folder = Path(cache).expanduser() if cache else own_folder("shards")
        target = folder / shard.sha256[:2] / f"{shard.sha256}.tar"
        if _problem(target, shard, verify, tell):
            target.parent.mkdir(parents=True, exist_ok=True)
            with _locked(target, tell):
                if _problem(target, shard, verify, tell):
                    _fetch(storage, shard, target, verify, tell)
    except ObjectMissing as error:
        raise DataError(f"{storage.name(shard.path)}: the shard is missing; pack the data set again") from error
    except (OSError, RuntimeError) as error:  # the latter: the home of `~` is not known
        what = f"cannot use the shard cache {target or cache or 'in the home or temporary folder'}"
        reason = getattr(error, "strerror", None) or error
        raise StorageError(f"{what}: {reason}; set data.cache to a folder with room for the shards") from error
    return target


def _fetch(storage: Storage, shard: Shard, target: Path, verify: str, tell: Tell) -> None:
    """Download to a part file, and give it its name once it is right. The lock is held."""
    name, part = storage.name(shard.path), target.with_suffix(".part")
    try:
        for _ in range(_TRIES):
            storage.download(
                shard.path, part, lambda done, size: tell(f"fetching {name}, {done >> 20:,} of {size >> 20:,} MiB")
            )
            problem = _problem(part, shard, verify, tell)
            if not problem:
                os.replace(part, target)
                return
    finally:
        part.unlink(missing_ok=True)  # also to give a full disk its room back
    raise DataError(f"{name}: {problem}; upload or pack the data set again")


def identity(found: os.stat_result) -> Identity:
    """What tells a file from others and from what it was before."""
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _problem(path: Path, shard: Shard, verify: str, tell: Tell) -> str | None:
    """What is wrong with a file, in words; None when it is the shard. A hash is computed once a process."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return "the shard is missing"
    if found.st_size != shard.bytes:
        return f"{found.st_size} bytes instead of {shard.bytes}"
    known = identity(found), shard.sha256
    if verify == "size" or known in _checked:
        return None
    if _sha256(path, shard.bytes, tell) != shard.sha256:
        return "its sha256 is not that of the manifest"
    _checked.add(known)
    return None


def _sha256(path: Path, size: int, tell: Tell) -> str:
    """The hash of a file; says how far it is."""
    digest, done = hashlib.sha256(), 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
            done += len(piece)
            tell(f"checking {path}, {done >> 20:,} of {size >> 20:,} MiB")
    return digest.hexdigest()


@contextmanager
def _locked(target: Path, tell: Tell) -> Iterator[None]:
    """The right to fetch `target`. Whoever fetches it already is waited for as long as its part file grows."""
    with target.with_suffix(".lock").open("w") as file:
        waited, seen = 0.0, -2  # -1: no part file yet
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # freed by the kernel when a process dies
                break
            except BlockingIOError:
                pass
            size = _size(target.with_suffix(".part"))
            if size != seen:
                waited, seen = 0.0, size
                tell(f"waiting for another process that fetches {target}, {max(size, 0) >> 20:,} MiB so far")
            if waited >= _PATIENCE_S:
                raise StorageError(
                    f"{target}: another process began to fetch this shard and has made no progress for {waited:.0f} s; "
                    "end it, or set data.cache to another folder"
                )
            time.sleep(_LOOK_S)
            waited += _LOOK_S
        yield


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
