"""Validation: score the weights, remember the best step, stop early."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from maestro_dist.callbacks.base import Callback, State, StepRecord
from maestro_dist.errors import DataError
from maestro_dist.task import higher_is_better

if TYPE_CHECKING:
    from maestro_dist.evaluation import Evaluation
    from maestro_dist.tracking import MetricLog

_LOG = logging.getLogger(__name__)


def validation_due(state: State) -> bool:
    """Whether a validation follows this step: every n epochs, and at the end of the run."""
    every = state.config.evaluation.every_epochs * state.steps_per_epoch
    return state.step % every == 0 or state.step == state.total_steps


def better(metric: str, score: float, than: float) -> bool:
    """Whether a score is strictly better than another."""
    return score > than if higher_is_better(metric) else score < than


class Validation(Callback):
    """Evaluates every `evaluation.every_epochs` epochs and after the last step.

    Sets `state.results` (`validation/...`), `best_step` and `best_score`; of equal scores the earlier step stays the
    best. Sets `state.stop` after `evaluation.patience` validations without a better score. If the metric is undefined
    or infinite, the validation is ignored with a warning, and training continues.
    """

    def __init__(self, evaluate: Callable[[], Evaluation], log: MetricLog | None) -> None:
        """`evaluate` is called on all ranks and returns the same on all; `log` on rank 0, None elsewhere."""
        self.best_step: int | None = None
        self.best_score: float | None = None
        self.since_best = 0
        self._evaluate = evaluate
        self._log = log

    def on_start(self, state: State) -> None:
        """Publish the best step so far, also in a resumed run."""
        self._publish(state)

    def on_step(self, state: State, record: StepRecord) -> None:
        """Validate when it is due."""
        if not validation_due(state):
            return
        evaluation = self._evaluate()
        config = state.config.evaluation
        metric = state.task.metric(config.metric)
        score = self._score(state, evaluation, metric)
        if score is not None:
            if self.best_score is None or better(metric, score, self.best_score):
                self.best_step, self.best_score, self.since_best = state.step, score, 0
            else:
                self.since_best += 1
        if config.patience is not None and self.since_best >= config.patience:
            state.stop = True
        self._publish(state)
        state.results = evaluation.flat("validation") | ({} if score is None else {"validation/score": score})
        if self._log is not None:
            self._log.log(state.step, state.results)
        state.callbacks.on_validation(state, evaluation)

    def state_dict(self) -> dict[str, Any]:
        """The best validation so far."""
        return {"best_step": self.best_step, "best_score": self.best_score, "since_best": self.since_best}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.best_step, self.best_score = saved["best_step"], saved["best_score"]
        self.since_best = saved["since_best"]

    def _publish(self, state: State) -> None:
        state.best_step, state.best_score = self.best_step, self.best_score
        state.validations_since_best = self.since_best

    def _score(self, state: State, evaluation: Evaluation, metric: str) -> float | None:
        """The score, the same on all ranks; None, with a warning on rank 0, if it is undefined or infinite."""
        try:
            score = evaluation.score(metric)
            problem = "" if math.isfinite(score) else f"{metric} is {score}"
        except DataError as error:
            problem = str(error)
        if not problem:
            return score
        if state.mesh.rank == 0:
            best = (
                "there is no best step yet"
                if state.best_step is None
                else f"the best is still step {state.best_step:,}"
            )
            _LOG.warning("the validation of step %s is ignored (%s); %s", f"{state.step:,}", problem, best)
        return None
