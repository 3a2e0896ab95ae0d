"""`WorkerJob`: the message from a driver to its workers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class WorkerJob:
    """What a driver sends to its workers when it starts them, as plain values. It is not a job of Ray.

    config        the resolved configuration as plain JSON
    run_url       folder or URL of the run
    attempt       number of this attempt, from the lease
    tracking_uri  MLflow server or database, with the id of the run (`mlflow_run`) and its start time in ms (`start_ms`)
    start         URL of the pretrained weights; "" without any
    """

    config: dict[str, Any]
    run_url: str
    attempt: int
    tracking_uri: str
    mlflow_run: str
    start_ms: int
    start: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for Ray's train loop configuration."""
        return asdict(self)
