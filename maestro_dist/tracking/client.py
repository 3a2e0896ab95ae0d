"""The MLflow client: imported on first use, with quiet settings."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from maestro_dist.data.storage import redact

if TYPE_CHECKING:
    from mlflow import MlflowClient

ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # it may hold credentials
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # Wait seconds for a server that does not answer, not four minutes (MLflow's default): unsent metrics are kept.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
_NOISY_LOGGERS = (
    "alembic",
    "alembic.runtime.migration",
    "mlflow.models.signature",
    "mlflow.pyfunc",
    "mlflow.store.db.utils",
    "mlflow.tracking.fluent",
)


def client(uri: str) -> MlflowClient:
    """A client for the tracking server or database. Environment variables that are already set are not changed."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    for name in _NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return MlflowClient(tracking_uri=uri)


def short(error: Exception) -> str:
    """The first line of an error's text, without credentials. Never raises."""
    try:
        lines = str(error).strip().splitlines()
    except Exception:  # an error without a working __str__
        lines = []
    return redact(lines[0] if lines else type(error).__name__)[:200]
