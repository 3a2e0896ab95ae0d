"""From a checked configuration to a finished run: data, lease, MLflow run, then workers under Ray Train or inline."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from maestro_dist.config.check import check_modalities, check_resume, identity
from maestro_dist.config.load import to_yaml
from maestro_dist.config.schema import Config
from maestro_dist.data.manifest import Manifest, load_manifest
from maestro_dist.data.storage import ObjectMissing, Storage, redact
from maestro_dist.errors import ConfigError, RunError
from maestro_dist.lease import Lease
from maestro_dist.parallel.mesh import build_mesh
from maestro_dist.worker import Job

RUN_FILE = "run.json"


def launch(config: Config) -> int:
    """Train `config` to its end, or continue it. Returns the exit code; raises `MaestroError`."""
    from maestro_dist.summary import print_start

    config = absolute(config)
    manifest = prepare_data(config)
    print_start(config, manifest)
    run = Storage(config.run.storage).join(config.run.name)
    lease = Lease(run.url)
    try:
        with _sigterm_as_interrupt():
            return _run(config, manifest, run, lease)
    finally:
        lease.release()


def dry_run(config: Config) -> int:
    """Everything up to the first optimizer step: data, mesh, model, one batch, its loss, the memory estimate."""
    from maestro_dist.summary import print_start
    from maestro_dist.worker import first_batch

    config = absolute(config)
    manifest = prepare_data(config)
    print_start(config, manifest)
    loss, samples = first_batch(config)
    print(f"first micro-batch: {samples} samples, loss {loss:.4f} before any step")
    print("dry run: nothing was trained and nothing was written to the run")
    return 0


def absolute(config: Config) -> Config:
    """The configuration with local paths made absolute: workers may have another current folder."""

    def full(path: str) -> str:
        return path if "://" in path else str(Path(path).expanduser().absolute())

    data = config.data
    source = data.source and data.source.model_copy(update={"path": full(data.source.path)})
    data = data.model_copy(
        update={"url": full(data.url), "source": source, "cache": full(data.cache) if data.cache else None}
    )
    run = config.run.model_copy(update={"storage": full(config.run.storage)})
    return config.model_copy(update={"data": data, "run": run})


def prepare_data(config: Config) -> Manifest:
    """Pack `data.source` where `data.url` holds nothing yet; check what a run will need before it takes any worker."""
    from maestro_dist.data.check import check_shards

    build_mesh(config.mesh, world=config.run.workers)
    source = config.data.source
    if source and not Storage(config.data.url).exists("manifest.json"):
        from maestro_dist.data.prepare import prepare

        print(f"packing {source.path} ({source.converter}) to {redact(config.data.url)}", flush=True)
        prepare(source, config.data.url)
    manifest = load_manifest(config.data.url)
    check_modalities(config, manifest.select(config.data.modalities))
    if config.model.normalize == "recording" and not manifest.recording:
        raise ConfigError(
            "model.normalize: recording, but the data has no statistics of recordings; use window or dataset"
        )
    check_shards(config.data.url, manifest, [config.data.train, config.data.validation, config.data.test])
    return manifest


def _run(config: Config, manifest: Manifest, run: Storage, lease: Lease) -> int:
    from maestro_dist.summary import print_end
    from maestro_dist.tracking.run import close_run

    record = _begin(config, manifest, run)
    if record["status"] == "finished":
        print(f"run {config.run.name!r} is finished; nothing to do (choose another run.name to train again)")
        print_end(config, run, record["mlflow_run"])
        return 0
    job = Job(
        config=config.model_dump(mode="json"),
        run_url=run.url,
        attempt=lease.attempt,
        tracking_uri=record["tracking_uri"],
        mlflow_run=record["mlflow_run"],
        start_ms=record["start_ms"],
    )
    status = "FAILED"
    try:
        (_inline if config.run.launcher == "inline" else _ray)(config, job)
        status = "FINISHED"
    except (KeyboardInterrupt, SystemExit):
        status = "KILLED"
        raise
    finally:
        close_run(job.tracking_uri, job.mlflow_run, status)
    _write(run, {**record, "status": "finished"})
    print_end(config, run, job.mlflow_run)
    return 0


def _begin(config: Config, manifest: Manifest, run: Storage) -> dict[str, Any]:
    """The run's record: read and compared when it is there, else made together with its MLflow run."""
    from maestro_dist.tracking.run import open_run, tracking_uri

    try:
        record = json.loads(run.read(RUN_FILE))
    except ObjectMissing:
        record = None
    if record:
        if record["data"] != manifest.fingerprint():
            raise RunError(
                f"run {config.run.name!r} was begun on other data than {redact(config.data.url)} holds now; "
                "choose another run.name or the old data"
            )
        check_resume(config, record["identity"])
        if record["status"] == "finished":
            return record
    uri = tracking_uri(config.tracking.uri, config.run.storage)
    tracked = open_run(
        uri,
        config.tracking.experiment,
        config.run.name,
        run_id=record and record["mlflow_run"],
        params=identity(config),
        tags=_tags(config, run),
    )
    record = record or {
        "format": "maestro_dist/run/1",
        "identity": identity(config),
        "data": manifest.fingerprint(),
        "tracking_uri": uri,
        "mlflow_run": tracked.run_id,
        "start_ms": tracked.start_ms,
        "status": "running",
    }
    _write(run, record)
    run.write("config.yaml", to_yaml(config).encode())
    return record


def _write(run: Storage, record: dict[str, Any]) -> None:
    run.write(RUN_FILE, json.dumps(record, indent=1).encode())


def _tags(config: Config, run: Storage) -> dict[str, str]:
    from importlib.metadata import version

    packages = ("torch", "deepspeed", "ray", "mlflow", "numpy")
    return {
        "run.storage": run.name(),
        "run.launcher": config.run.launcher,
        "run.device": config.run.device,
        "mesh": build_mesh(config.mesh, world=config.run.workers).table().splitlines()[0],
        "engine": f"ZeRO {config.engine.zero_stage}, micro-batch {config.engine.micro_batch or 'whole share'}",
        "data.url": redact(config.data.url),
        "checkpoints": run.name("checkpoints"),
        "versions": ", ".join(f"{name} {version(name)}" for name in packages),
    }


def _inline(config: Config, job: Job) -> None:
    """The worker function in this process: a mesh of one, no Ray."""
    from maestro_dist.parallel.group import destroy_process_group, init_process_group
    from maestro_dist.worker import run_worker

    init_process_group(config.run.device, config.run.timeout_s)
    try:
        run_worker(job, lambda line: print(line, flush=True))
    finally:
        destroy_process_group()


def _ray(config: Config, job: Job) -> None:
    from maestro_dist import launch_ray

    launch_ray.train(config, job)


@contextlib.contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """SIGTERM ends the run as Ctrl-C does: MLflow run closed, lease given back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
