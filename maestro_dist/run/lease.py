"""The lease: only one driver at a time writes to a run.

The folder `leases/` of a run contains `attempt-000001.json`, `attempt-000002.json`, ..., each with a heartbeat. The
driver that creates the next number holds the run. Numbers only increase, so a driver that lost its lease finds a higher
number and stops (with each heartbeat, and see `checkpoint.fence`). The storage must support create-only writes, as
local files and S3 (If-None-Match) do.

Clocks of two machines are never compared. A driver that finds the lease of another one watches whether it changes.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maestro_dist.checkpoint.fence import LEASES, Fence, newest_attempt
from maestro_dist.data.storage import ObjectDamaged, ObjectMissing, Storage
from maestro_dist.data.storage.plain_json import parse_json
from maestro_dist.errors import RunError, StorageError

_LOG = logging.getLogger(__name__)

HEARTBEAT_S = 5.0
STALE_S = 30.0
"""For how long a lease is watched before it counts as abandoned: a holder on slow storage beats several times."""
_LOOKS = 20
"""How often a lease is read while it is watched."""

_held: set[str] = set()  # tokens of the leases that this process holds


class Lease:
    """The right to write to a run, held from construction until `release`.

    lost    the error if another driver has taken over the run; it names the newer attempt. None as long as none is
            known

    Raises:
        RunError: another driver holds the run; the message names its host and process.
    """

    def __init__(
        self,
        run_url: str,
        *,
        otherwise: str = "run.name",
        after: int | None = None,
        on_loss: Callable[[], None] = lambda: None,
    ) -> None:
        """Take the lease, which may first wait for `STALE_S`.

        `otherwise`: the setting that chooses another place, for the error message. `after`: what `wait_until_free`
        has returned; then nothing is waited for. `on_loss` is called once, in the thread of the heartbeat, when
        another driver has taken over the run, but not after `release` has begun.
        """
        self._storage = Storage(run_url)
        self._beats = Storage(run_url, patience_s=HEARTBEAT_S)  # the next heartbeat tries again
        self.attempt = 1 + (wait_until_free(run_url, otherwise=otherwise) if after is None else after)
        self.lost: RunError | None = None
        self._record: dict[str, Any] = {
            "attempt": self.attempt,
            "token": uuid.uuid4().hex,
            "host": socket.gethostname(),
            "machine": _machine_id(),
            "process": os.getpid(),
            "process_start": _process_start(os.getpid()),
            "heartbeat": time.time(),  # for people who read the file
            "beats": 0,  # differs with each heartbeat, whatever the clock does
            "released": False,
        }
        _held.add(self._record["token"])  # before another thread can read the lease
        try:
            self._storage.write(_path(self.attempt), _encode(self._record), create=True)
        except BaseException as error:
            _held.discard(self._record["token"])
            if isinstance(error, FileExistsError):
                raise RunError(f"{self._storage.name()}: another driver has just started this run") from None
            raise
        self._on_loss = on_loss
        self._stopped = threading.Event()
        self._lock = threading.Lock()  # no loss is told once `release` has begun
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()

    @property
    def fence(self) -> Fence:
        """The fence of this lease, for workers."""
        return Fence(self._storage.url, self.attempt)

    def is_held(self) -> bool:
        """Whether this driver holds the run. If the storage does not answer, no other one is taken to have it."""
        if self.lost is None:
            try:
                self.fence.check(HEARTBEAT_S)
            except RunError as error:
                self.lost = error
            except StorageError as error:
                _LOG.debug("%s", error)
        return self.lost is None

    def release(self) -> None:
        """Release the run. The number of the attempt is not used again."""
        with self._lock:
            self._stopped.set()
        self._thread.join(STALE_S)  # it may wait for storage that does not answer
        _held.discard(self._record["token"])
        if self.lost is not None:
            return
        self._record["released"] = True
        with contextlib.suppress(StorageError):  # without storage the lease expires by itself
            self._write()

    def _beat(self) -> None:
        pause = HEARTBEAT_S
        while not self._stopped.wait(pause):
            begun = time.monotonic()
            try:
                self.fence.check(HEARTBEAT_S)  # before the heartbeat: this process may have been suspended for long
            except RunError as error:
                self._lose(error)
                return
            except Exception as error:  # the next heartbeat looks again
                _LOG.debug("%s", error)
            with contextlib.suppress(Exception):  # the next heartbeat tries again
                self._write()
            pause = max(0.0, HEARTBEAT_S - (time.monotonic() - begun))  # slow storage does not make heartbeats rarer

    def _lose(self, error: RunError) -> None:
        with self._lock:
            self.lost = error
            if not self._stopped.is_set():
                _LOG.info("%s: stopping, because another driver has taken over", self._storage.name())
                self._on_loss()

    def _write(self) -> None:
        self._record["heartbeat"] = time.time()
        self._record["beats"] += 1
        self._beats.write(_path(self.attempt), _encode(self._record))


def wait_until_free(run_url: str, *, otherwise: str = "run.name") -> int:
    """Check that no driver holds the run. Returns the number of its latest attempt; 0 if there is none.

    A process of this machine that has ended is known at once. Any other lease that was not released is watched for
    `STALE_S`.

    Raises:
        RunError: a driver holds the run; the message names its host and process.
    """
    storage = Storage(run_url)
    attempt = newest_attempt(storage)
    holder = _read(storage, attempt) if attempt else None
    if holder is None or holder.released:
        return attempt
    ended = _has_ended(holder)
    if ended is None:
        _watch(storage, attempt, holder, otherwise)
    elif not ended:
        raise _held_by(storage, attempt, holder, otherwise)
    return attempt


@dataclass(frozen=True)
class _Holder:
    """What a lease file says. `problem`: why it cannot be read; then only `content` is known."""

    content: bytes
    released: bool = False
    host: str = ""
    machine: str = ""
    process: int = 0
    process_start: str | None = None
    token: str = ""
    problem: str = ""


def _watch(storage: Storage, attempt: int, holder: _Holder, otherwise: str) -> None:
    """Return when the lease is released, or has not changed for `STALE_S`. Raise RunError if it changes."""
    who = f" (host {holder.host}, process {holder.process})" if holder.host else ""
    _LOG.info("%s: checking for %.0f s whether its last driver%s is still running", storage.name(), STALE_S, who)
    for _ in range(_LOOKS):
        # Only the time between two answers counts, by this machine's own clock: in an outage no driver can beat.
        time.sleep(STALE_S / _LOOKS)
        found = _read_once(storage, attempt) if holder.problem else _read(storage, attempt)
        if found is None or found.released:
            return
        if found.content != holder.content:
            raise _held_by(storage, attempt, found, otherwise)
    if holder.problem:
        _LOG.warning("%s is damaged (%s), and no driver writes it", storage.name(_path(attempt)), holder.problem)


def _held_by(storage: Storage, attempt: int, holder: _Holder, otherwise: str) -> RunError:
    if holder.problem:
        return RunError(
            f"{storage.name(_path(attempt))} is damaged ({holder.problem}), and changes: another driver may hold the "
            f"run; stop it, or choose another {otherwise}"
        )
    return RunError(
        f"{storage.name()}: held by another driver (host {holder.host}, process {holder.process}); stop it, or choose "
        f"another {otherwise}"
    )


def _read(storage: Storage, attempt: int) -> _Holder | None:
    """The lease of an attempt; None if it has been removed."""
    try:
        return storage.parsed(_path(attempt), _parsed, expected=True)  # it has just been listed
    except ObjectMissing:
        return None
    except ObjectDamaged:
        return _read_once(storage, attempt)


def _read_once(storage: Storage, attempt: int) -> _Holder | None:
    """As `_read`, but damage is not waited for."""
    try:
        content = storage.read(_path(attempt), expected=True)
    except ObjectMissing:
        return None
    try:
        return _parsed(content)
    except ValueError as error:
        return _Holder(content, problem=str(error))


def _parsed(text: bytes) -> _Holder:
    try:
        record = parse_json(text)
        return _Holder(
            text,
            bool(record["released"]),
            str(record["host"]),
            str(record["machine"]),
            int(record["process"]),
            record["process_start"],
            str(record.get("token", "")),  # earlier versions wrote none
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None


def _has_ended(holder: _Holder) -> bool | None:
    """Whether the process of a lease has ended; None if that cannot be known here."""
    here = (socket.gethostname(), _machine_id())
    if not here[1] or (holder.host, holder.machine) != here:
        return None
    start = _process_start(holder.process)
    if holder.process_start is None or start is None:
        return None
    if start != holder.process_start:
        return True
    # this process may have failed to release it, without storage
    return holder.process == os.getpid() and holder.token not in _held


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
    """Start time of a process of this machine in clock ticks since boot. Empty: it has ended; None: not known here."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "" if _is_missing(process) else None
    return "" if fields[0] in "ZX" else fields[19]


def _is_missing(process: int) -> bool:
    """Whether there is no such process. `/proc` alone does not tell: it may be absent, or hide processes of others."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:
        return False
    return False
