"""When checkpoints are written, and what they keep besides the weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from maestro_dist.callbacks.base import Callback, State, StepRecord
from maestro_dist.callbacks.validation import validation_due

if TYPE_CHECKING:
    from maestro_dist.checkpoint.save import Saver


def run_metadata(state: State) -> dict[str, Any]:
    """What a checkpoint keeps of a run besides weights, moments and position (plain JSON).

    `best_step` protects that step's checkpoint from being removed.
    """
    return {"best_step": state.best_step, "stop": state.stop, "callbacks": state.callbacks.state_dict()}


def resume(state: State, step: int, position: int, metadata: dict[str, Any]) -> None:
    """Set `state` to where a run was when its checkpoint was written. `callback_states` gives the callbacks' part."""
    state.step, state.position, state.stop = step, position, bool(metadata.get("stop", False))


def callback_states(metadata: dict[str, Any]) -> dict[str, Any]:
    """What `Callbacks.load_state_dict` takes from the metadata of a checkpoint.

    Checkpoints written before callbacks had states of their own keep these values flat.
    """
    if "callbacks" in metadata:
        return dict(metadata["callbacks"])
    validation = {"best_step": metadata.get("best_step"), "best_score": metadata.get("best_score")}
    validation["since_best"] = metadata.get("validations_since_best", 0)
    return {"Validation": validation, "Health": {"skipped": 0, "bad_samples": metadata.get("bad_samples", [])}}


class Checkpointing(Callback):
    """Saves after each validation, every `checkpoint.every_steps` steps and at the end. No step is saved twice.

    It comes after `Validation` in the list, so that a checkpoint knows which step is the best.
    """

    def __init__(self, saver: Saver, fence: Callable[[], None] | None = None) -> None:
        """`fence` raises on rank 0 when another driver holds the run."""
        self._saver = saver
        self._fence = fence
        self._saved: int | None = None

    def on_start(self, state: State) -> None:
        """The step from which a run is resumed is saved already."""
        self._saved = state.step

    def on_step(self, state: State, record: StepRecord) -> None:
        """Save when it is due, after telling the callbacks which checkpoint is complete since the last step."""
        self._tell(state)
        every = state.config.checkpoint.every_steps
        if validation_due(state) or (every is not None and state.step % every == 0):
            self.save(state)

    def on_end(self, state: State) -> None:
        """Save the last step and wait until it is on storage. The removal of older ones may go on."""
        self.save(state)
        self._saver.wait(removals=False)
        self._tell(state)

    def close(self) -> None:
        """Wait for the current save: this run must not write after it has released its lease."""
        self._saver.close()

    def save(self, state: State) -> None:
        """Save now, unless this step is saved already. All ranks call it.

        Raises also the error of the previous save.
        """
        if self._saved == state.step:
            return
        self._saved = state.step
        self._saver.save(
            state.engine,
            step=state.step,
            position=state.position,
            epoch=state.epoch,
            metadata=run_metadata(state),
            fence=self._fence,
        )

    def _tell(self, state: State) -> None:
        for step in self._saver.completed():
            state.callbacks.on_checkpoint(state, step)
