"""Shards as local files: a local shard is used in place; a remote shard is downloaded once into a cache."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from maestro_dist.config.schema import DataConfig
from maestro_dist.data.cache_room import SPARSE_SUFFIX, free_space, mark_used, room_for
from maestro_dist.data.manifest import Shard
from maestro_dist.data.memory_shards import can_hold_shards, held, hold, new_file
from maestro_dist.data.sparse_file import join_parts
from maestro_dist.data.storage import ObjectDamaged, ObjectMissing, Storage
from maestro_dist.data.storage.retry import Heartbeat
from maestro_dist.data.storage.verified_downloads import KnownContent, download_verified
from maestro_dist.data.user_folders import user_folder
from maestro_dist.data.verified_files import file_identity, note_verified, problem_of, progress, worth_a_note
from maestro_dist.errors import DataError, StorageError

_LOG = logging.getLogger(__name__)

POLL_S = 0.02
STALLED_S = 240.0  # how long another process may download without any progress

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}

_FAILURES = {"data": DataError, "missing": ObjectMissing, "storage": StorageError}

_told: set[str] = set()  # caches whose lack of space was logged


@dataclass(frozen=True)
class ShardCache:
    """Where local copies of remote shards are kept. A plain value that is sent to reader processes.

    folder  None: `~/.cache/maestro_dist/shards`, or a folder of the user in the temporary folder
    verify  how a shard is checked against the manifest
    limit   bytes of all cached shards together; None: no limit
    """

    folder: str | None = None
    verify: Literal["size", "sha256"] = "sha256"
    limit: int | None = None

    @staticmethod
    def of(config: DataConfig) -> ShardCache:
        """The cache that a configuration describes."""
        limit = None if config.cache_gb is None else int(config.cache_gb * 1e9)
        return ShardCache(config.cache, config.verify, limit)

    def path(self) -> Path:
        """The folder. Raises OSError or RuntimeError where there is none."""
        return Path(self.folder).expanduser() if self.folder else user_folder("shards")


def local_shard(storage: Storage, shard: Shard, cache: ShardCache, heartbeat: Heartbeat = lambda what: None) -> Path:
    """Path of a local file with exactly the shard's bytes.

    A remote shard is downloaded to the cache, once for each machine. The file is named by its sha256 and gets this name
    only when it is complete and verified. Processes that need the same shard wait for the process that downloads it,
    and where that has waited for the storage as long as they would, they fail as it does. A damaged copy is downloaded
    again. A good copy can be used from a read-only cache. Where the cache cannot be written or its disk is full, the
    shard is kept in the memory of this process. `heartbeat` is called with each progress.

    Raises:
        DataError: the shard is missing, truncated, or differs from the manifest.
        StorageError: it cannot be read, or there is neither space on disk nor memory for it.
    """
    local = storage.local_path(shard.path)
    if local is not None:
        return _checked_in_place(local, shard, cache, heartbeat)
    name = storage.name(shard.path)
    target: Path | None = None
    try:
        folder = cache.path()
        target = folder / shard.sha256[:2] / f"{shard.sha256}.tar"
        if problem_of(target, shard, cache.verify, heartbeat, folder):
            kept = held(shard.sha256)
            if kept is not None:
                return kept
            target.parent.mkdir(parents=True, exist_ok=True)
            asked = time.time()
            with _locked(target, heartbeat) as outcome:
                parts = list(target.parent.glob(f"{shard.sha256}.*{SPARSE_SUFFIX}"))
                any(join_parts(path, shard, target, heartbeat) for path in parts)
                if problem_of(target, shard, cache.verify, heartbeat, folder):
                    _raise_failure(outcome, name, asked, storage.longest_wait_s)
                    with room_for(folder, shard.bytes, cache.limit):
                        pass
                    with _failure_noted(outcome, name):
                        _fetch_with_room(storage, shard, target, cache, heartbeat)
                for path in parts:
                    path.unlink(missing_ok=True)
        mark_used(target)
    except ObjectMissing as error:
        raise DataError(f"{name}: the shard is missing{error.asked}; pack the data set again") from error
    except (OSError, RuntimeError) as error:  # RuntimeError: the home folder is unknown
        with in_memory_instead(error, target, cache):
            return _fetched_to_memory(storage, shard, heartbeat)
    return target


def cached_shard(shard: Shard, cache: ShardCache, heartbeat: Heartbeat) -> Path | None:
    """Path of a good copy of the complete shard, if the cache has one."""
    try:
        folder = cache.path()
        target = folder / shard.sha256[:2] / f"{shard.sha256}.tar"
        if problem_of(target, shard, cache.verify, heartbeat, folder):
            return None
        mark_used(target)
    except (OSError, RuntimeError):
        return None
    return target


@contextmanager
def in_memory_instead(error: Exception, place: Path | None, cache: ShardCache) -> Iterator[None]:
    """Keep a shard in memory in this block, because of an `error` of the cache. It is logged once for each cache.

    Raises:
        StorageError: memory does not help with such an error, or the block raises OSError.
    """
    what = f"cannot use the shard cache {place or cache.folder or 'in the home or temporary folder'}"
    reason = f"{what}: {getattr(error, 'strerror', None) or error}"
    if getattr(error, "errno", None) not in _NO_SPACE or not can_hold_shards():
        raise StorageError(f"{reason}; set data.cache to a folder with enough space") from error
    if str(cache.folder) not in _told:
        _told.add(str(cache.folder))
        _LOG.warning("%s; shards are kept in memory instead. Set data.cache to a folder with enough space", reason)
    try:
        yield
    except OSError as in_memory:
        said = f"{reason}, and memory has no room for it ({in_memory.strerror})"
        raise StorageError(f"{said}; set data.cache to a folder with enough space") from error


def _checked_in_place(local: Path, shard: Shard, cache: ShardCache, heartbeat: Heartbeat) -> Path:
    folder = None
    if worth_a_note(shard):
        with suppress(OSError, RuntimeError):  # without a cache, nothing is remembered
            folder = cache.path()
    try:
        problem = problem_of(local, shard, cache.verify, heartbeat, folder)
    except OSError as error:
        raise StorageError(f"cannot read {local}: {error.strerror}") from error
    if problem:
        raise DataError(f"{local}: {problem}; copy the shard or pack the data set again")
    return local


def _fetch_with_room(storage: Storage, shard: Shard, target: Path, cache: ShardCache, heartbeat: Heartbeat) -> None:
    try:
        _fetch(storage, shard, target, cache.verify, heartbeat)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not free_space(target.parents[1], shard.bytes):
            raise
        _fetch(storage, shard, target, cache.verify, heartbeat)


def _fetch(storage: Storage, shard: Shard, target: Path, verify: str, heartbeat: Heartbeat) -> None:
    """Download to a part file and rename it once it is verified. The caller holds the lock."""
    part = target.with_suffix(".part")

    def alive(what: str) -> None:
        heartbeat(what)
        with suppress(OSError):
            os.utime(part)  # for processes that wait for this download

    try:
        _download(storage, shard, part, verify, alive)
        os.replace(part, target)
        note_verified(file_identity(target.stat()), shard, target.with_suffix(".verified"))
    finally:
        part.unlink(missing_ok=True)  # frees the space, in particular on a full disk


def _fetched_to_memory(storage: Storage, shard: Shard, heartbeat: Heartbeat) -> Path:
    """Download a shard into the memory of this process. Raises OSError where there is none."""
    file, path = new_file(shard.sha256)
    try:
        _download(storage, shard, path, "sha256", heartbeat)
    except BaseException:
        os.close(file)
        raise
    hold(shard.sha256, file)
    return path


def _download(storage: Storage, shard: Shard, path: Path, verify: str, heartbeat: Heartbeat) -> None:
    """Download a shard to `path` and verify it.

    Raises:
        DataError: what was downloaded is not the shard.
        OSError: `path` cannot be written.
    """
    name = storage.name(shard.path)
    try:
        download_verified(
            storage,
            shard.path,
            path,
            KnownContent(shard.bytes, shard.sha256 if verify == "sha256" else None, "the manifest"),
            lambda done, size: heartbeat(f"downloading {name}, {progress(done, size)}"),
            heartbeat,
        )
    except ObjectDamaged as error:
        raise DataError(f"{error}; upload or pack the data set again") from error


@contextmanager
def _locked(target: Path, heartbeat: Heartbeat) -> Iterator[IO[str]]:
    """The lock for downloading `target`. Waits for another process as long as it grows or touches its part file.

    Yields the open lock file, in which a failed download leaves its error.
    """
    with target.with_suffix(".lock").open("a+") as file:
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
            if waited >= STALLED_S:
                raise StorageError(
                    f"{target}: another process downloads this shard and has made no progress for {waited:.0f} s; "
                    "end it, or set data.cache to another folder"
                )
            time.sleep(POLL_S)
            waited += POLL_S
        yield file


@contextmanager
def _failure_noted(outcome: IO[str], name: str) -> Iterator[None]:
    """Tell those that wait for this download of the object `name` why it failed."""
    begun = time.time()
    try:
        yield
    except (StorageError, DataError) as error:
        kind = next(kind for kind, of in _FAILURES.items() if isinstance(error, of))
        note = {"name": name, "begun": begun, "ended": time.time(), "kind": kind, "said": str(error)}
        with suppress(OSError):  # they then try it themselves
            outcome.truncate(0)
            json.dump(note, outcome)
            outcome.flush()
        raise


def _raise_failure(outcome: IO[str], name: str, since: float, patience_s: float) -> None:
    """Raise the error of a download of the same object that has failed since this time, if it was patient enough."""
    try:
        outcome.seek(0)
        note = json.loads(outcome.read())
        begun, ended, failure = float(note["begun"]), float(note["ended"]), _FAILURES[note["kind"]]
        same, said = note["name"] == name, str(note["said"])
    except (OSError, ValueError, KeyError, TypeError):  # there is none
        return
    if same and ended >= since and ended - begun >= patience_s:
        raise failure(said)


def _size_and_time(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return -1, 0  # there is no part file yet
    return status.st_size, status.st_mtime_ns
