"""Launch a run: data, lease and MLflow run, then workers under Ray Train or inline."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from maestro_dist.callbacks.final_test import RESULT_FILE
from maestro_dist.config.check import check_modalities
from maestro_dist.config.paths import with_absolute_paths
from maestro_dist.config.schema import Config
from maestro_dist.data.manifest import Manifest
from maestro_dist.data.storage import Storage, redact
from maestro_dist.data.storage.request_counts import request_counts
from maestro_dist.data.storage.settings import configure
from maestro_dist.errors import ConfigError, StorageError
from maestro_dist.parallel.mesh import build_mesh
from maestro_dist.run.lease import Lease, wait_until_free
from maestro_dist.run.record import RunRecord, begin, check_same, is_finished, read, restore_manifest, write
from maestro_dist.system.terminal import interruptible, shielded
from maestro_dist.training.job import WorkerJob
from maestro_dist.training.process import environment

_LOG = logging.getLogger(__name__)


def launch(config: Config) -> int:
    """Train a run to its end, or continue it. Returns the exit code; raises `MaestroError`."""
    from maestro_dist.run.summary import print_start

    config = with_absolute_paths(config)
    for name, value in environment(config).items():
        os.environ.setdefault(name, value)  # an inline run trains in this process
    configure(config)
    run = Storage(config.run.storage).join(config.run.name)
    with interruptible(), _requests_logged():
        found = read(run)
        if config.run.launcher == "ray" and not is_finished(found):
            from maestro_dist.run.ray_cluster import check_cluster

            check_cluster()  # takes seconds; before packing
        manifest, _ = prepare_data(config, begun=found is not None)
        print_start(config, manifest)
        if found is not None and is_finished(found):  # before the lease, which needs write access
            check_same(config, manifest, found)
            try:
                restore_manifest(manifest, run)
            except StorageError as error:
                _LOG.warning("%s", error)
            return _print_finished(config, run, found)
        return _with_lease(config, manifest, run, new=found is None)


def _with_lease(config: Config, manifest: Manifest, run: Storage, *, new: bool) -> int:
    """Hold the run while `_run` works. If another driver takes over, the error says so, however `_run` ended."""
    lease: Lease | None = None
    try:
        try:
            newest = wait_until_free(run.url)
            with shielded():  # interrupted here, the lease would never be released
                lease = Lease(run.url, after=newest, on_loss=_interrupter())
            return _run(config, manifest, run, lease, new=new)
        finally:
            if lease is not None:
                with shielded():
                    lease.release()
    except BaseException as error:
        if lease is not None and lease.lost is not None:
            raise lease.lost from error
        raise


def _interrupter() -> Callable[[], None]:
    """A function for other threads that ends what this thread does, as a signal to stop does (see `interruptible`)."""
    if threading.current_thread() is not threading.main_thread():  # Python calls handlers of signals in the main thread
        return lambda: None
    thread = threading.get_ident()

    def interrupt() -> None:
        if callable(signal.getsignal(signal.SIGTERM)):  # else it would end the process without any cleanup
            signal.pthread_kill(thread, signal.SIGTERM)  # a real signal, which also ends a wait in the system

    return interrupt


@contextmanager
def _requests_logged() -> Iterator[None]:
    """Log the requests to remote storage at the end: those of this process, its readers and its workers."""
    before = request_counts()
    try:
        yield
    finally:
        counts = request_counts() - before
        if counts.total:
            _LOG.info("storage: %s", counts)


def prepare_data(config: Config, *, bare: bool = False, begun: bool = False) -> tuple[Manifest, bool]:
    """Pack `data.source` if `data.url` has no data set yet, then check the data before any worker starts.

    Returns the manifest and whether there are shards. `bare`: shards may be missing. `begun`: the run has already
    started.
    """
    from maestro_dist.callbacks.configured import check_callbacks
    from maestro_dist.data.augment import check_augment
    from maestro_dist.data.class_balance import check_class_balance
    from maestro_dist.data.lengths import check_like_lengths
    from maestro_dist.data.load import load_data
    from maestro_dist.data.mixture.manifest import places_of
    from maestro_dist.data.prepare import check_converter, check_place, prepare
    from maestro_dist.data.shard_checks import check_shards, has_shards
    from maestro_dist.data.split_checks import check_metric, check_splits
    from maestro_dist.data.symbols import reads_symbols
    from maestro_dist.training.builder import build_task

    build_mesh(config.mesh, world=config.run.workers)
    check_callbacks(config)
    source = config.data.source
    if source:
        check_converter(source)
    if source and not Storage(config.data.url).exists("manifest.json"):
        check_place(source, config.data.url)
        _LOG.info("packing %s (%s) to %s", source.path, source.converter, redact(config.data.url))
        prepare(source, config.data.url)
    run = Storage(config.run.storage).join(config.run.name)
    manifest = load_data(config.data, run_url=run.url if begun else "")
    check_splits(config.data, manifest, begun=begun)
    check_like_lengths(config.data, manifest)
    check_class_balance(config.data, manifest)
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
    parts = places_of(config.data, manifest)
    shards = not bare or any(has_shards(url, part, splits) for url, part in parts)
    for url, part in parts if shards else ():
        check_shards(url, part, splits)
    return manifest, shards


def _print_finished(config: Config, run: Storage, record: RunRecord) -> int:
    from maestro_dist.run.catch_up import send_unsent
    from maestro_dist.run.summary import print_end

    _LOG.info("run %r is finished; nothing to do (choose another run.name to train again)", config.run.name)
    send_unsent(run, record)
    print_end(config, run, record)
    return 0


def _run(config: Config, manifest: Manifest, run: Storage, lease: Lease, *, new: bool) -> int:
    from maestro_dist.run.catch_up import end_tracking
    from maestro_dist.run.summary import print_end

    record: RunRecord | None = None
    status = "FAILED"
    try:
        with shielded():  # interrupted here, the MLflow run would never be closed
            record = begin(config, manifest, run, lease.fence.check)
        if record.status == "finished":  # by another driver, which has just released the lease
            return _print_finished(config, run, record)
        # a result exists if an earlier driver died after the end of training
        if new or not run.exists(RESULT_FILE):
            (_inline if config.run.launcher == "inline" else _ray)(config, _job(config, run, lease, record))
        status = "FINISHED"
    except (KeyboardInterrupt, SystemExit):
        status = "KILLED"
        raise
    finally:
        if record is not None and record.status != "finished":
            with shielded():
                if lease.is_held():  # else the MLflow run is in use by the driver that has taken over
                    end_tracking(run, record, status)
    write(run, record.model_copy(update={"status": "finished"}), lease.fence.check)
    print_end(config, run, record)
    return 0


def _job(config: Config, run: Storage, lease: Lease, record: RunRecord) -> WorkerJob:
    return WorkerJob(
        config=config.model_dump(mode="json"),
        run_url=run.url,
        attempt=lease.attempt,
        tracking_uri=record.tracking_uri,
        mlflow_run=str(record.mlflow_run),
        start_ms=record.start_ms,
        start=record.start,
    )


def _inline(config: Config, job: WorkerJob) -> None:
    """Run the worker in this process: one rank, no Ray."""
    from maestro_dist.parallel.group import destroy_process_group, init_process_group
    from maestro_dist.training.worker import run_worker

    init_process_group(config.run.device, config.run.timeout_s)
    try:
        run_worker(job)
    finally:
        destroy_process_group()


def _ray(config: Config, job: WorkerJob) -> None:
    from maestro_dist.run.ray_launcher import train

    train(config, job)
