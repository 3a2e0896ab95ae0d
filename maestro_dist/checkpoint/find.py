"""Find the checkpoints of a run: the newest whole one, that of a step, the best."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from maestro_dist.checkpoint.layout import (
    CheckpointPart,
    CheckpointRecord,
    checkpoints,
    folder_name,
    folder_step,
    is_record,
    read_record,
)
from maestro_dist.checkpoint.retain import complete_steps_of
from maestro_dist.data.storage import Storage
from maestro_dist.errors import CheckpointDamaged, CheckpointError, RunError
from maestro_dist.optim import AVERAGE

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckpointInfo:
    """A complete checkpoint: its folder, its checkpoint record, and the name of this record's file."""

    folder: Storage
    record: CheckpointRecord
    file: str

    @property
    def url(self) -> str:
        """The checkpoint's folder, without credentials."""
        return self.folder.name()

    @property
    def step(self) -> int:
        """Optimizer steps taken."""
        return self.record.step

    @property
    def position(self) -> int:
        """Samples consumed."""
        return self.record.position

    @property
    def epoch(self) -> int:
        """0-based epoch in which it was written."""
        return self.record.epoch

    @property
    def attempt(self) -> int:
        """Attempt of the run that wrote it."""
        return self.record.attempt

    @property
    def averaged(self) -> bool:
        """Whether it contains an average of the weights (`optim.ema`)."""
        return AVERAGE in self.record.moments

    @property
    def metadata(self) -> dict[str, Any]:
        """The `metadata` argument of `Saver.save`."""
        return self.record.metadata


class Problem(NamedTuple):
    """Why the checkpoint of a step is passed over."""

    step: int
    text: str


def complete_steps(run_url: str) -> list[int]:
    """Steps of the run's complete checkpoints, ascending."""
    storage = checkpoints(run_url)
    return complete_steps_of(storage, [step for step in map(folder_step, storage.list()) if step is not None])


def whole_checkpoints(run_url: str, problems: list[Problem]) -> Iterator[CheckpointInfo]:
    """The complete checkpoints of a run that look whole, the newest first.

    The record can be read and all parts are there with their sizes. Others are passed over, and why is appended to
    `problems`. The content of parts is checked when they are read.
    """
    for step, found in _folders(run_url):
        problems += [Problem(step, text) for text in found.problems]
        yield from found.whole


def newest(run_url: str) -> CheckpointInfo | None:
    """The newest complete checkpoint of a run that looks whole; None if the run has no checkpoints.

    Where none is whole, it is the newest whose record can be read: what reads its parts names those that are damaged.
    Raises `RunError` if there are records, but none can be read.
    """
    problems: list[Problem] = []
    damaged: list[CheckpointInfo] = []
    for step, found in _folders(run_url):
        problems += [Problem(step, text) for text in found.problems]
        damaged += found.damaged
        for info in found.whole:
            if problems:
                _LOG.warning("%s; the checkpoint of step %d is used instead", problems[0].text, step)
            return info
    if problems and not damaged:
        raise none_is_whole(run_url, problems)
    return damaged[0] if damaged else None


def none_is_whole(run_url: str, problems: list[Problem]) -> RunError:
    """The error for a run without a whole checkpoint."""
    name = checkpoints(run_url).name()
    return RunError(
        f"{problems[0].text}, and no older checkpoint is whole; remove {name} to train from the beginning again"
    )


def find(run_url: str, step: int, *, expected: bool = False) -> CheckpointInfo:
    """The complete checkpoint of a step. `expected`: it is known to be complete.

    Raises `CheckpointError`, with a list of complete steps, if there is none; `CheckpointDamaged` if its record is
    damaged. Damaged parts are found when they are read.
    """
    folder = checkpoints(run_url).join(folder_name(step))
    found = _FoundRecords(folder, expected=expected)
    for info in found.whole + found.damaged:
        return info
    if found.problems:
        raise CheckpointDamaged(f"{found.problems[0]}; use another checkpoint of the run")
    steps = ", ".join(str(other) for other in complete_steps(run_url)) or "none"
    raise CheckpointError(f"no complete checkpoint of step {step} at {folder.name()}; complete steps: {steps}")


def open_record(run_url: str, step: int, file: str) -> CheckpointInfo:
    """The checkpoint of a step with this record, which another rank has found. Raises `CheckpointDamaged`."""
    folder = checkpoints(run_url).join(folder_name(step))
    record = read_record(folder, file)
    if record is None:
        raise CheckpointDamaged(f"{folder.name(file)} has been removed")
    return CheckpointInfo(folder, _with_current_names(record), file)


def best(run_url: str) -> CheckpointInfo:
    """The checkpoint with the best validation score (`metadata["best_step"]`); the newest before the first validation.

    Raises `CheckpointError` if the run has no complete checkpoint, and what `newest` raises.
    """
    latest = newest(run_url)
    if latest is None:
        raise CheckpointError(
            f"{Storage(run_url).name()}: no complete checkpoint yet; train the run up to its first validation"
        )
    step = latest.metadata.get("best_step")
    return latest if step is None else find(run_url, step, expected=True)


def _folders(run_url: str) -> Iterator[tuple[int, _FoundRecords]]:
    """Steps and what their folders contain, the newest first. Each folder is read when it is asked for."""
    storage = checkpoints(run_url)
    for step in sorted((step for step in map(folder_step, storage.list()) if step is not None), reverse=True):
        yield step, _FoundRecords(storage.join(folder_name(step)))


class _FoundRecords:
    """What is in a step's folder.

    whole     the checkpoints that look whole, that of the latest writer first
    damaged   the others with a readable record: a part is missing, or has the wrong size
    problems  what is wrong, unless a later writer's checkpoint is whole
    """

    def __init__(self, folder: Storage, *, expected: bool = False) -> None:
        self.problems: list[str] = []
        sizes = folder.sizes(expected=expected)
        read: list[tuple[CheckpointInfo, str | None]] = []
        for file in sorted(filter(is_record, sizes)):
            try:
                record = read_record(folder, file)
            except CheckpointDamaged as error:
                self.problems.append(str(error))
                continue
            if record is not None:
                problem = next(filter(None, (_problem_of(folder, part, sizes) for part in record.parts)), None)
                read.append((CheckpointInfo(folder, _with_current_names(record), file), problem))
        read.sort(key=lambda one: one[0].record.writer, reverse=True)
        self.whole = [info for info, problem in read if problem is None]
        self.damaged = [info for info, problem in read if problem is not None]
        for _, problem in read:
            if problem is None:
                break
            self.problems.append(problem)


def _problem_of(folder: Storage, part: CheckpointPart, sizes: Mapping[str, int]) -> str | None:
    """What the sizes of the folder's files tell of a part; None if it looks whole."""
    if part.file not in sizes:
        return f"{folder.name(part.file)} is missing from its checkpoint"
    if sizes[part.file] != part.bytes:
        return f"{folder.name(part.file)} is damaged: it has {sizes[part.file]} bytes, but {part.bytes} were written"
    return None


def _with_current_names(record: CheckpointRecord) -> CheckpointRecord:
    """The checkpoint record with the current names of parameters; its own names may be old."""
    from maestro_dist.model.names import current_name

    def renamed(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        return {current_name(name): shape for name, shape in shapes.items()}

    parts = [
        part.model_copy(update={"slices": {current_name(name): where for name, where in part.slices.items()}})
        for part in record.parts
    ]
    names = {"parameters": renamed(record.parameters), "buffers": renamed(record.buffers), "parts": parts}
    return record.model_copy(update=names)
