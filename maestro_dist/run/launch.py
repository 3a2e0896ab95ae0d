"""From a checked configuration to a finished run: data, lease, MLflow run, then workers under Ray Train or inline."""

from __future__ import annotations

import os

from maestro_dist.callbacks.final_test import RESULT_FILE
from maestro_dist.config.check import check_modalities
from maestro_dist.config.paths import with_absolute_paths
from maestro_dist.config.schema import Config
from maestro_dist.data.manifest import Manifest, load_manifest
from maestro_dist.data.storage import Storage, redact
from maestro_dist.errors import ConfigError
from maestro_dist.parallel.mesh import build_mesh
from maestro_dist.run.lease import Lease
from maestro_dist.run.record import RUN_FILE, RunRecord, begin, finished, is_finished, write
from maestro_dist.system.terminal import interruptible, shielded
from maestro_dist.training.job import Job
from maestro_dist.training.process import environment


def launch(config: Config) -> int:
    """Train `config` to its end, or continue it. Returns the exit code; raises `MaestroError`."""
    from maestro_dist.run.summary import print_start

    config = with_absolute_paths(config)
    for name, value in environment(config).items():
        os.environ.setdefault(name, value)  # an inline run trains in this process
    run = Storage(config.run.storage).join(config.run.name)
    with interruptible():
        if config.run.launcher == "ray" and not is_finished(run):
            from maestro_dist.run.ray_cluster import check_cluster

            check_cluster()  # in seconds, before anything is packed or begun
        manifest, _ = prepare_data(config, begun=run.exists(RUN_FILE))
        print_start(config, manifest)
        record = finished(config, manifest, run)  # before a lease, which would have to be written
        if record:
            return _say_finished(config, run, record)
        lease: Lease | None = None
        try:
            with shielded():  # stopped in between, a lease would be held that nobody gives back
                lease = Lease(run.url)
            return _run(config, manifest, run, lease)
        finally:
            if lease is not None:
                with shielded():
                    lease.release()


def prepare_data(config: Config, *, bare: bool = False, begun: bool = False) -> tuple[Manifest, bool]:
    """Pack `data.source` where `data.url` holds nothing yet; check what a run will need before it takes any worker.

    Returns the manifest and whether there are shards; with `bare` it may come without any. `begun`: the run is no
    new one.
    """
    from maestro_dist.callbacks.configured import check_callbacks
    from maestro_dist.data.augment import check_augment
    from maestro_dist.data.check import check_shards, has_shards
    from maestro_dist.data.fitness import check_metric, check_splits
    from maestro_dist.data.symbols import reads_symbols
    from maestro_dist.training.builder import build_task

    build_mesh(config.mesh, world=config.run.workers)
    check_callbacks(config)
    source = config.data.source
    if source and not Storage(config.data.url).exists("manifest.json"):
        from maestro_dist.data.prepare import check_place, prepare

        check_place(source, config.data.url)
        print(f"packing {source.path} ({source.converter}) to {redact(config.data.url)}", flush=True)
        prepare(source, config.data.url)
    manifest = load_manifest(config.data.url)
    check_splits(config.data, manifest, begun=begun)
    check_modalities(config, manifest.select(config.data.modalities))
    if config.model.normalize == "recording" and not manifest.recording:
        raise ConfigError(
            "model.normalize: recording, but the data has no statistics of recordings; use window or dataset"
        )
    reads_symbols(manifest, config.model, manifest.select(config.data.modalities), config.augment)
    check_augment(config.augment, manifest.select(config.data.modalities))
    task = build_task(config, manifest)
    check_metric(config.data, manifest, task.metric(config.evaluation.metric), task.defined)
    splits = [config.data.train, config.data.validation, config.data.test]
    shards = not bare or has_shards(config.data.url, manifest, splits)
    if shards:
        check_shards(config.data.url, manifest, splits)
    return manifest, shards


def _say_finished(config: Config, run: Storage, record: RunRecord) -> int:
    from maestro_dist.run.summary import print_end

    print(f"run {config.run.name!r} is finished; nothing to do (choose another run.name to train again)")
    print_end(config, run, record)
    return 0


def _run(config: Config, manifest: Manifest, run: Storage, lease: Lease) -> int:
    from maestro_dist.run.summary import print_end
    from maestro_dist.tracking.run import close_run

    record: RunRecord | None = None
    status = "FAILED"
    try:
        with shielded():  # stopped in between, a run would be open that nobody closes
            record = begin(config, manifest, run)
        if record.status == "finished":  # by a driver that has let go of it in the meantime
            return _say_finished(config, run, record)
        if not run.exists(RESULT_FILE):  # it is there where a driver died after all was done
            (_inline if config.run.launcher == "inline" else _ray)(config, _job(config, run, lease, record))
        status = "FINISHED"
    except (KeyboardInterrupt, SystemExit):
        status = "KILLED"
        raise
    finally:
        if record is not None and record.status != "finished":
            with shielded():
                close_run(record.tracking_uri, str(record.mlflow_run), status)
    lease.fence.check()
    write(run, record.model_copy(update={"status": "finished"}))
    print_end(config, run, record)
    return 0


def _job(config: Config, run: Storage, lease: Lease, record: RunRecord) -> Job:
    return Job(
        config=config.model_dump(mode="json"),
        run_url=run.url,
        attempt=lease.attempt,
        tracking_uri=record.tracking_uri,
        mlflow_run=str(record.mlflow_run),
        start_ms=record.start_ms,
        start=record.start,
    )


def _inline(config: Config, job: Job) -> None:
    """The worker function in this process: a mesh of one, no Ray."""
    from maestro_dist.parallel.group import destroy_process_group, init_process_group
    from maestro_dist.training.worker import run_worker

    init_process_group(config.run.device, config.run.timeout_s)
    try:
        run_worker(job, lambda line: print(line, flush=True))
    finally:
        destroy_process_group()


def _ray(config: Config, job: Job) -> None:
    from maestro_dist.run import ray_launcher as launch_ray

    launch_ray.train(config, job)
