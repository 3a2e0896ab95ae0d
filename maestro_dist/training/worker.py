"""One worker: grid of ranks -> stream -> model -> engine -> `fit`."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from maestro_dist.callbacks.base import Callbacks, State
from maestro_dist.callbacks.checkpointing import callback_states, resume
from maestro_dist.checkpoint.resume import ResumePoints
from maestro_dist.config.load import parse
from maestro_dist.config.schema import Config
from maestro_dist.data.manifest import Manifest
from maestro_dist.data.storage import Storage, redact
from maestro_dist.data.storage.settings import configure
from maestro_dist.data.user_folders import user_folder
from maestro_dist.parallel.mesh import build_mesh
from maestro_dist.training.builder import assemble
from maestro_dist.training.evaluation import evaluate_on
from maestro_dist.training.job import WorkerJob
from maestro_dist.training.process import prepare_process

if TYPE_CHECKING:
    from maestro_dist.checkpoint import Saver
    from maestro_dist.evaluation import Evaluation
    from maestro_dist.model.maestro import Trunk
    from maestro_dist.tracking import MetricLog

_LOG = logging.getLogger(__name__)


def run_worker(job: WorkerJob, failed: Callable[[Exception], None] = lambda error: None) -> None:
    """Train, test, export. Called on every rank, and again from the top after a failure.

    A process group must exist. `failed` is called with any error first, because other ranks may be waiting for this
    one; the callbacks' `on_exception` comes next, and then everything that is open is closed.

    Raises:
        MaestroError: for what a user can fix.
    """
    listeners: list[Callable[[Exception], None]] = [failed]
    with ExitStack() as stack:
        try:
            _train(job, stack, listeners)
        except Exception as error:
            for listener in listeners:
                listener(error)
            raise


def _train(job: WorkerJob, stack: ExitStack, listeners: list[Callable[[Exception], None]]) -> None:
    import torch.distributed as dist

    from maestro_dist.checkpoint import Saver
    from maestro_dist.tracking.ending import close_log
    from maestro_dist.training.feature_scaling import standardise
    from maestro_dist.training.loop import fit
    from maestro_dist.training.pretrained_weights import load_pretrained
    from maestro_dist.training.teachers import teacher_predictions

    config = _within_time_limit(parse(job.config, "the driver's configuration"))
    configure(config)
    prepare_process(config)
    mesh = build_mesh(config.mesh, world=dist.get_world_size(), rank=dist.get_rank())
    checkpoints = ResumePoints(job.run_url, mesh)
    found = checkpoints.next()

    def initialize(model: Trunk, manifest: Manifest) -> None:
        if found:
            return
        standardise(model, config, manifest, mesh)
        if job.start:
            loaded, of = load_pretrained(model, job.start)
            if mesh.rank == 0:
                _LOG.info("starts with %d of %d parameters from %s", loaded, of, redact(job.start))

    state, stream = assemble(config, mesh, initialize, job.run_url)
    stack.callback(state.engine.close)
    if found:
        found = checkpoints.restore(state.engine, found)
        resume(state, found.step, found.position, found.metadata)
        if mesh.rank == 0:
            _LOG.info("%s", f"resumes at step {state.step:,} of {state.total_steps:,} from {found.url}")
    if config.task.teachers:
        targets, computed = teacher_predictions(config, state.manifest, mesh, job.run_url, state.engine.device)
        state.task.learn_from(targets, config.task.teacher_share)
        if computed and mesh.rank == 0:
            count = f"{len(targets):,}"
            _LOG.info("learns from %d teachers: predictions for %s training samples", len(config.task.teachers), count)
    patience_s = config.run.storage_patience_s  # another rank may wait as long before it has written its part
    saver = Saver(
        job.run_url,
        mesh,
        attempt=job.attempt,
        keep_last=config.checkpoint.keep_last,
        timeout_s=600.0 + patience_s,
    )
    if mesh.rank == 0:
        for line in stream.notes():
            _LOG.info("%s", line)
        for line in stream.warnings():
            _LOG.warning("%s", line)
    log = _metric_log(job, state, saver.fence.check) if mesh.rank == 0 else None
    if log is not None:
        stack.callback(close_log, log, job.run_url)
    callbacks = _callbacks(job, state, saver, log)
    stack.callback(callbacks.close)
    if found:
        callbacks.load_state_dict(callback_states(found.metadata))
    listeners.append(partial(callbacks.on_exception, state))
    fit(state, stream.batches, callbacks)


def _within_time_limit(config: Config) -> Config:
    """A rank gives up before the collectives of other ranks time out, so that the error names what it waited for."""
    data, run = config.data, config.run
    limit = max(1, run.timeout_s * 4 // 5)
    data = data.model_copy(update={"timeout_s": min(data.timeout_s, limit)})
    if run.workers > 1:
        run = run.model_copy(update={"storage_patience_s": min(run.storage_patience_s, limit)})
    return config.model_copy(update={"data": data, "run": run})


def _metric_log(job: WorkerJob, state: State, fence: Callable[[], None]) -> MetricLog:
    from maestro_dist.tracking import MetricLog
    from maestro_dist.tracking.metric_copy import fetch_metrics

    folder = work_folder(job.run_url)
    if state.step:
        fetch_metrics(folder, job.run_url)  # of a rank 0 on another machine
    log = MetricLog(folder, job.tracking_uri, job.mlflow_run, job.start_ms, resume_step=state.step)
    log.copy_to(job.run_url, fence)
    return log


def work_folder(run_url: str) -> Path:
    """The folder of the run. If its storage is remote: a folder on this machine, for metrics and pictures."""
    local = Storage(run_url).local_path()
    if local is not None:
        return local
    digest = hashlib.sha256(run_url.encode()).hexdigest()[:12]
    return user_folder("runs") / f"{run_url.rsplit('/', 1)[-1]}-{digest}"


def _callbacks(job: WorkerJob, state: State, saver: Saver, log: MetricLog | None) -> Callbacks:
    """All callbacks, in the order in which they depend on each other."""
    from maestro_dist.callbacks.checkpointing import Checkpointing
    from maestro_dist.callbacks.configured import configured_callbacks
    from maestro_dist.callbacks.figures import Figures
    from maestro_dist.callbacks.final_test import FinalTest
    from maestro_dist.callbacks.health import Health
    from maestro_dist.callbacks.metrics import Metrics
    from maestro_dist.callbacks.progress import Progress
    from maestro_dist.callbacks.validation import Validation
    from maestro_dist.evaluation import EvaluationPlan

    evaluation, data = state.config.evaluation, state.config.data

    def validate() -> Evaluation:
        return evaluate_on(state, EvaluationPlan(data.validation, evaluation.rates, evaluation.draws[:1]))

    def test() -> Evaluation:
        keep = evaluation.predictions and state.task.kind != "pretrain"  # pre-training has no predictions
        plan = EvaluationPlan(data.test, evaluation.test_rates, evaluation.draws, keep_predictions=keep)
        return evaluate_on(state, plan)

    metrics, validation = Metrics(log), Validation(validate, log)
    fence = saver.fence.check
    return Callbacks(
        [
            metrics,
            Health(metrics),
            validation,
            Figures(log, job.tracking_uri, job.mlflow_run),
            *configured_callbacks(state.config),  # before Checkpointing, which saves their states
            Checkpointing(saver, fence),
            Progress(metrics),
            FinalTest(
                test,
                log,
                fence=fence,
                run_url=job.run_url,
                tracking_uri=job.tracking_uri,
                mlflow_run=job.mlflow_run,
            ),
        ]
    )
