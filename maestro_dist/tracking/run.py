"""The MLflow run of a training run: open, continue, tag, close."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maestro_dist.data.storage import Storage, redact
from maestro_dist.errors import RunError
from maestro_dist.tracking.client import client, short

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_LOG = logging.getLogger(__name__)

_PARAM_LENGTH, _TAG_LENGTH, _PARAMS_AT_ONCE = 6000, 5000, 100


@dataclass(frozen=True)
class TrackedRun:
    """An MLflow run. `start_ms` is its start in Unix milliseconds; None if the server did not answer."""

    run_id: str
    start_ms: int | None


def tracking_uri(uri: str | None, storage: str) -> str:
    """The tracking URI: as configured, or SQLite in the run storage (in `./runs` if the storage is remote)."""
    if uri:
        return uri
    folder = Storage(storage).local or Path("runs")
    return f"sqlite:///{folder.expanduser().resolve()}/mlflow.db"


def as_params(content: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted names with text values, credentials in URLs removed."""
    flat: dict[str, str] = {}
    for name, value in content.items():
        if isinstance(value, Mapping) and value:
            flat.update(as_params(value, f"{prefix}{name}."))
        else:
            text = value if isinstance(value, str) else json.dumps(value)
            flat[f"{prefix}{name}"] = redact(text)
    return flat


def open_run(
    uri: str,
    experiment: str,
    name: str,
    *,
    run_id: str | None = None,
    params: Mapping[str, Any] | None = None,
    tags: Mapping[str, Any] | None = None,
) -> TrackedRun:
    """Start an MLflow run, or continue the one with `run_id`.

    `params` (nested or flat) are written once: parameters that a continued run already has do not change. `tags` are
    overwritten. If the server does not know `run_id`, a new run is started. If the server does not answer, the run is
    continued without it. Raises RunError if there is no `run_id` and no server.
    """
    try:
        server = _prepare(uri)
        run = _continued(server, run_id) if run_id else None
        if run is None:
            run = server.create_run(_experiment(server, uri, experiment), run_name=name)
        _describe(server, run, as_params(params or {}), as_params(tags or {}))
        return TrackedRun(run.info.run_id, run.info.start_time)
    except RunError:
        raise
    except Exception as error:
        refused = getattr(error, "error_code", None) == "INVALID_PARAMETER_VALUE"
        problem = f"tracking at {redact(uri)} {'refuses this run' if refused else 'does not answer'} ({short(error)})"
        if run_id is None:
            remedy = "choose another tracking.experiment or run.name" if refused else "start it or set tracking.uri"
            raise RunError(f"{problem}; {remedy}") from error
        _LOG.warning(problem)
        return TrackedRun(run_id, None)


def check_server(uri: str, experiment: str) -> None:
    """Check once that the server answers; for SQLite, create the database. Raises RunError if it does not answer."""
    try:
        _prepare(uri).get_experiment_by_name(experiment)
    except Exception as error:
        problem = f"tracking at {redact(uri)} does not answer ({short(error)})"
        raise RunError(f"{problem}; start it or choose another one") from error


def find_run(uri: str, experiment: str, token: str) -> str | None:
    """Id of the run with this token (tag `run.token`); None if there is no such run, or the server does not answer."""
    try:
        server = _prepare(uri)
        existing = server.get_experiment_by_name(experiment)
        runs = server.search_runs([existing.experiment_id], f"tags.`run.token` = '{token}'") if existing else []
    except Exception as error:
        _LOG.warning(f"tracking at {redact(uri)} does not answer ({short(error)})")
        return None
    return runs[0].info.run_id if runs else None


def is_reachable(uri: str, run_id: str) -> bool:
    """Whether the server finds the run. If not, logs a warning and returns False. Call it before large uploads."""
    try:
        client(uri).get_run(run_id)
    except Exception as error:
        _LOG.warning(f"tracking at {redact(uri)} does not answer ({short(error)})")
        return False
    return True


def close_run(uri: str, run_id: str, status: str) -> bool:
    """Set a run's final status (FINISHED, FAILED or KILLED). Logs a warning and returns False if that fails."""
    try:
        client(uri).set_terminated(run_id, status)
    except Exception as error:
        _LOG.warning(f"could not set the tracked run to {status} ({short(error)})")
        return False
    return True


def tag_run(uri: str, run_id: str, tags: Mapping[str, str]) -> bool:
    """Set tags of a run, without credentials. Logs a warning and returns False if that fails."""
    try:
        from mlflow.entities import RunTag

        marks = [RunTag(key, value[:_TAG_LENGTH]) for key, value in as_params(tags).items()]
        client(uri).log_batch(run_id, tags=marks, synchronous=True)
    except Exception as error:
        _LOG.warning(f"tags were not set in tracking ({short(error)})")
        return False
    return True


def log_files(uri: str, run_id: str, paths: list[Path], folder: str) -> bool:
    """Upload files to the artifact folder `folder` of the run. Logs a warning and returns False if that fails."""
    try:
        server = client(uri)
        for path in paths:
            server.log_artifact(run_id, str(path), folder)
    except Exception as error:
        _LOG.warning(f"{folder} were not uploaded to tracking ({short(error)})")
        return False
    return True


def _prepare(uri: str) -> MlflowClient:
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    return client(uri)


def _experiment(server: MlflowClient, uri: str, name: str) -> str:
    """Id of the experiment; it is created if missing. For SQLite, artifacts are stored next to the database."""
    from mlflow.exceptions import MlflowException

    existing = server.get_experiment_by_name(name)
    if existing is None:
        artifacts = None
        if uri.startswith("sqlite:///"):
            artifacts = (Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts").resolve().as_uri()
        try:
            return server.create_experiment(name, artifact_location=artifacts)
        except MlflowException:
            existing = server.get_experiment_by_name(name)  # another run has just created it
            if existing is None:
                raise
    if existing.lifecycle_stage != "active":
        raise RunError(f"MLflow experiment {name!r} is deleted; restore it or set another tracking.experiment")
    return existing.experiment_id


def _continued(server: MlflowClient, run_id: str) -> Run | None:
    from mlflow.exceptions import MlflowException

    try:
        run = server.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    server.update_run(run_id, status="RUNNING")
    return run


def _describe(server: MlflowClient, run: Run, params: dict[str, str], tags: dict[str, str]) -> None:
    from mlflow.entities import Param, RunTag

    new = [Param(key, value[:_PARAM_LENGTH]) for key, value in params.items() if key not in run.data.params]
    marks = [RunTag(key, value[:_TAG_LENGTH]) for key, value in tags.items()]
    for start in range(0, max(len(new), len(marks)), _PARAMS_AT_ONCE):
        chosen = slice(start, start + _PARAMS_AT_ONCE)
        server.log_batch(run.info.run_id, params=new[chosen], tags=marks[chosen], synchronous=True)
