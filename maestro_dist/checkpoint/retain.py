"""Retention: keep the newest checkpoints and the best one."""

from __future__ import annotations

from collections.abc import Collection

from maestro_dist.checkpoint.layout import RECORD, folder_name, folder_step
from maestro_dist.data.storage import Storage


def surplus(complete: Collection[int], *, keep_last: int, best: Collection[int]) -> list[int]:
    """Complete checkpoints to remove, oldest first: all except the `keep_last` newest and the `best`."""
    kept = set(sorted(complete)[-keep_last:]) | set(best)
    return sorted(set(complete) - kept)


def apply_retention(checkpoints: Storage, *, current: int, keep_last: int, best: Collection[int]) -> None:
    """Remove surplus checkpoints, and incomplete ones of steps before `current` (crashed saves).

    The checkpoint record is removed first: if the removal is interrupted, the checkpoint is incomplete, not damaged.
    """
    steps = [step for step in map(folder_step, checkpoints.list()) if step is not None]
    complete = {step for step in steps if checkpoints.exists(f"{folder_name(step)}/{RECORD}")}
    leftovers = [step for step in steps if step not in complete and step < current]
    for step in surplus(complete, keep_last=keep_last, best=best) + leftovers:
        folder = checkpoints.join(folder_name(step))
        folder.remove(RECORD)
        folder.remove(recursive=True)
