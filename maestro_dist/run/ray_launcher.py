"""The Ray launcher: a Ray Train run on a cluster, or on a local Ray that is stopped at the end."""

from __future__ import annotations

import logging
import os
import threading
import time
from contextlib import suppress
from typing import Any

from maestro_dist.config.schema import Config
from maestro_dist.data.storage.request_counts import RequestCounts, add_counts, request_counts
from maestro_dist.errors import RunError
from maestro_dist.parallel.failure import Report, leave_groups, report_of, root_cause
from maestro_dist.run.ray_cluster import Head, cluster, lacks, prepare_environment, train_folder
from maestro_dist.run.ray_log import LogKeeper, log_actor
from maestro_dist.system.logging_setup import LEVEL_VARIABLE, ROOT, configure_logging
from maestro_dist.training.job import WorkerJob
from maestro_dist.training.process import environment
from maestro_dist.training.worker import run_worker

_LOG = logging.getLogger(__name__)
_WORKER_ENVIRONMENT = {"MLFLOW_DISABLE_TELEMETRY": "true"}
_POLL_S = 0.3
_LOG_S = 30.0
_CONSOLE_S = 600.0
"""Time limit for an answer of the console, which may start slowly on a busy machine."""
_REPORT_S = 30.0
"""Time limit for a failed worker to report its error, while other ranks wait for it."""
# The run waits up to a week for workers that lack resources, one hour at a time. Workers that fail to
# start fail within seconds, and end the run after `_STARTS` failures.
_START_S, _STARTS = 3600, 168
_LOST_DELAY_S = 3.0
"""Delay of the error of a rank that has only lost another rank, so that the other rank's error arrives first."""


def train(config: Config, job: WorkerJob) -> None:
    """Run the worker function on `run.workers` workers until it ends.

    Ray restarts failed workers up to `run.max_failures` times; they continue from the newest checkpoint. An error that
    would occur again (bad data, a NaN) ends the run immediately.

    Raises:
        MaestroError: the error of the worker that failed first, with its rank.
    """
    prepare_environment()
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(_START_S))
    console_of = log_actor(_Console, config.run.workers, config.run.timeout_s)
    with train_folder() as folder, cluster(config), console_of as console:
        import ray
        from ray.train import TrainingFailedError

        failure: BaseException | None = None
        try:
            head = Head(ray.get_runtime_context().gcs_address)
            _fit(_trainer(config, job, console, folder), config, console, head)
        except TrainingFailedError as error:
            failure = error
        except ray.exceptions.RayError as error:
            raise RunError(f"Ray gave up: {_text(error)}") from error
        add_counts(RequestCounts.from_list(_answer(console.requests)))
        reports: list[Report] = _answer(console.reports)
        death = _death_message(failure)
        if reports and not (death and all(report.lost for report in reports)):
            raise root_cause(reports, config.run.workers, config.run.timeout_s) from failure
        if failure:
            raise RunError(death or f"Ray Train gave up: {_text(failure)}") from failure


def _fit(trainer: Any, config: Config, console: Any, head: Head) -> None:
    """Run `trainer.fit()` in a thread: in the main thread Ray Train would replace the signal handlers.

    Logs every 30 s that the run waits for workers. Returns early if an error is final: Ray would restart the workers
    without effect.
    """
    import ray

    outcome: list[BaseException] = []

    def run() -> None:
        try:
            trainer.fit()
        except BaseException as error:  # raised again below, in the main thread
            outcome.append(error)

    thread = threading.Thread(target=run, name="fit", daemon=True)
    thread.start()
    waiting_since = last_logged = time.monotonic()
    while thread.is_alive():
        thread.join(_POLL_S)
        head.check()
        final, begun = _answer(console.state)
        if final:
            return
        now = time.monotonic()
        if begun == config.run.workers:
            waiting_since = last_logged = now
        elif now - last_logged >= _LOG_S:
            last_logged = now
            lack = lacks(config, ray.cluster_resources())
            missing = f"{config.run.workers - begun} of {config.run.workers} workers to start"
            needs = f": they need {lack}" if lack else ""
            _LOG.info("waiting for %s, for %.0f s now%s", missing, now - waiting_since, needs)
    if outcome:
        raise outcome[0]


def _answer(method: Any) -> Any:
    """The console's answer."""
    import ray

    try:
        return ray.get(method.remote(), timeout=_CONSOLE_S)
    except ray.exceptions.RayError as error:
        raise RunError(
            f"the process that forwards the workers' reports is gone ({_text(error)}); was it killed, or "
            "its node? Start the same command again to continue"
        ) from error


def _trainer(config: Config, job: WorkerJob, console: Any, folder: str) -> Any:
    import ray.train.torch

    # The version of these classes is chosen at import; type checkers see the older one.
    api: Any = ray.train
    run = config.run

    class Failures(api.UserCallback):  # type: ignore[misc]
        """Tells the console that a group of workers has failed. Ray's controller calls it."""

        def after_exception(self, run_context: Any, worker_exceptions: Any) -> None:
            console.over.remote()

    return api.torch.TorchTrainer(
        _work,
        train_loop_config={"job": job.as_dict(), "console": console},
        scaling_config=api.ScalingConfig(
            num_workers=run.workers,
            use_gpu=run.device == "cuda",
            resources_per_worker={"CPU": run.cpus_per_worker, **({"GPU": 1} if run.device == "cuda" else {})},
        ),
        # Ray's own records are not used: checkpoints are written to the run's storage by the workers.
        run_config=api.RunConfig(
            name=f"{run.name[:50]}-{job.attempt}",
            storage_path=folder,
            failure_config=api.FailureConfig(max_failures=run.max_failures, controller_failure_limit=_STARTS),
            callbacks=[Failures()],
            logging_config=api.LoggingConfig(log_level="ERROR"),
            worker_runtime_env={"env_vars": {**_WORKER_ENVIRONMENT, **_log_level(), **environment(config)}},
        ),
        torch_config=api.torch.TorchConfig(backend="nccl" if run.device == "cuda" else "gloo", timeout_s=run.timeout_s),
    )


def _log_level() -> dict[str, str]:
    """The log level of this process, for the environment of its workers."""
    return {LEVEL_VARIABLE: logging.getLevelName(logging.getLogger(ROOT).getEffectiveLevel())}


def _work(settings: dict[str, Any]) -> None:
    """The train function, which Ray calls on each worker, and again after a failure."""
    import ray
    import torch.distributed as dist

    console, rank = settings["console"], dist.get_rank()
    group = ray.get_runtime_context().get_placement_group_id()  # differs at each start
    if not ray.get(console.begin.remote(group)):
        return  # restarted after an error that would occur again

    configure_logging(deliver=lambda *record: console.say.remote(*record))

    def failed(error: Exception) -> None:
        report = report_of(rank, error)
        with suppress(ray.exceptions.RayError):  # without a console the run ends anyway
            ray.get(console.fail.remote(group, report), timeout=_REPORT_S)
        leave_groups()
        if report.lost:
            time.sleep(_LOST_DELAY_S)

    before = request_counts()
    try:
        run_worker(WorkerJob(**settings["job"]), failed)
    finally:
        with suppress(ray.exceptions.RayError):
            ray.get(console.count.remote((request_counts() - before).as_list()), timeout=_REPORT_S)


class _Console(LogKeeper):
    """Forwards log records and failure reports of the workers to the driver."""

    def __init__(self, ranks: int, timeout_s: int) -> None:
        super().__init__()
        self._ranks, self._timeout_s = ranks, timeout_s
        self._group: str | None = None
        self._begun = 0
        self._reports: list[Report] = []
        self._final: Report | None = None
        self._requests = RequestCounts()

    def count(self, requests: list[int]) -> None:
        """Add the storage requests of a worker, as a list of `RequestCounts`."""
        self._requests += RequestCounts.from_list(requests)

    def requests(self) -> list[int]:
        """The storage requests of all workers so far."""
        return self._requests.as_list()

    def begin(self, group: str) -> bool:
        """A worker of this group starts. Returns whether there is work left."""
        if group != self._group:
            if self._reports and not self._final:
                self.say(
                    __name__, logging.INFO, f"started again: {root_cause(self._reports, self._ranks, self._timeout_s)}"
                )
            self._group, self._reports, self._begun = group, [], 0
        self._begun += 1
        return self._final is None

    def over(self) -> None:
        """The group of workers has ended."""
        self._begun = 0

    def fail(self, group: str, report: Report) -> None:
        if group == self._group:
            self._reports.append(report)
            if report.final:
                self._final = self._final or report

    def state(self) -> tuple[bool, int]:
        """Whether no work is left, and how many workers have started."""
        return self._final is not None, self._begun

    def reports(self) -> list[Report]:
        """Reports of the last group, in the order of arrival."""
        return [self._final] if self._final else self._reports


def _death_message(failure: BaseException | None) -> str | None:
    """Ray's message about a worker that died without a report; None if no worker did."""
    for rank, cause in sorted((getattr(failure, "worker_failures", None) or {}).items()):
        death = getattr(cause, "health_check_failure", None)
        if death is not None:
            return f"worker {rank} died ({type(death).__name__}: {_text(death)}); was it killed, or out of memory?"
    return None


def _text(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
