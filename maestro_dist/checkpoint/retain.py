"""Retention: keep the newest checkpoints and the best one."""

from __future__ import annotations

from collections.abc import Collection

from maestro_dist.checkpoint.layout import RECORD, folder_name, folder_step
from maestro_dist.data.storage import Storage


def surplus(complete: Collection[int], *, keep_last: int, best: Collection[int]) -> list[int]:
    """Complete checkpoints to remove, oldest first: all except the `keep_last` newest and the `best`."""
    kept = set(sorted(complete)[-keep_last:]) | set(best)
    return sorted(set(complete) - kept)


class Retention:
    """Removes surplus checkpoints of a run, and knows which there are.

    Remote checkpoints are listed once: after that, only the process that holds the run writes and removes them.
    """

    def __init__(self, checkpoints: Storage, keep_last: int) -> None:
        self._checkpoints, self._keep_last = checkpoints, keep_last
        self._steps: set[int] | None = None  # that have a folder; None: not listed yet
        self._complete: set[int] = set()

    def is_new(self, step: int) -> bool:
        """Whether the step is known to have no files of earlier saves."""
        return self._steps is not None and step not in self._steps and self._checkpoints.local is None

    def completed(self, steps: Collection[int], best: Collection[int]) -> None:
        """The checkpoints of `steps` are complete: remove surplus ones, and incomplete ones before them.

        Records are removed first: if the removal is interrupted, a checkpoint is incomplete, not damaged.
        """
        if self._steps is None or self._checkpoints.local is not None:
            self._list()
        assert self._steps is not None
        self._steps.update(steps)
        self._complete.update(steps)
        leftovers = sorted(step for step in self._steps - self._complete if step < max(steps))
        removed = surplus(self._complete, keep_last=self._keep_last, best=best)
        self._checkpoints.remove_many([f"{folder_name(step)}/{RECORD}" for step in removed])
        self._complete.difference_update(removed)
        for step in removed + leftovers:
            self._checkpoints.remove(folder_name(step), recursive=True)
            self._steps.discard(step)

    def _list(self) -> None:
        self._steps = {step for step in map(folder_step, self._checkpoints.list()) if step is not None}
        self._complete = set(complete_steps_of(self._checkpoints, self._steps))


def complete_steps_of(checkpoints: Storage, steps: Collection[int]) -> list[int]:
    """Which of these steps have a record, ascending."""
    return sorted(step for step in steps if RECORD in checkpoints.list(folder_name(step)))
