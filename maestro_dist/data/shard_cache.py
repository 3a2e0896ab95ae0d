"""Shards as local files: a local shard is used in place; a remote shard is downloaded once into a cache."""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from maestro_dist.data.manifest import Shard
from maestro_dist.data.storage import ObjectMissing, Storage
from maestro_dist.data.storage.retry import Heartbeat
from maestro_dist.data.user_folders import user_folder
from maestro_dist.errors import DataError, StorageError

_TRIES = 2  # downloads of a shard: a broken connection is not always reported as an error
_POLL_S = 0.2
_PIECE = 16 << 20  # bytes that are hashed between two heartbeats
_STALLED_S = 240.0  # how long another process may download without any progress

FileIdentity = tuple[int, int, int, int]
"""Device, inode, size and modification time: they change when a file is replaced or written."""

_checked: set[tuple[FileIdentity, str]] = set()  # files whose hash this process has computed, with the hash


def local_shard(
    storage: Storage,
    shard: Shard,
    cache: str | None,
    verify: Literal["size", "sha256"],
    heartbeat: Heartbeat = lambda what: None,
) -> Path:
    """Path of a local file with exactly the shard's bytes.

    A remote shard is downloaded to `cache`, once for each machine. The file is named by its sha256 and gets this name
    only when it is complete and verified. Processes that need the same shard wait for the process that downloads it. A
    damaged copy is downloaded again. A good copy can be used from a read-only cache. `heartbeat` is called with each
    progress.

    Raises:
        DataError: the shard is missing, truncated, or differs from the manifest.
        StorageError: it cannot be read, or the cache cannot be written.
    """
    local = storage.local_path(shard.path)
    if local is not None:
        try:
            problem = _problem(local, shard, verify, heartbeat)
        except OSError as error:
            raise StorageError(f"cannot read {local}: {error.strerror}") from error
        if problem:
            raise DataError(f"{local}: {problem}; copy the shard or pack the data set again")
        return local
    target: Path | None = None
    try:
        folder = Path(cache).expanduser() if cache else user_folder("shards")
        target = folder / shard.sha256[:2] / f"{shard.sha256}.tar"
        if _problem(target, shard, verify, heartbeat):
            target.parent.mkdir(parents=True, exist_ok=True)
            with _locked(target, heartbeat):
                if _problem(target, shard, verify, heartbeat):
                    _fetch(storage, shard, target, verify, heartbeat)
    except ObjectMissing as error:
        name = storage.name(shard.path)
        raise DataError(f"{name}: the shard is missing{error.asked}; pack the data set again") from error
    except (OSError, RuntimeError) as error:  # RuntimeError: the home folder is unknown
        what = f"cannot use the shard cache {target or cache or 'in the home or temporary folder'}"
        reason = getattr(error, "strerror", None) or error
        raise StorageError(f"{what}: {reason}; set data.cache to a folder with enough space") from error
    return target


def _fetch(storage: Storage, shard: Shard, target: Path, verify: str, heartbeat: Heartbeat) -> None:
    """Download to a part file and rename it once it is verified. The caller holds the lock."""
    name, part = storage.name(shard.path), target.with_suffix(".part")

    def alive(what: str) -> None:
        heartbeat(what)
        with suppress(OSError):
            os.utime(part)  # for processes that wait for this download

    try:
        for _ in range(_TRIES):
            storage.with_heartbeat(alive).download(
                shard.path,
                part,
                lambda done, size: alive(f"downloading {name}, {_progress(done, size)}"),
                size=shard.bytes,
                expected=True,
            )
            problem = _problem(part, shard, verify, heartbeat)
            if not problem:
                os.replace(part, target)
                return
    finally:
        part.unlink(missing_ok=True)  # frees the space, in particular on a full disk
    raise DataError(f"{name}: {problem}; upload or pack the data set again")


def file_identity(status: os.stat_result) -> FileIdentity:
    """Identity of a file in its current state."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _problem(path: Path, shard: Shard, verify: str, heartbeat: Heartbeat) -> str | None:
    """The problem of a file, in words; None if it is the right shard. A process computes the hash of a file once."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return "the shard is missing"
    if status.st_size != shard.bytes:
        return f"{status.st_size} bytes instead of {shard.bytes}"
    checked = file_identity(status), shard.sha256
    if verify == "size" or checked in _checked:
        return None
    if _sha256(path, shard.bytes, heartbeat) != shard.sha256:
        return "its sha256 is not that of the manifest"
    _checked.add(checked)
    return None


def _sha256(path: Path, size: int, heartbeat: Heartbeat) -> str:
    """The sha256 of a file."""
    digest, done = hashlib.sha256(), 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
            done += len(piece)
            heartbeat(f"checking {path}, {_progress(done, size)}")
    return digest.hexdigest()


def _progress(done: int, size: int) -> str:
    return f"{done >> 20:,} of {size >> 20:,} MiB"


@contextmanager
def _locked(target: Path, heartbeat: Heartbeat) -> Iterator[None]:
    """The lock for downloading `target`. Waits for another process as long as it grows or touches its part file."""
    with target.with_suffix(".lock").open("w") as file:
        waited, last_state = 0.0, (-2, 0)
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel releases it when a process dies
                break
            except BlockingIOError:
                pass
            state = _size_and_time(target.with_suffix(".part"))
            if state != last_state:
                waited, last_state = 0.0, state
                heartbeat(f"waiting for another process that downloads {target}, {max(state[0], 0) >> 20:,} MiB so far")
            if waited >= _STALLED_S:
                raise StorageError(
                    f"{target}: another process downloads this shard and has made no progress for {waited:.0f} s; "
                    "end it, or set data.cache to another folder"
                )
            time.sleep(_POLL_S)
            waited += _POLL_S
        yield


def _size_and_time(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return -1, 0  # there is no part file yet
    return status.st_size, status.st_mtime_ns
