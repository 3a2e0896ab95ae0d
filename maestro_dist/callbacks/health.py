"""Watch for losses and gradients that are not finite, and for bad samples."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

from maestro_dist.callbacks.base import Callback, State, StepRecord
from maestro_dist.errors import DataError, NonFiniteError

if TYPE_CHECKING:
    import torch

    from maestro_dist.callbacks.metrics import Metrics, Window

_LOG = logging.getLogger(__name__)
_NAMED = 8


class Health(Callback):
    """Counts steps that are not finite, and bad samples. Stops past `optim.max_skipped` and `data.max_bad_samples`.

    A gradient that is not finite is noticed at once, because the engine skipped the step on all ranks. A loss that is
    not finite although its gradient was is noticed when `Metrics`, which comes before, has summed the losses, so that
    no step waits for the device. Both are the same on all ranks, so all ranks stop together. Bad samples are counted at
    the same time; ranks exchange their numbers only if the sum says that there were any.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._seen: Window | None = None
        self._recent: dict[int, StepRecord] = {}
        self._skipped = 0
        self._bad: set[int] = set()  # of this rank, not yet counted
        self._all_bad: list[int] = []  # of all ranks, since the run began
        self._last_bad = ""

    def on_start(self, state: State) -> None:
        """Publish the bad samples so far, also in a resumed run."""
        state.bad_samples = list(self._all_bad)

    def state_dict(self) -> dict[str, Any]:
        """Skipped steps and bad samples since the run began."""
        return {"skipped": self._skipped, "bad_samples": self._all_bad}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self._skipped, self._all_bad = saved["skipped"], saved["bad_samples"]

    def on_step(self, state: State, record: StepRecord) -> None:
        """Check this step, and the steps whose losses have been summed since. Raises NonFiniteError, DataError."""
        self._bad.update(record.bad_samples)
        for line in record.bad:
            self._last_bad = f", at last {line}"
            _LOG.warning("bad sample skipped: %s", line)
        self._recent[record.step + 1] = record
        if not record.applied:
            self._count(state, record)
        self._look_at_sums(state)

    def on_end(self, state: State) -> None:
        """Check the last sums, and say how many samples were skipped. Raises NonFiniteError, DataError."""
        self._look_at_sums(state)
        if state.bad_samples and state.mesh.rank == 0:
            found, limit = len(state.bad_samples), state.config.data.max_bad_samples
            _LOG.warning(
                "%d training sample%s skipped in this run because of bad data (%d allowed by data.max_bad_samples); "
                "the log names each, and why",
                found,
                " was" if found == 1 else "s were",
                limit,
            )

    def _look_at_sums(self, state: State) -> None:
        window = self._metrics.latest
        if window is None or window is self._seen:
            return
        self._seen = window
        for step, loss in zip(window.steps, window.losses, strict=True):
            record = self._recent.pop(step)
            if record.applied and not math.isfinite(loss):
                self._count(state, record)
        if window.bad:
            self._count_bad(state, window.bad, record.loss.device)

    def _count_bad(self, state: State, most: int, device: torch.device) -> None:
        """Add the bad samples of all ranks, at most `most` of each, to those of the run."""
        own, self._bad = self._bad, set()
        self._all_bad = sorted({*self._all_bad, *_of_all_ranks(own, most, state, device)})
        state.bad_samples = list(self._all_bad)
        limit, found = state.config.data.max_bad_samples, len(state.bad_samples)
        self._metrics.add(state, {"data/bad_samples_total": found})
        if found > limit:
            raise DataError(
                f"{found} different bad samples in this run, data.max_bad_samples is {limit}{self._last_bad}; fix the "
                "data, or raise the limit"
            )

    def _count(self, state: State, record: StepRecord) -> None:
        self._skipped += 1
        allowed = state.config.optim.max_skipped
        where = f"step {record.step + 1} (epoch {record.epoch + 1})"
        what = "loss or gradient is NaN or infinite"
        if self._skipped <= allowed:
            if state.mesh.rank == 0:
                _LOG.warning("%s: %s; skipped on all ranks (%d of %d allowed)", where, what, self._skipped, allowed)
            return
        names = ", ".join(record.keys[:_NAMED]) or "none"
        if len(record.keys) > _NAMED:
            names += f" and {len(record.keys) - _NAMED} more"
        raise NonFiniteError(
            f"{where}: {what} ({allowed} such steps allowed by optim.max_skipped); on rank {state.mesh.rank} "
            f"the loss is {float(record.loss):.4g} and the samples are {names}; look at them, or lower optim.lr"
        )


def _of_all_ranks(numbers: set[int], most: int, state: State, device: torch.device) -> set[int]:
    """The union of the numbers of all ranks. No rank has more than `most`."""
    import torch
    from torch import distributed as dist

    if state.mesh.world == 1:
        return numbers
    own = torch.tensor([*numbers, *[-1] * (most - len(numbers))], device=device)
    parts = [torch.empty_like(own) for _ in range(state.mesh.world)]
    dist.all_gather(parts, own)
    return set(torch.cat(parts).tolist()) - {-1}
