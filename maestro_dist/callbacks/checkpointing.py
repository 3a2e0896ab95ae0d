"""Checkpoints: when they are written."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from maestro_dist.callbacks.base import Callback, State, StepRecord
from maestro_dist.callbacks.validation import validation_due

if TYPE_CHECKING:
    from maestro_dist.checkpoint.save import Saver


class Checkpointing(Callback):
    """Saves after each validation, every `checkpoint.every_steps` steps and at the end; no step twice.

    It comes after `Validation` among the callbacks, so that a checkpoint knows whether it is the best.
    """

    def __init__(self, saver: Saver, fence: Callable[[], None] | None = None) -> None:
        """`fence` raises on rank 0 when another driver holds the run."""
        self._saver = saver
        self._fence = fence
        self._saved: int | None = None

    def on_start(self, state: State) -> None:
        """A resumed run starts from a step that is saved already."""
        self._saved = state.step

    def on_step(self, state: State, record: StepRecord) -> None:
        """Save when it is time."""
        every = state.config.checkpoint.every_steps
        if validation_due(state) or (every is not None and state.step % every == 0):
            self.save(state)

    def on_end(self, state: State) -> None:
        """Save the last step and wait until it is on storage."""
        self.save(state)
        self._saver.wait()

    def close(self) -> None:
        """Let the save under way end: nothing of this run is written once it has let go of its lease."""
        self._saver.close()

    def save(self, state: State) -> None:
        """Save now, unless this step is saved; all ranks together. Also raises what went wrong in the last save."""
        if self._saved == state.step:
            return
        self._saved = state.step
        self._saver.save(
            state.engine,
            step=state.step,
            position=state.position,
            epoch=state.epoch,
            metadata=state.resumable(),
            fence=self._fence,
        )
