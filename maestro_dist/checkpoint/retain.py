"""Retention: keep the newest checkpoints and the best one."""

from __future__ import annotations

from collections.abc import Callable, Collection

from maestro_dist.checkpoint.fence import Writer
from maestro_dist.checkpoint.layout import folder_name, folder_step, is_record, writer_of
from maestro_dist.data.storage import Storage


def surplus(complete: Collection[int], *, keep_last: int, best: Collection[int]) -> list[int]:
    """Complete checkpoints to remove, oldest first: all except the `keep_last` newest and the `best`."""
    kept = set(sorted(complete)[-keep_last:]) | set(best)
    return sorted(set(complete) - kept)


class Retention:
    """Removes surplus checkpoints of a run, and knows which there are. Nothing of a later writer is removed.

    Remote checkpoints are listed once: after that, only the process that holds the run writes and removes them.
    """

    def __init__(self, checkpoints: Storage, keep_last: int, writer: Writer) -> None:
        self._checkpoints, self._keep_last, self._writer = checkpoints, keep_last, writer
        self._steps: set[int] | None = None  # that have a folder; None: not listed yet
        self._complete: set[int] = set()

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
        surplus_steps = surplus(self._complete, keep_last=self._keep_last, best=best)
        files = {step: self._checkpoints.list(folder_name(step)) for step in surplus_steps + leftovers}
        ours = {step: names for step, names in files.items() if not any(is_later(n, self._writer) for n in names)}
        self._remove(ours, is_record)
        self._remove(ours, lambda name: not is_record(name))
        self._complete.difference_update(files)
        self._steps.difference_update(files)
        for step in ours if self._checkpoints.local is not None else ():
            self._checkpoints.remove(folder_name(step), recursive=True)

    def _remove(self, files: dict[int, list[str]], which: Callable[[str], bool]) -> None:
        paths = [f"{folder_name(step)}/{name}" for step, names in files.items() for name in names if which(name)]
        self._checkpoints.remove_many(paths)

    def _list(self) -> None:
        self._steps = {step for step in map(folder_step, self._checkpoints.list()) if step is not None}
        self._complete = set(complete_steps_of(self._checkpoints, self._steps))


def complete_steps_of(checkpoints: Storage, steps: Collection[int]) -> list[int]:
    """Which of these steps have a record, ascending."""
    return sorted(step for step in steps if any(map(is_record, checkpoints.list(folder_name(step)))))


def is_later(name: str, writer: Writer) -> bool:
    """Whether a file of a step's folder, by its name, was written by a later writer."""
    written = writer_of(name)
    return written is not None and written[:2] > writer
