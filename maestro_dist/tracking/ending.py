"""The last step of tracking in a worker: close the metric log, note what was not sent."""

from __future__ import annotations

import logging

from maestro_dist.data.storage import Storage
from maestro_dist.tracking.best_effort import BestEffort
from maestro_dist.tracking.figures import FOLDER, figure_files
from maestro_dist.tracking.metric_log import MetricLog
from maestro_dist.tracking.unsent import FIGURES, METRICS, Unsent, write_unsent

_LOG = logging.getLogger(__name__)

_CLOSE_S, _CLOSE_FAILING_S, _LEAST_S = 10.0, 3.0, 0.5


def close_log(log: MetricLog, run_url: str) -> None:
    """Close the log of a run that ends, or fails. If the run has ended, note in its storage what MLflow lacks.

    Waits no longer than the limit of the end of a run allows, and only seconds for a server that does not answer.
    """
    most = _CLOSE_FAILING_S if log.failing else _CLOSE_S
    complete = log.close(max(_LEAST_S, min(most, log.end_limit.left_s)))
    if log.unsent is None:
        if not complete:
            _LOG.warning(
                f"tracking did not accept all metrics; they are kept in {log.folder} and sent when this run continues"
            )
        return
    run, parts = Storage(run_url), list(log.unsent)
    if run.local is None and FIGURES in parts:
        effort = BestEffort()
        for path in figure_files(log.folder):  # another machine may have to send them
            effort.attempt(
                "a copy of the figures in storage",
                lambda path=path: run.write(f"{FOLDER}/{path.name}", path.read_bytes()),  # type: ignore[misc]
            )
        if effort.left_out:
            _LOG.warning(f"left out: {effort.text()}")
    write_unsent(run, Unsent((*([] if complete else [METRICS]), *parts)))
