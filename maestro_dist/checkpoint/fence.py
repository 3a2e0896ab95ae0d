"""A fence: before a worker writes or removes, it checks that its driver, and its start of the workers, hold the run.

Each driver has an attempt (its lease), and each start of the workers in it a session. Their names tell whether a later
one exists:
```
leases/attempt-000002.json                      the lease of attempt 2 (see `run.lease`)
sessions/attempt-000002.18c3a4f2d1e0a3b4.json   the current start of its workers
```
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import NamedTuple

from maestro_dist.data.storage import Storage
from maestro_dist.errors import RunError

LEASES = "leases"
"""Folder of a run that contains one lease file for each attempt."""
SESSIONS = "sessions"
"""Folder of a run that contains the current session of its workers."""

_LEASE = re.compile(r"attempt-(\d+)\.json")
_SESSION = re.compile(r"attempt-(\d+)\.([0-9a-f]+)\.json")


class Writer(NamedTuple):
    """Who writes: the attempt and the session in it. A later one is greater."""

    attempt: int
    session: int


@dataclass(frozen=True)
class Fence:
    """Checks whether a driver, or a start of its workers, still holds its run. Picklable, to be sent to workers.

    session  None: any session of the attempt may write
    """

    run_url: str
    attempt: int
    session: int | None = None

    def check(self, patience_s: float | None = None) -> None:
        """Raise `RunError` if a later attempt has started, or a later session of this one.

        `patience_s`: for how long a request that fails is repeated; by default as long as all others.
        """
        storage = Storage(self.run_url, patience_s=patience_s)
        newest = newest_attempt(storage)
        if newest > self.attempt:
            raise RunError(
                f"{storage.name()}: attempt {newest} has taken over the run from attempt {self.attempt}; "
                "this attempt stops writing"
            )
        if self.session is not None and _newest_session(storage.list(SESSIONS), self.attempt) > self.session:
            raise RunError(
                f"{storage.name()}: the workers of attempt {self.attempt} were started again; "
                "a worker of an earlier start stops writing"
            )


def newest_attempt(storage: Storage) -> int:
    """Number of the latest attempt on the run at `storage`; 0 if there is none."""
    matches = map(_LEASE.fullmatch, storage.list(LEASES))
    return max((int(match[1]) for match in matches if match), default=0)


def begin_session(run_url: str, attempt: int) -> int:
    """The number of a new session of the attempt; from now on, fences of its earlier sessions raise.

    It is greater than that of all sessions before, also where the clock of this machine is behind.
    """
    storage = Storage(run_url)
    names = storage.list(SESSIONS)
    session = max(time.time_ns(), _newest_session(names, attempt) + 1)
    storage.write(f"{SESSIONS}/attempt-{attempt:06d}.{session:x}.json", b"{}", create=True)
    earlier = [name for name in names if (match := _SESSION.fullmatch(name)) and int(match[1]) <= attempt]
    storage.remove_many([f"{SESSIONS}/{name}" for name in earlier])
    return session


def _newest_session(names: list[str], attempt: int) -> int:
    matches = (match for match in map(_SESSION.fullmatch, names) if match)
    return max((int(match[2], 16) for match in matches if int(match[1]) == attempt), default=0)
