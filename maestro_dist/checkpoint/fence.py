"""A fence: before it writes, a worker checks that its driver still holds the run."""

from __future__ import annotations

import re
from dataclasses import dataclass

from maestro_dist.data.storage import Storage
from maestro_dist.errors import RunError

LEASES = "leases"
"""Folder of a run that contains one lease file for each attempt (see `run.lease`)."""


@dataclass(frozen=True)
class Fence:
    """Checks whether a driver still holds its run. Picklable, so that it can be sent to workers."""

    run_url: str
    attempt: int

    def check(self, patience_s: float | None = None) -> None:
        """Raise `RunError` if a later attempt has started.

        `patience_s`: for how long a request that fails is repeated; by default as long as all others.
        """
        newest = newest_attempt(Storage(self.run_url, patience_s=patience_s))
        if newest > self.attempt:
            raise RunError(
                f"{Storage(self.run_url).name()}: attempt {newest} has taken over the run from attempt {self.attempt}; "
                "this attempt stops writing"
            )


def newest_attempt(storage: Storage) -> int:
    """Number of the latest attempt on the run at `storage`; 0 if there is none."""
    matches = (re.fullmatch(r"attempt-(\d+)\.json", name) for name in storage.list(LEASES))
    return max((int(match[1]) for match in matches if match), default=0)
