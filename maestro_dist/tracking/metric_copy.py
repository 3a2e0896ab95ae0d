"""A copy of `metrics.jsonl` in remote run storage, for a run whose rank 0 moves to another machine."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from maestro_dist.data.storage import ObjectMissing, Storage
from maestro_dist.tracking.client import short
from maestro_dist.tracking.metric_file import FILE

_LOG = logging.getLogger(__name__)

_PATIENCE_S = 10.0  # the next attempt comes soon


class MetricCopy:
    """Copies the metrics file of `folder` to the run's storage. `guard` raises if another driver holds the run."""

    def __init__(self, folder: Path, run_url: str, guard: Callable[[], None]) -> None:
        self._path, self._run = folder / FILE, Storage(run_url, patience_s=_PATIENCE_S)
        self._guard = guard
        self._copied, self._failing = -1, False
        self._lock = threading.Lock()  # the newer copy must be written last

    def update(self) -> None:
        """Copy the file if it has grown. Logs a warning if that fails."""
        with self._lock:
            try:
                data = self._path.read_bytes()
                if len(data) != self._copied:
                    self._run.write(FILE, data, guard=self._guard)
                self._copied, self._failing = len(data), False
            except Exception as error:  # no error of tracking may end training
                if not self._failing:
                    _LOG.warning(f"metrics that tracking lacks are only in {self._path} ({short(error)})")
                self._failing = True


def fetch_metrics(folder: Path, run_url: str) -> None:
    """Add to the metrics file of `folder` what the copy in remote storage has and it lacks. Logs a warning on failure.

    Each attempt begins with a line that says from which step it continues. So a copy made on another machine can be
    added at the end: its first such line drops steps of this file that were lost work.
    """
    run = Storage(run_url)
    if run.local is not None:
        return
    path = folder / FILE
    try:
        try:
            copy = run.read(FILE)
        except ObjectMissing:
            return
        own = path.read_bytes() if path.exists() else b""
        if own.startswith(copy):
            return
        more = copy.removeprefix(own) if copy.startswith(own) else b"\n" + copy
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(more)
    except Exception as error:  # no error of tracking may end training
        _LOG.warning(f"the copy of the metrics in {run.name(FILE)} was not read ({short(error)})")
