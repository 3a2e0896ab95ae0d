"""The lease: only one driver at a time writes to a run.

The folder `leases/` of a run contains `attempt-000001.json`, `attempt-000002.json`, ..., each with a heartbeat. The
driver that creates the next number holds the run. Numbers only increase, so a driver that lost its lease finds a higher
number and stops writing (see `checkpoint.fence`). The storage must support create-only writes, as local files and S3
(If-None-Match) do.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

from maestro_dist.checkpoint.fence import LEASES, Fence, newest_attempt
from maestro_dist.data.storage import ObjectDamaged, ObjectMissing, Storage
from maestro_dist.data.storage.plain_json import parse_json
from maestro_dist.errors import RunError, StorageError

_LOG = logging.getLogger(__name__)

HEARTBEAT_S = 5.0
STALE_S = 20.0
_FIELDS = ("released", "host", "machine", "process", "process_start")


class Lease:
    """The right to write to a run, held from construction until `release`.

    Raises:
        RunError: another driver holds the run; the message names its host and process.
    """

    def __init__(self, run_url: str, *, otherwise: str = "run.name") -> None:
        """`otherwise`: the setting that chooses another place, for the error message."""
        self._storage = Storage(run_url)
        self._beats = Storage(run_url, patience_s=HEARTBEAT_S)  # the next heartbeat tries again
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
            raise RunError(f"{self._storage.name()}: another driver has just started this run") from None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()

    @property
    def fence(self) -> Fence:
        """The fence of this lease, for workers."""
        return Fence(self._storage.url, self.attempt)

    def release(self) -> None:
        """Release the run. The number of the attempt is not used again."""
        self._stopped.set()
        self._thread.join(STALE_S)  # it may wait for storage that does not answer
        self._record["released"] = True
        with contextlib.suppress(StorageError):  # without storage the lease expires by itself
            self._write()

    def _beat(self) -> None:
        while not self._stopped.wait(HEARTBEAT_S):
            with contextlib.suppress(Exception):  # the next heartbeat tries again
                self._write()

    def _write(self) -> None:
        self._record["heartbeat"] = time.time()
        self._beats.write(_path(self.attempt), _encode(self._record))


def _refuse_if_held(storage: Storage, attempt: int, otherwise: str) -> None:
    record = _read(storage, attempt)
    if record is None or record["released"]:
        return
    host, process, age = record["host"], record["process"], time.time() - record["heartbeat"]
    same_machine = bool(_machine_id()) and (host, record["machine"]) == (socket.gethostname(), _machine_id())
    if same_machine and _process_start(process) != record["process_start"]:
        return  # that process of this machine has ended
    # clocks of machines may differ: an old heartbeat counts as expired only if no new one arrives
    if same_machine or 0 <= age < STALE_S or _beats(storage, attempt, record["heartbeat"]):
        raise RunError(
            f"{storage.name()}: held by another driver (host {host}, process {process}, last "
            f"heartbeat {max(age, 0):.0f} s ago); stop it, wait {STALE_S:.0f} s after its last heartbeat, or choose "
            f"another {otherwise}"
        )


def _read(storage: Storage, attempt: int) -> dict[str, Any] | None:
    """The record of an attempt; None if it has been removed."""
    try:
        return storage.parsed(_path(attempt), _parsed, expected=True)  # it has just been listed
    except ObjectMissing:
        return None
    except ObjectDamaged as error:
        raise RunError(
            f"{storage.name(_path(attempt))} is damaged ({error.problem}){error.asked}; "
            "remove it if no driver is running"
        ) from None


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        record = parse_json(text)
        return {name: record[name] for name in _FIELDS} | {"heartbeat": float(record["heartbeat"])}
    except (KeyError, TypeError) as error:
        raise ValueError(str(error)) from None


def _beats(storage: Storage, attempt: int, heartbeat: float) -> bool:
    """Whether the holder writes a heartbeat within two intervals."""
    _LOG.info("%s: checking for %.0f s whether its last driver is still running", storage.name(), 2 * HEARTBEAT_S)
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
    """Identifies what process numbers refer to: one boot of one machine and one process namespace (of a container)."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return ""


def _process_start(process: int) -> str | None:
    """Start time of a process of this machine in clock ticks since boot; None if the process does not exist."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]
