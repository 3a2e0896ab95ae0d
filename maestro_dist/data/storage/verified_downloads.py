"""Downloads of objects whose content is known: made again where other bytes came."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from maestro_dist.data.storage.retry import Damaged, Heartbeat, RemoteCall, retried
from maestro_dist.data.storage.store import Storage


@dataclass(frozen=True)
class KnownContent:
    """Size in bytes and SHA-256 (None: any) of an object; `noted_in` says where they are from, for messages."""

    size: int
    sha256: str | None
    noted_in: str


def download_verified(
    storage: Storage,
    path: str,
    target: Path,
    known: KnownContent,
    progress: Callable[[int, int], None] = lambda done, size: None,
    heartbeat: Heartbeat | None = None,
) -> None:
    """`Storage.download` of an object that must exist, until its content is right or an outage would be over.

    Raises:
        ObjectDamaged: other bytes came to the end.
        StorageError: it cannot be read.
        OSError: the local file cannot be written.
    """
    source = storage if heartbeat is None else storage.with_heartbeat(heartbeat)

    def attempt() -> OSError | None:
        digest = None if known.sha256 is None else hashlib.sha256()
        try:
            source.download(path, target, progress, size=known.size, expected=True, digest=digest)
            written = target.stat().st_size
        except OSError as error:  # of the local file; no other attempt can help
            return error
        if written != known.size:
            raise Damaged(f"{written} bytes instead of {known.size}")
        if digest is not None and digest.hexdigest() != known.sha256:
            raise Damaged(f"its sha256 is not that of {known.noted_in}")
        return None

    failed = retried(attempt, RemoteCall("read", storage.name(path), True), storage.longest_wait_s, heartbeat)
    if failed is not None:
        raise failed
