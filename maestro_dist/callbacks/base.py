"""What a callback sees and when it is called."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from maestro_dist.config.schema import Config
    from maestro_dist.data.manifest import Manifest
    from maestro_dist.engine.engine import Engine
    from maestro_dist.parallel.collectives import Group
    from maestro_dist.parallel.mesh import Mesh
    from maestro_dist.task.base import Task
    from maestro_dist.types import Modality


@dataclass
class State:
    """A run while it trains; the same on every rank.

    `step` and `position` count what is done: optimizer steps, and samples consumed since the start of the run.
    `best_step` and `best_score` are those of the validation that chose the best weights so far.
    `bad_samples` are the numbers of training samples that were skipped as bad, over all ranks, as of the last record.
    `tokens_by_modality` is the number of tokens a modality has in one sample; `groups` are those whose ranks share
    sequences or experts with this one.
    """

    config: Config
    mesh: Mesh
    engine: Engine
    task: Task
    manifest: Manifest
    modalities: list[Modality]
    samples_per_epoch: int
    steps_per_epoch: int
    total_steps: int
    tokens_by_modality: dict[str, int]
    groups: tuple[Group, ...] = ()
    step: int = 0
    position: int = 0
    best_step: int | None = None
    best_score: float | None = None
    validations_since_best: int = 0
    bad_samples: list[int] = field(default_factory=list)
    stop: bool = False
    results: dict[str, float] = field(default_factory=dict)

    @property
    def communicated_bytes(self) -> int:
        """Bytes that this rank gave to the collectives of `groups`. DeepSpeed's own collectives are not counted."""
        return sum(group.communicated_bytes for group in self.groups)

    @property
    def epoch(self) -> int:
        """Epochs done (the index of the current one)."""
        return self.step // self.steps_per_epoch

    @property
    def at_epoch_end(self) -> bool:
        """Whether the step just done was the last of its epoch, or of the run."""
        return self.step % self.steps_per_epoch == 0 or self.step == self.total_steps

    def resume(self, step: int, position: int, kept: dict[str, Any]) -> None:
        """Go on from a checkpoint; `kept` is what `resumable` gave when it was written."""
        self.step, self.position = step, position
        for name in self.resumable().keys() & kept.keys():  # an older checkpoint lacks what is newer
            setattr(self, name, kept[name])

    def resumable(self) -> dict[str, Any]:
        """What a checkpoint keeps of this state, besides weights, moments and position (plain JSON)."""
        return {
            "best_step": self.best_step,
            "best_score": self.best_score,
            "validations_since_best": self.validations_since_best,
            "stop": self.stop,
            "bad_samples": self.bad_samples,
        }


@dataclass
class StepRecord:
    """One optimizer step, as its own rank saw it. Tensors stay on the device: reading them is up to a callback.

    loss          this rank's sum of sample losses divided by the samples of the global batch; the sum over data ranks
                  is the global mean
    norm          global gradient norm before clipping
    applied       False when a gradient was not finite and all ranks skipped the step
    samples       samples of the global batch (all ranks)
    tokens        tokens that this rank's samples had, in both views where each is seen twice
    budgets       [M] sum of budgets over this rank's samples, and present [M]: how many of them had an observed step of
                  the modality
    expert_load   [layers, M, E] tokens of this rank by expert
    data_s        seconds that this rank waited for data; forward_s, backward_s, optimizer_s likewise (host time)
    communicated_bytes
                  bytes that this rank gave to collectives meanwhile (see `State.communicated_bytes`)
    keys, bad     names of this rank's samples, and of those that were skipped as bad; `bad_samples` are their numbers
    """

    step: int
    epoch: int
    loss: Tensor
    norm: float
    applied: bool
    lr: float
    samples: int
    tokens: int
    budgets: Tensor
    present: Tensor
    expert_load: Tensor
    data_s: float
    forward_s: float
    backward_s: float
    optimizer_s: float
    keys: list[str]
    bad: list[str]
    communicated_bytes: int = 0
    bad_samples: list[int] = field(default_factory=list)


class Callback:
    """Base of callbacks. All ranks call all callbacks in one order, so a callback may use collectives."""

    def on_start(self, state: State) -> None:
        """Before the first step (also after a resume)."""

    def on_step(self, state: State, record: StepRecord) -> None:
        """After each optimizer step; `state.step` counts it."""

    def on_end(self, state: State) -> None:
        """After the last step, when training ended normally."""

    def close(self) -> None:
        """Always called once, also after an error; must not use collectives."""


class Callbacks(Callback):
    """Several callbacks as one, called in their order."""

    def __init__(self, callbacks: Iterable[Callback]) -> None:
        self.items = list(callbacks)

    def on_start(self, state: State) -> None:
        for item in self.items:
            item.on_start(state)

    def on_step(self, state: State, record: StepRecord) -> None:
        for item in self.items:
            item.on_step(state, record)

    def on_end(self, state: State) -> None:
        for item in self.items:
            item.on_end(state)

    def close(self) -> None:
        with ExitStack() as stack:  # all are closed, also when one raises
            for item in reversed(self.items):
                stack.callback(item.close)
