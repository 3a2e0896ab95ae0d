"""`run.json`: the identity of a run, its status and its MLflow run."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from maestro_dist.config.dump import to_yaml
from maestro_dist.config.identity import check_resume, run_identity
from maestro_dist.config.schema import Config
from maestro_dist.data.manifest import MANIFEST_NAME, Manifest
from maestro_dist.data.recordings.cut_data import RUN_FOLDER
from maestro_dist.data.storage import ObjectDamaged, ObjectMissing, Storage, redact
from maestro_dist.errors import RunError
from maestro_dist.parallel.mesh import build_mesh
from maestro_dist.training.pretrained_weights import check_pretrained
from maestro_dist.training.teachers import check_teachers

_LOG = logging.getLogger(__name__)

RUN_FILE = "run.json"
DATA_FOLDER = RUN_FOLDER
"""Folder of a run that contains the manifest of its training data."""


class RunRecord(BaseModel):
    """The record of a run. Only the driver with the lease writes it.

    identity    the settings that may not change when the run continues
    data        fingerprint of the manifest
    token       tag of the MLflow run: with it, a driver finds the MLflow run if it died before it stored `mlflow_run`
    mlflow_run  id of the MLflow run; `start_ms` is its start in Unix milliseconds
    start       the initial weights (`run.init_from`), as a fixed checkpoint or model
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["maestro_dist/run/1"] = "maestro_dist/run/1"
    identity: dict[str, Any]
    data: str
    token: str
    tracking_uri: str = ""
    mlflow_run: str | None = None
    start_ms: int = 0
    start: str = ""
    status: Literal["running", "finished"] = "running"


def begin(config: Config, manifest: Manifest, run: Storage, guard: Callable[[], None] = lambda: None) -> RunRecord:
    """Read the run record and compare it with `config`, or create it; then open its MLflow run.

    `guard` is called before each write, and raises if this driver no longer holds the run.

    Raises:
        ConfigError: the run was started with another configuration (the message lists the differences); or the run is
            new, and a model in `run.init_from` or `task.teachers` does not fit.
        RunError: the run was started on other data, the run record is damaged, or a new run finds no tracking server.
    """
    record = read(run)
    if record is None:
        start = check_pretrained(config, manifest)
        check_teachers(config, manifest)
        record = RunRecord(
            identity=run_identity(config), data=manifest.fingerprint(), token=uuid.uuid4().hex, start=start
        )
        # the manifest first: a run that has a record is taken for complete
        run.write(f"{DATA_FOLDER}/{MANIFEST_NAME}", _copy(manifest), guard=guard)
        write(run, record, guard)
    else:
        check_same(config, manifest, record)
        restore_manifest(manifest, run, guard)
    return record if record.status == "finished" else _tracked(config, run, record, guard)


def restore_manifest(manifest: Manifest, run: Storage, guard: Callable[[], None] = lambda: None) -> None:
    """Write the run's copy of its manifest if it has none: earlier versions could be killed before they wrote it.

    `manifest` must be the one with which the run was started (see `check_same`).
    """
    if MANIFEST_NAME not in run.list(DATA_FOLDER):
        _LOG.info("%s was missing; it is written again", run.name(f"{DATA_FOLDER}/{MANIFEST_NAME}"))
        run.write(f"{DATA_FOLDER}/{MANIFEST_NAME}", _copy(manifest), guard=guard)


def _copy(manifest: Manifest) -> bytes:
    return manifest.model_dump_json(indent=1).encode()


def is_finished(found: RunRecord | None) -> bool:
    """Whether the run record, if there is one, says that the run is finished."""
    return found is not None and found.status == "finished"


def check_same(config: Config, manifest: Manifest, record: RunRecord) -> None:
    """Raise ConfigError or RunError if the configuration or the data are not those with which the run was started."""
    if manifest.mixture is not None:
        check_resume(config, record.identity)  # the weights are part of the data
    if record.data != manifest.fingerprint() and (manifest.cut or manifest.divided):
        check_resume(config, record.identity, ["data.lanes"])  # so are the windows and splits that a run makes
    if record.data != manifest.fingerprint():
        places = ", ".join(redact(url) for url in (config.data.url, *(s.url for s in config.data.sources)) if url)
        raise RunError(
            f"run {config.run.name!r} was started on other data than {places} contains now; "
            "choose another run.name or the original data"
        )
    one_lane = len(manifest.split(config.data.train).shards) <= config.data.shuffle_shards
    check_resume(config, record.identity, without_effect=["data.lanes"] if one_lane else [])


def write(run: Storage, record: RunRecord, guard: Callable[[], None] = lambda: None) -> None:
    """Write the run record. `guard` raises if this driver no longer holds the run."""
    run.write(RUN_FILE, record.model_dump_json(indent=1).encode(), guard=guard)


def read(run: Storage) -> RunRecord | None:
    """The run's record; None if the run is new. Raises RunError if it is damaged."""
    remote = run.local is None
    if remote and RUN_FILE not in run.list():
        return None
    try:  # a record that is listed must not be taken for missing: the run would begin again
        return run.parsed(RUN_FILE, _parsed, expected=remote)
    except ObjectMissing:
        return None
    except ObjectDamaged as error:
        raise RunError(
            f"{run.name(RUN_FILE)} is damaged ({error.problem}){error.asked}; repair it, or choose another run.name"
        ) from None


def _parsed(text: bytes) -> RunRecord:
    try:
        return RunRecord.model_validate_json(text)
    except ValidationError as error:
        problem = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}") from None


def _tracked(config: Config, run: Storage, record: RunRecord, guard: Callable[[], None]) -> RunRecord:
    """The run record with its MLflow run open, on the tracking server of the current configuration."""
    from maestro_dist.tracking.run import find_run, open_run, tracking_uri

    uri = tracking_uri(config.tracking.uri, config.run.storage)
    run_id = record.mlflow_run or find_run(uri, config.tracking.experiment, record.token)
    tracked = open_run(
        uri,
        config.tracking.experiment,
        config.run.name,
        run_id=run_id,
        params=run_identity(config),
        tags=_tags(config, run, record.token),
    )
    changes = {"tracking_uri": uri, "mlflow_run": tracked.run_id, "start_ms": tracked.start_ms or record.start_ms}
    record = record.model_copy(update=changes)
    with ThreadPoolExecutor(2) as pool:
        settings = to_yaml(config).encode()
        writes = [
            pool.submit(write, run, record, guard),
            pool.submit(run.write, "config.yaml", settings, guard=guard),
        ]
    for finished in writes:
        finished.result()
    return record


def _tags(config: Config, run: Storage, token: str) -> dict[str, str]:
    from importlib.metadata import version

    packages = ("torch", "deepspeed", "ray", "mlflow", "numpy")
    return {
        "run.token": token,
        "run.storage": run.name(),
        "run.launcher": config.run.launcher,
        "run.device": config.run.device,
        "mesh": build_mesh(config.mesh, world=config.run.workers).table().splitlines()[0],
        "engine": f"ZeRO {config.engine.zero_stage}, micro-batch {config.engine.micro_batch or 'whole share'}",
        "data.url": " ".join(redact(url) for url in (config.data.url, *(s.url for s in config.data.sources)) if url),
        "checkpoints": run.name("checkpoints"),
        "versions": ", ".join(f"{name} {version(name)}" for name in packages),
    }
