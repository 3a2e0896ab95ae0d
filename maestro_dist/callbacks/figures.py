"""Pictures of a run while it trains, and the data that they show."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from maestro_dist.callbacks.base import Callback, State, StepRecord
from maestro_dist.evaluation.table import metric_label
from maestro_dist.tracking.best_effort import BestEffort
from maestro_dist.tracking.figures import Story, log_figures
from maestro_dist.tracking.plots import MissingCurve

if TYPE_CHECKING:
    from maestro_dist.evaluation import Evaluation
    from maestro_dist.tracking import MetricLog
    from maestro_dist.tracking.metric_file import History

_LOG = logging.getLogger(__name__)

_EVERY_S = 60.0


def story_of(state: State, history: History, evaluation: Evaluation) -> Story:
    """The content of the pictures: the metrics so far, and an evaluation (a validation, or the final test)."""
    metric = state.task.metric(state.config.evaluation.metric)
    names: Sequence[str] = [modality.name for modality in state.modalities]
    count = f"{len(names)} modalit{'y' if len(names) == 1 else 'ies'}"
    return Story(
        title=f"{state.config.run.name}: {state.manifest.name}, {count}, {evaluation.split} split",
        history=history,
        modalities=names,
        metric=metric,
        label=metric_label(metric),
        classes=state.manifest.classes,
        confusion=evaluation.confusion,
        confused=evaluation.confused,
        counted="samples" if evaluation.labels is None else "parts",
        missing=missing_curve(evaluation, metric),
        sets=[load.label(names) for load in evaluation.loads or ()],
        set_loads=np.array([load.tokens for load in evaluation.loads]).swapaxes(0, 1) if evaluation.loads else None,
    )


def missing_curve(evaluation: Evaluation, metric: str) -> MissingCurve | None:
    """The metric against the missing rate; None where it is undefined."""
    means = [evaluation.mean(metric, rate) for rate in evaluation.rates]
    known = [mean for mean in means if mean is not None]
    if len(known) < len(means):
        return None
    spreads = [evaluation.spread(metric, rate) or 0.0 for rate in evaluation.rates]
    baseline = evaluation.majority() if metric == "accuracy" else None
    return MissingCurve(metric_label(metric), evaluation.rates, known, spreads, baseline)


class Figures(Callback):
    """Draws the pictures again after a validation, at most once a minute, in a thread of rank 0."""

    def __init__(self, log: MetricLog | None, uri: str, run_id: str) -> None:
        """`log` on rank 0, None elsewhere."""
        self._log, self._uri, self._run_id = log, uri, run_id
        self._latest: Evaluation | None = None
        self._next = time.monotonic() + _EVERY_S
        self._thread: threading.Thread | None = None
        self._warned = False

    def on_validation(self, state: State, evaluation: Evaluation) -> None:
        """Keep the evaluation for the next drawing."""
        self._latest = evaluation

    def on_step(self, state: State, record: StepRecord) -> None:
        """Start drawing if there is a new evaluation and the last drawing is finished and a minute old."""
        evaluation, log = self._latest, self._log
        if log is None or evaluation is None or time.monotonic() < self._next:
            return
        if self._thread is not None and self._thread.is_alive():
            return
        self._latest, self._next = None, time.monotonic() + _EVERY_S
        effort = BestEffort()
        story = effort.attempt("pictures", lambda: story_of(state, log.history(), evaluation))
        if story is None:
            self._warn(effort)
            return

        def show() -> None:
            log_figures(story, log.folder, self._uri, self._run_id, effort)
            self._warn(effort)

        self._thread = threading.Thread(target=show, name="figures", daemon=True)
        self._thread.start()

    def on_end(self, state: State) -> None:
        """Stop: the end of the run draws all pictures again."""
        self.close()

    def close(self) -> None:
        """Wait for the current drawing, as long as the end of a run may wait for tracking."""
        if self._thread is not None and self._log is not None:
            self._log.end_limit.join(self._thread)
            self._thread = None

    def _warn(self, effort: BestEffort) -> None:
        """Warn once: what fails now will fail again in a minute."""
        if effort.left_out and not self._warned:
            self._warned = True
            _LOG.warning(f"left out: {effort.text()}; training goes on")
