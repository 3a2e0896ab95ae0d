"""Tracking: the MLflow run, metrics that survive a server failure, throughput, figures."""

from maestro_dist.tracking.metric_file import read_history
from maestro_dist.tracking.metric_log import MetricLog
from maestro_dist.tracking.run import TrackedRun, close_run, log_files, open_run, tracking_uri

__all__ = ["MetricLog", "TrackedRun", "close_run", "log_files", "open_run", "read_history", "tracking_uri"]
