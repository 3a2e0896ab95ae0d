"""Whether a local file is the shard that the manifest names. Its hash is computed once on each machine.

The result is remembered in this process, and in a small file of the shard cache with the identity of the verified file.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from contextlib import suppress
from pathlib import Path

from maestro_dist.data.manifest import Shard
from maestro_dist.data.storage.retry import Heartbeat

FileIdentity = tuple[int, int, int, int]
"""Device, inode, size and modification time: they change when a file is replaced or written."""

_PIECE = 16 << 20  # bytes that are hashed between two heartbeats
_LEAST_NOTED = 1 << 20  # bytes of a file whose hash is worth a note
_MOST_NOTED = 8  # files with the same content whose identities are remembered

_checked: set[tuple[FileIdentity, str]] = set()  # files that this process knows to be good, with their hash


def file_identity(status: os.stat_result) -> FileIdentity:
    """Identity of a file in its current state."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def worth_a_note(shard: Shard) -> bool:
    """Whether hashing a shard takes so long that the result is written down."""
    return shard.bytes >= _LEAST_NOTED


def problem_of(path: Path, shard: Shard, verify: str, heartbeat: Heartbeat, cache: Path | None) -> str | None:
    """The problem of a file, in words; None if it is the right shard.

    `verify` is `data.verify`. `cache` is the folder of the shard cache; None: nothing is remembered there.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        return "the shard is missing"
    if status.st_size != shard.bytes:
        return f"{status.st_size} bytes instead of {shard.bytes}"
    identity = file_identity(status)
    if verify == "size" or (identity, shard.sha256) in _checked:
        return None
    note = None
    if cache is not None and worth_a_note(shard):
        note = cache / shard.sha256[:2] / f"{shard.sha256}.verified"
    if note is not None and identity in _noted(note):
        _checked.add((identity, shard.sha256))
        return None
    if sha256_of(path, shard.bytes, heartbeat) != shard.sha256:
        if (size := path.stat().st_size) != shard.bytes:  # it was cut meanwhile
            return f"{size} bytes instead of {shard.bytes}"
        return "its sha256 is not that of the manifest"
    note_verified(identity, shard, note)
    return None


def note_verified(identity: FileIdentity, shard: Shard, note: Path | None) -> None:
    """Remember that a file has the content of a shard."""
    _checked.add((identity, shard.sha256))
    if note is None or not worth_a_note(shard):
        return
    known = [identity, *(other for other in _noted(note) if other != identity)][:_MOST_NOTED]
    part = note.with_name(f"{note.name}.{uuid.uuid4().hex}")
    with suppress(OSError):  # a note only saves time
        try:
            note.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps(known))
            os.replace(part, note)
        finally:
            part.unlink(missing_ok=True)


def _noted(note: Path) -> list[FileIdentity]:
    with suppress(OSError, ValueError, TypeError):
        found = [tuple(map(int, identity)) for identity in json.loads(note.read_text())]
        return [(a, b, c, d) for a, b, c, d in found]
    return []


def sha256_of(path: Path, size: int, heartbeat: Heartbeat) -> str:
    """The sha256 of the first `size` bytes of a file. Raises OSError."""
    digest, done = hashlib.sha256(), 0
    with path.open("rb") as file:
        while piece := file.read(min(_PIECE, size - done)):
            digest.update(piece)
            done += len(piece)
            heartbeat(f"checking {path}, {progress(done, size)}")
    return digest.hexdigest()


def progress(done: int, size: int) -> str:
    """How much of a file is done, in words."""
    return f"{done >> 20:,} of {size >> 20:,} MiB"
