"""Where a run continues: the newest checkpoint that is whole, the same on all ranks."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

from maestro_dist.checkpoint.find import CheckpointInfo, Problem, none_is_whole, open_record, whole_checkpoints
from maestro_dist.checkpoint.layout import RECORD, PartName
from maestro_dist.checkpoint.load import restore
from maestro_dist.errors import CheckpointDamaged
from maestro_dist.parallel.mesh import Mesh

if TYPE_CHECKING:
    from maestro_dist.engine.engine import Engine

_LOG = logging.getLogger(__name__)


class ResumePoints:
    """The checkpoints of a run, from the newest to the oldest. All methods are collectives.

    Rank 0 looks for them, and the other ranks read the same records: an earlier attempt may still be writing. Damaged
    ones are passed over; rank 0 says so, with the number of steps that are trained again.
    """

    def __init__(self, run_url: str, mesh: Mesh) -> None:
        self._run_url, self._mesh = run_url, mesh
        self._problems: list[Problem] = []
        self._found: Iterator[CheckpointInfo] = whole_checkpoints(run_url, self._problems)

    def next(self) -> CheckpointInfo | None:
        """The next older checkpoint that looks whole; None if the run has no checkpoints.

        Raises:
            RunError: on rank 0, if there are checkpoints, but no other is whole.
        """
        found: CheckpointInfo | None = None
        if self._mesh.rank == 0:
            found = next(self._found, None)
            if found is None and self._problems:
                raise none_is_whole(self._run_url, self._problems)
        return self._same_on_all(found)

    def restore(self, engine: Engine, found: CheckpointInfo) -> CheckpointInfo:
        """Restore `found`, or the next older checkpoint that is whole. Returns the one that was restored.

        Raises:
            CheckpointError: the checkpoint belongs to another model.
            RunError: on rank 0, if none is whole.
        """
        while True:
            try:
                restore(engine, found)
            except CheckpointDamaged as damage:
                self._problems.append(Problem(found.step, str(damage)))
                older = self.next()
                if older is None:
                    raise
                found = older
            else:
                self._tell(found)
                return found

    def _tell(self, used: CheckpointInfo) -> None:
        if not self._problems or self._mesh.rank:
            return
        for problem in self._problems:
            _LOG.warning("the checkpoint of step %d is passed over: %s", problem.step, problem.text)
        lost = max(problem.step for problem in self._problems) - used.step
        _LOG.warning("the run continues from the checkpoint of step %d: %d steps are trained again", used.step, lost)

    def _same_on_all(self, found: CheckpointInfo | None) -> CheckpointInfo | None:
        """What rank 0 has found, on all ranks."""
        import torch
        import torch.distributed as dist

        if self._mesh.world == 1:
            return found
        numbers = torch.zeros(5, dtype=torch.int64)
        if found is not None:
            numbers = torch.tensor([found.step + 1, found.file == RECORD, *found.record.writer])
        numbers = numbers.to("cuda" if dist.get_backend() == "nccl" else "cpu")
        dist.broadcast(numbers, src=0)
        step, plain, attempt, session, save = map(int, numbers.tolist())
        if found is not None or not step:
            return found
        file = RECORD if plain else PartName(0, attempt, session, save).record()
        return open_record(self._run_url, step - 1, file)
