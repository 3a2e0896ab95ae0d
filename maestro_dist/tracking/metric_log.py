"""Metrics: written to disk immediately, sent to MLflow in the background."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from maestro_dist.data.storage import Storage, redact
from maestro_dist.tracking.client import client, short
from maestro_dist.tracking.end_limit import EndLimit, limit_s
from maestro_dist.tracking.metric_copy import MetricCopy
from maestro_dist.tracking.metric_file import History, MetricFile, read_history

if TYPE_CHECKING:
    from mlflow import MlflowClient

_LOG = logging.getLogger(__name__)

_BATCH = 1000  # MLflow's own limit of one log_batch
_LINES = 500
_LONGEST_PAUSE_S = 30.0


class MetricLog:
    """Logs the metrics of one run. Never blocks, never raises, sends no step twice, loses nothing while the disk works.

    `log` appends to `<folder>/metrics.jsonl`. A thread reads the file and sends metrics that MLflow lacks. It asks
    MLflow once for the last step of each metric: steps are sent in order, so MLflow has all earlier steps. While the
    server does not answer, the file grows; a later attempt in the same folder sends the rest.

    The timestamp of a metric is `start_ms + step`. If a batch was stored but the answer was lost, sending it again
    changes nothing: MLflow keeps one row for equal key, step, timestamp and value.

    end_limit  the time that the end of the run may spend on tracking
    unsent     parts of the run, apart from metrics, that the end of the run could not send; None before that
    """

    def __init__(
        self,
        folder: Path | str,
        uri: str,
        run_id: str,
        start_ms: int | None,
        resume_step: int = 0,
        *,
        interval_s: float = 2.0,
    ) -> None:
        """`resume_step`: the step from which this attempt continues. `start_ms`: if None, MLflow is asked for it."""
        self.folder = Path(folder)
        self._file = MetricFile(self.folder, resume_step)
        self._uri, self._run_id, self._start_ms, self._interval_s = uri, run_id, start_ms, interval_s
        self._client: MlflowClient | None = None
        self._sent: dict[str, int] = {}
        self._offset = 0
        self._failing = self._losing = False
        self._all_sent = False
        self._copy: MetricCopy | None = None
        # the driver has the rest of the limit, to set the status of the run
        self.end_limit = EndLimit(uri, limit_s() * 2 / 3)
        self.unsent: Sequence[str] | None = None
        self._deadline = math.inf
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="metrics", daemon=True)
        self._thread.start()

    def log(self, step: int, metrics: dict[str, float], local: dict[str, float] | None = None) -> None:
        """Record the metrics of a step. Steps must not decrease within an attempt. NaN and infinity are left out.

        `local` are numbers for figures. They are too many for MLflow and stay in the file.
        """
        kept = _finite(metrics), _finite(local or {})
        if not any(kept):
            return
        self._file.append(step, *kept)
        if self._file.problem is not None and not self._losing:
            _LOG.warning(
                f"metrics cannot be written to {self._file.path} ({short(self._file.problem)}); training continues "
                "without them until they can"
            )
        self._losing = self._file.problem is not None

    def history(self) -> History:
        """All valid metrics so far, also from earlier attempts in this folder."""
        return read_history(self.folder)

    def copy_to(self, run_url: str, guard: Callable[[], None]) -> None:
        """Copy the file to the run's storage, if that is remote, while MLflow lacks metrics.

        The file may be on a machine that is gone when the run continues. `guard` raises if another driver holds it.
        """
        if Storage(run_url).local is None:
            self._copy = MetricCopy(self.folder, run_url, guard)

    @property
    def failing(self) -> bool:
        """Whether the last attempt to send metrics failed."""
        return self._failing

    def close(self, timeout_s: float = 10.0) -> bool:
        """Send the rest, for at most about `timeout_s`. Returns whether MLflow has all metrics now."""
        self._deadline = time.monotonic() + timeout_s
        self._closing.set()
        self._thread.join(timeout_s)
        self._file.close()
        if self._copy is not None and not self._all_sent:
            self._copy.update()
        if self._file.lost:
            _LOG.warning(f"{self._file.lost:,} lines of metrics could not be written to {self._file.path} and are lost")
        return self._all_sent

    def _work(self) -> None:
        pause = self._interval_s
        while True:
            closing = self._closing.wait(pause)
            try:
                self._send()
            except Exception as error:  # no error of tracking may end training
                self._warn(error)
                if self._copy is not None and not closing:
                    self._copy.update()
                pause = 0.5 if closing else min(2 * pause, _LONGEST_PAUSE_S)
                if closing:
                    time.sleep(max(0.0, min(pause, self._deadline - time.monotonic())))
            else:
                self._recovered()
                pause = self._interval_s
                if closing:
                    self._all_sent = True
                    return
            if time.monotonic() > self._deadline:
                return

    def _send(self) -> None:
        """Send the file from the last offset to its end."""
        if self._client is None:
            self._ask()
        while True:
            lines, offset = self._file.read(self._offset, _LINES)
            if offset == self._offset:
                return
            new, seen = [], dict(self._sent)
            for step, metrics in lines:
                for name, value in metrics.items():
                    if step > seen.get(name, -1):
                        new.append((name, step, value))
                        seen[name] = step
            for start in range(0, len(new), _BATCH):
                self._send_batch(new[start : start + _BATCH])
            self._offset = offset

    def _ask(self) -> None:
        """Ask MLflow once for the last step it has of each metric, and for the start of the run."""
        server = client(self._uri)
        run = server.get_run(self._run_id)
        self._sent = {metric.key: metric.step for metric in run.data.to_proto().metrics}
        if self._start_ms is None:
            self._start_ms = run.info.start_time
        self._client = server

    def _send_batch(self, metrics: list[tuple[str, int, float]]) -> None:
        from mlflow.entities import Metric

        assert self._client is not None and self._start_ms is not None  # noqa: PT018
        rows = [Metric(name, value, self._start_ms + step, step) for name, step, value in metrics]
        self._client.log_batch(self._run_id, metrics=rows, synchronous=True)
        self._sent.update({name: step for name, step, _ in metrics})

    def _warn(self, error: Exception) -> None:
        if self._failing:
            return
        self._failing = True
        if isinstance(error, OSError) and error.filename == str(self._file.path):
            _LOG.warning(
                f"metrics are not sent to tracking, their file cannot be read ({short(error)}); training continues"
            )
            return
        _LOG.warning(
            f"tracking at {redact(self._uri)} does not answer ({short(error)}); "
            f"training continues, metrics are kept in {self._file.path} and sent later"
        )

    def _recovered(self) -> None:
        if self._failing:
            self._failing = False
            _LOG.info(f"tracking at {redact(self._uri)} answers again")


def _finite(metrics: dict[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
