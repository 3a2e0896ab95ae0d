"""Progress lines: one every few steps, one for each validation."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable
from statistics import fmean
from typing import TYPE_CHECKING

from maestro_dist.callbacks.base import Callback, State, StepRecord
from maestro_dist.tracking.client import short

if TYPE_CHECKING:
    from maestro_dist.callbacks.metrics import Metrics

_LOG = logging.getLogger(__name__)

Say = Callable[[str], None]
"""Shows a line to the person who started the run."""


def say_line(text: str) -> None:
    """Print a line at once, also into a pipe or a job's log."""
    print(text, flush=True)


def never_raising(say: Say) -> Say:
    """`say` without its errors: a closed terminal, or a log on a full disk, must not end a run."""

    def quiet(text: str) -> None:
        try:
            say(text)
        except BrokenPipeError:  # nobody reads any more; at exit Python would flush once more, and fail
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        except Exception:
            return

    return quiet


class Progress(Callback):
    """Prints progress lines on rank 0. It comes after `Metrics` and `Validation`, because it shows their numbers.

    A line that cannot be made or printed is left out, with a warning for the first one.
    """

    def __init__(self, metrics: Metrics, say: Say = say_line) -> None:
        self._metrics = metrics
        self._say = say
        self._start = (0, time.monotonic())
        self._results: dict[str, float] = {}
        self._failed = False

    def on_start(self, state: State) -> None:
        """Start the clock for the estimated time of arrival."""
        self._start = (state.step, time.monotonic())

    def on_step(self, state: State, record: StepRecord) -> None:
        """Print what is new."""
        if state.mesh.rank > 0:
            return
        try:
            self._say_what_is_new(state)
        except Exception as error:
            if not self._failed:
                _LOG.warning(f"a line of progress could not be shown ({short(error)}); training goes on")
            self._failed = True

    def _say_what_is_new(self, state: State) -> None:
        window = self._metrics.latest
        due = state.step % state.config.tracking.every_steps == 0 or state.step == state.total_steps
        if due and window is not None and window.steps[-1] == state.step:
            rates, width = window.rates, len(f"{state.total_steps:,}")
            self._say(
                f"step {state.step:>{width},}/{state.total_steps:,}"
                f"  epoch {state.step / state.steps_per_epoch:5.2f}"
                f"  loss {fmean(window.losses):7.4f}"
                f"  {short_number(rates['system/samples_per_s']):>6} samples/s"
                f"  {short_number(rates['system/tokens_per_s']):>6} tokens/s"
                f"  data wait {100 * rates['system/data_wait']:2.0f} %"
                f"  {window.memory / 1e9:4.1f} GB"
                f"  lr {window.lr:.2e}"
                f"  ETA {duration(self._left(state))}"
            )
        if state.results and state.results is not self._results:
            self._results = state.results
            self._say(validation_line(state))

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
