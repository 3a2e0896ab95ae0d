"""One driver a run: a create-only lease file for each attempt, with a heartbeat.

The folder `leases/` of a run holds `attempt-000001.json`, `attempt-000002.json`, ...: whoever creates the next number
holds the run. Numbers only grow, so a driver that lost its lease finds a higher one and stops writing (a fence).
The storage must honour create-only writes (local files and S3's If-None-Match do).
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

from maestro_dist.checkpoint.fence import LEASES, Fence, newest_attempt
from maestro_dist.data.storage import ObjectMissing, Storage
from maestro_dist.errors import RunError, StorageError

HEARTBEAT_S = 5.0
STALE_S = 20.0
_FIELDS = ("released", "host", "machine", "process", "process_start")


class Lease:
    """The right to write to a run, held from construction until `release`.

    Raises:
        RunError: another driver holds the run; the message names its host and process.
    """

    def __init__(self, run_url: str, *, otherwise: str = "run.name") -> None:
        """`otherwise`: the setting that leads elsewhere, for the message."""
        self._storage = Storage(run_url)
        self._beats = Storage(run_url, patience_s=HEARTBEAT_S)  # the next beat tries again
        newest = newest_attempt(self._storage)
        if newest:
            _refuse_if_held(self._storage, newest, otherwise)
        self.attempt = newest + 1
        self._record: dict[str, Any] = {
            "attempt": self.attempt,
            "host": socket.gethostname(),
            "machine": _machine_id(),
            "process": os.getpid(),
            "process_start": _process_start(os.getpid()),
            "heartbeat": time.time(),
            "released": False,
        }
        try:
            self._storage.write(_path(self.attempt), _encode(self._record), create=True)
        except FileExistsError:
            raise RunError(f"{self._storage.name()}: another driver has just taken this run") from None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()

    @property
    def fence(self) -> Fence:
        """The check that goes with this lease."""
        return Fence(self._storage.url, self.attempt)

    def release(self) -> None:
        """Give the run back; the attempt's number stays used."""
        self._stopped.set()
        self._thread.join(STALE_S)  # it may be waiting for a dead store
        self._record["released"] = True
        with contextlib.suppress(StorageError):  # a dead store: the lease goes stale by itself
            self._write()

    def _beat(self) -> None:
        while not self._stopped.wait(HEARTBEAT_S):
            with contextlib.suppress(Exception):  # retried at the next beat; a long silence is what the lease is for
                self._write()

    def _write(self) -> None:
        self._record["heartbeat"] = time.time()
        self._beats.write(_path(self.attempt), _encode(self._record))


def _refuse_if_held(storage: Storage, attempt: int, otherwise: str) -> None:
    record = _read(storage, attempt)
    if record is None or record["released"]:
        return
    host, process, age = record["host"], record["process"], time.time() - record["heartbeat"]
    here = bool(_machine_id()) and (host, record["machine"]) == (socket.gethostname(), _machine_id())
    if here and _process_start(process) != record["process_start"]:
        return  # that process of this machine is gone: killed
    # elsewhere a clock may be wrong: what looks like long silence is taken for it only where no heartbeat comes
    if here or 0 <= age < STALE_S or _beats(storage, attempt, record["heartbeat"]):
        raise RunError(
            f"{storage.name()}: held by another driver (host {host}, process {process}, last "
            f"sign of life {max(age, 0):.0f} s ago); stop it, wait until it is silent for {STALE_S:.0f} s, or choose "
            f"another {otherwise}"
        )


def _read(storage: Storage, attempt: int) -> dict[str, Any] | None:
    """The record of an attempt; None where it has been removed."""
    try:
        record = json.loads(storage.read(_path(attempt)))
        return {name: record[name] for name in _FIELDS} | {"heartbeat": float(record["heartbeat"])}
    except ObjectMissing:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{storage.name(_path(attempt))} is damaged ({error}); remove it if no driver is running"
        ) from None


def _beats(storage: Storage, attempt: int, heartbeat: float) -> bool:
    """Whether the holder writes a heartbeat within the time of two."""
    print(f"{storage.name()}: looking for {2 * HEARTBEAT_S:.0f} s whether its last driver is still at work", flush=True)
    end = time.monotonic() + 2 * HEARTBEAT_S
    while time.monotonic() < end:
        time.sleep(HEARTBEAT_S / 5)
        record = _read(storage, attempt)
        if record is None or record["released"]:
            return False
        if record["heartbeat"] != heartbeat:
            return True
    return False


def _path(attempt: int) -> str:
    return f"{LEASES}/attempt-{attempt:06d}.json"


def _encode(record: dict[str, Any]) -> bytes:
    return json.dumps(record, indent=1).encode()


def _machine_id() -> str:
    """Where process numbers mean the same: one boot of one machine, one process namespace (a container has its own)."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return ""


def _process_start(process: int) -> str | None:
    """Start time of a process of this machine in clock ticks since boot; None when there is no such process."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]
