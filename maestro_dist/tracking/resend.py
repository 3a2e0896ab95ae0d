"""Send the metrics that MLflow lacks, wherever they are missing."""

from __future__ import annotations

from pathlib import Path

from maestro_dist.tracking.client import client
from maestro_dist.tracking.metric_file import FILE, sent_lines

_BATCH = 1000  # MLflow's own limit of one log_batch


def send_missing_metrics(folder: Path, uri: str, run_id: str) -> int:
    """Send what MLflow lacks of the metrics file in `folder`; returns the number of rows sent. Raises MLflow's errors.

    MLflow is asked for all steps of each metric, one request for each: its last step alone does not show rows that are
    missing in the middle, as after an attempt on a machine that is gone. A step that MLflow has is not sent again,
    also if a later attempt computed another value. Rows are sent in the order of steps, so that an interrupted call
    leaves what `MetricLog` expects.
    """
    from mlflow.entities import Metric

    path = folder / FILE
    if not path.exists():
        return 0
    server = client(uri)
    run = server.get_run(run_id)
    known: dict[str, set[int]] = {}
    rows: dict[tuple[int, str], float] = {}
    for step, metrics in sent_lines(path):
        for name, value in metrics.items():
            if name not in known:
                has_any = name in run.data.metrics
                known[name] = {row.step for row in server.get_metric_history(run_id, name)} if has_any else set()
            if step not in known[name]:
                rows.setdefault((step, name), value)
    ordered = sorted(rows.items(), key=lambda row: row[0][0])
    for start in range(0, len(ordered), _BATCH):
        batch = [
            Metric(name, value, run.info.start_time + step, step)
            for (step, name), value in ordered[start : start + _BATCH]
        ]
        server.log_batch(run_id, metrics=batch, synchronous=True)
    return len(ordered)
