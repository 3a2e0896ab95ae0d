"""Progress lines: one every few steps, one for each validation."""

from __future__ import annotations

import logging
import time
from statistics import fmean
from typing import TYPE_CHECKING

from maestro_dist.callbacks.base import Callback, State, StepRecord
from maestro_dist.tracking.client import short

if TYPE_CHECKING:
    from maestro_dist.callbacks.metrics import Metrics

_LOG = logging.getLogger(__name__)


class Progress(Callback):
    """Logs progress lines on rank 0. It comes after `Metrics` and `Validation`, because it shows their numbers.

    A line that cannot be made is left out, with a warning for the first one.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._start = (0, time.monotonic())
        self._results: dict[str, float] = {}
        self._failed = False

    def on_start(self, state: State) -> None:
        """Start the clock for the estimated time of arrival."""
        self._start = (state.step, time.monotonic())

    def on_step(self, state: State, record: StepRecord) -> None:
        """Log what is new."""
        if state.mesh.rank > 0:
            return
        try:
            self._log_news(state)
        except Exception as error:
            if not self._failed:
                _LOG.warning("a progress line could not be made (%s); training continues", short(error))
            self._failed = True

    def _log_news(self, state: State) -> None:
        window = self._metrics.latest
        due = state.step % state.config.tracking.every_steps == 0 or state.step == state.total_steps
        if due and window is not None and window.steps[-1] == state.step:
            rates, width = window.rates, len(f"{state.total_steps:,}")
            _LOG.info(
                "%s",
                f"step {state.step:>{width},}/{state.total_steps:,}"
                f"  epoch {state.step / state.steps_per_epoch:5.2f}"
                f"  loss {fmean(window.losses):7.4f}"
                f"  {short_number(rates['system/samples_per_s']):>6} samples/s"
                f"  {short_number(rates['system/tokens_per_s']):>6} tokens/s"
                f"  data wait {100 * rates['system/data_wait']:2.0f} %"
                f"  {window.memory / 1e9:4.1f} GB"
                f"  lr {window.lr:.2e}"
                f"  ETA {duration(self._left(state))}",
            )
        if state.results and state.results is not self._results:
            self._results = state.results
            _LOG.info("%s", validation_line(state))

    def _left(self, state: State) -> float:
        step, began = self._start
        return (time.monotonic() - began) / max(state.step - step, 1) * (state.total_steps - state.step)


def validation_line(state: State) -> str:
    """The latest validation in one line."""
    metric = state.task.metric(state.config.evaluation.metric)
    parts = []
    for rate in state.config.evaluation.rates:
        value = state.results.get(f"validation/{metric}" + (f"_missing_{100 * rate:.4g}" if rate else ""))
        if value is not None:
            parts.append(f"{value:.4f} " + (f"with {100 * rate:.4g} % missing" if rate else "complete"))
    score = state.results.get("validation/score")
    line = f"validation  {metric} {', '.join(parts) or 'undefined'}; "
    line += "no score" if score is None else f"score {score:.4f}"
    if state.best_step is not None and state.best_score is not None:
        earlier = f"best {state.best_score:.4f} at step {state.best_step:,}"
        line += f" ({'best so far' if state.best_step == state.step else earlier})"
    return line + (f"; stops: no better one in {state.validations_since_best}" if state.stop else "")


def short_number(value: float) -> str:
    """Three digits with k, M or G: 45,600 -> 45.6k."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.3g}"


def duration(seconds: float) -> str:
    """Hours, minutes and seconds: 3725 -> 1:02:05."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
