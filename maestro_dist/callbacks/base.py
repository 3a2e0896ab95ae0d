"""What a callback sees, and when it is called."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from maestro_dist.config.schema import Config
    from maestro_dist.data.manifest import Manifest
    from maestro_dist.engine.engine import Engine
    from maestro_dist.evaluation import Evaluation
    from maestro_dist.parallel.collectives import Group
    from maestro_dist.parallel.mesh import Mesh
    from maestro_dist.task.base import Task
    from maestro_dist.types import Modality


@dataclass
class State:
    """A run while it trains. All fields but `mesh`, `engine` and `groups` are the same on every rank.

    step, position          optimizer steps done, and samples consumed since the start of the run
    tokens_by_modality      number of tokens of each modality in one sample
    groups                  process groups whose ranks share sequences or experts with this rank
    best_step, best_score   step and score of the best validation so far (set by `Validation`)
    validations_since_best  validations since then (set by `Validation`)
    bad_samples             numbers of the training samples that were skipped as bad, over all ranks (set by `Health`)
    results                 metrics of the latest evaluation: `validation/...`, at the end `test/...`
    stop                    set it to end training after this step; it must be the same on all ranks
    callbacks               all callbacks of the run, as one
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
    callbacks: Callback = field(default_factory=lambda: Callback())

    @property
    def communicated_bytes(self) -> int:
        """Bytes that this rank gave to the collectives of `groups`. DeepSpeed's own collectives are not counted."""
        return sum(group.communicated_bytes for group in self.groups)

    @property
    def epoch(self) -> int:
        """Number of complete epochs, which is the index of the current one."""
        return self.step // self.steps_per_epoch

    @property
    def at_epoch_end(self) -> bool:
        """Whether the step just done was the last of its epoch, or of the run."""
        return self.step % self.steps_per_epoch == 0 or self.step == self.total_steps


@dataclass
class StepRecord:
    """One optimizer step, as this rank saw it. Tensors are on the device; to read one waits for the device.

    loss          sum of this rank's sample losses divided by the number of samples of the global batch; the sum over
                  data ranks is the mean over the global batch
    norm          global gradient norm before clipping
    applied       False if a gradient was not finite, so that all ranks skipped the step
    samples       number of samples of the global batch (all ranks)
    tokens        number of tokens of this rank's samples; with `missing.consistency` those of both views
    budgets       [M] sum of budgets over this rank's samples
    present       [M] number of this rank's samples that have an observed step of the modality
    expert_load   [layers, M, E] number of this rank's tokens by expert
    data_s        seconds of host time that this rank waited for data; likewise forward_s, backward_s, optimizer_s
    communicated_bytes
                  bytes that this rank gave to collectives in this step (see `State.communicated_bytes`)
    keys, bad     names of this rank's samples, and of those that were skipped as bad; `bad_samples` has their numbers
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
    """Base class of callbacks: override the hooks that you need.

    All ranks call all callbacks in the same order, so a callback may use collectives, except where a hook says
    otherwise. What a callback changes in `state` must be the same on all ranks.
    """

    @property
    def name(self) -> str:
        """Name of this callback's state in a checkpoint."""
        return type(self).__name__

    def on_start(self, state: State) -> None:
        """Before the first step; also when a run is resumed, after `load_state_dict`."""

    def on_step(self, state: State, record: StepRecord) -> None:
        """After each optimizer step. `state.step` counts it already."""

    def on_validation(self, state: State, evaluation: Evaluation) -> None:
        """After each validation. `state.results` holds its metrics."""

    def on_checkpoint(self, state: State, step: int) -> None:
        """After the checkpoint of `step` is complete on storage, at the next step that ends.

        Called on rank 0 only, because only rank 0 knows when all ranks have written their parts. Do not use
        collectives.
        """

    def on_end(self, state: State) -> None:
        """After the last step, when training ended normally."""

    def on_test(self, state: State, evaluation: Evaluation) -> None:
        """After the final test of the best weights. `state.results` holds its metrics."""

    def on_exception(self, state: State, error: Exception) -> None:
        """When training fails, on the ranks that failed: do not use collectives. `close` is called afterwards."""

    def close(self) -> None:
        """Called once at the end, also after an error: do not use collectives."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of this callback: plain JSON. Rank 0's is saved."""
        return {}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; called on all ranks before `on_start` of a resumed run.

        A checkpoint from before this callback was added has nothing for it; then this method is not called.
        """


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

    def on_validation(self, state: State, evaluation: Evaluation) -> None:
        for item in self.items:
            item.on_validation(state, evaluation)

    def on_checkpoint(self, state: State, step: int) -> None:
        for item in self.items:
            item.on_checkpoint(state, step)

    def on_end(self, state: State) -> None:
        for item in self.items:
            item.on_end(state)

    def on_test(self, state: State, evaluation: Evaluation) -> None:
        for item in self.items:
            item.on_test(state, evaluation)

    def on_exception(self, state: State, error: Exception) -> None:
        for item in self.items:
            with suppress(Exception):  # the first error is the one that matters
                item.on_exception(state, error)

    def close(self) -> None:
        with ExitStack() as stack:  # all are closed, also when one raises
            for item in reversed(self.items):
                stack.callback(item.close)

    def state_dict(self) -> dict[str, Any]:
        """The states of all callbacks that have one, by name."""
        saved = {name: item.state_dict() for name, item in self._by_name().items()}
        return {name: content for name, content in saved.items() if content}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore each callback that `saved` has a state for. States of removed callbacks are ignored."""
        for name, item in self._by_name().items():
            if name in saved:
                item.load_state_dict(saved[name])

    def _by_name(self) -> dict[str, Callback]:
        """Callbacks by name; the second one of a name gets `#2`."""
        found: dict[str, Callback] = {}
        seen: Counter[str] = Counter()
        for item in self.items:
            seen[item.name] += 1
            found[item.name if seen[item.name] == 1 else f"{item.name}#{seen[item.name]}"] = item
        return found
