"""A fence: a worker checks that its driver still holds the run before it writes."""

from __future__ import annotations

import re
from dataclasses import dataclass

from maestro_dist.data.storage import Storage
from maestro_dist.errors import RunError

LEASES = "leases"
"""Folder of a run with one lease file for each attempt (see `run.lease`)."""


@dataclass(frozen=True)
class Fence:
    """What a worker needs to find out whether its driver still holds the run (picklable)."""

    run_url: str
    attempt: int

    def check(self) -> None:
        """Raise `RunError` where a later attempt has begun."""
        newest = newest_attempt(Storage(self.run_url))
        if newest > self.attempt:
            raise RunError(
                f"{Storage(self.run_url).name()}: attempt {newest} has taken the run over from attempt {self.attempt}; "
                "nothing more is written by this one"
            )


def newest_attempt(storage: Storage) -> int:
    """Number of the latest attempt on the run at `storage`; 0 where there is none."""
    found = (re.fullmatch(r"attempt-(\d+)\.json", name) for name in storage.list(LEASES))
    return max((int(match[1]) for match in found if match), default=0)
