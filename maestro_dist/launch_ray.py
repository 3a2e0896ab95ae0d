"""The Ray launcher: a Ray Train run on the cluster at hand, or on a local Ray that is stopped again at the end."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from maestro_dist.config.schema import Config
from maestro_dist.errors import ConfigError, RunError
from maestro_dist.parallel.failure import Report, explain, leave_groups, report_of
from maestro_dist.worker import Job, environment, run_worker

# Before Ray is imported: no doubled or decorated prints, no metrics agent, workers keep this process's folder,
# a lost worker is noticed within a second.
_DRIVER_ENVIRONMENT = {
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
_WORKER_ENVIRONMENT = {"MLFLOW_DISABLE_TELEMETRY": "true"}
# Ray's controller reads it, which has the environment of the cluster's processes, not that of the workers.
_CLUSTER_ENVIRONMENT = {"TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "2"}
_LOCAL_OBJECT_STORE = 128 * 2**20  # bytes; nothing large goes through it
_POLL_S = 0.3
_HEAR_OUT_S = 3.0
"""How long a rank that has only lost another one keeps back its error, so that the other's is heard first."""


def train(config: Config, job: Job, interruptible: Callable[[], AbstractContextManager[None]]) -> None:
    """Run the worker function on `run.workers` workers until it ends.

    Workers that fail are started again by Ray, up to `run.max_failures` times, and go on from the newest checkpoint.
    An error that would only come again (bad data, a NaN) ends the run at once.
    `interruptible` sets this process's signal handlers; Ray sets its own when it starts.

    Raises:
        MaestroError: the error of the worker that failed first, with its rank, whatever the others say.
    """
    for name, value in _DRIVER_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray

    with _cluster(config), interruptible(), _console(config) as console:
        from ray.train import TrainingFailedError

        failure: BaseException | None = None
        try:
            _fit(_trainer(config, job, console), console)
        except TrainingFailedError as error:
            failure = error
        reports: list[Report] = ray.get(console.reports.remote())
        dead = _dead(failure)
        if reports and not (dead and all(report.lost for report in reports)):
            raise explain(reports, config.run.workers, config.run.timeout_s) from failure
        if failure:
            raise RunError(dead or f"Ray Train gave up: {_text(failure)}") from failure


def _fit(trainer: Any, console: Any) -> None:
    """`trainer.fit()` in a thread: in the main thread Ray Train would take the signals and not let go of them.

    Returns early when an error is final: Ray would start the workers once more only to see them return.
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
    while thread.is_alive():
        thread.join(_POLL_S)
        if ray.get(console.is_final.remote()):
            return
    if outcome:
        raise outcome[0]


def _trainer(config: Config, job: Job, console: Any) -> Any:
    import ray.train.torch

    # Which generation of the API these names are is decided when they are imported; type checkers see the older one.
    api: Any = ray.train
    run = config.run
    return api.torch.TorchTrainer(
        _work,
        train_loop_config={"job": job.as_dict(), "console": console},
        scaling_config=api.ScalingConfig(
            num_workers=run.workers,
            use_gpu=run.device == "cuda",
            resources_per_worker={"CPU": run.cpus_per_worker, **({"GPU": 1} if run.device == "cuda" else {})},
        ),
        # Ray's own records of the run are not used: checkpoints are ours, in the run's storage.
        run_config=api.RunConfig(
            name=f"{run.name}-{job.attempt}-{uuid.uuid4().hex[:8]}",
            storage_path=os.path.join(tempfile.gettempdir(), "maestro_dist-ray"),
            failure_config=api.FailureConfig(max_failures=run.max_failures),
            logging_config=api.LoggingConfig(log_level="ERROR"),
            worker_runtime_env={"env_vars": {**_WORKER_ENVIRONMENT, **environment(config)}},
        ),
        torch_config=api.torch.TorchConfig(backend="nccl" if run.device == "cuda" else "gloo", timeout_s=run.timeout_s),
    )


def _work(handed: dict[str, Any]) -> None:
    """The train function: what Ray calls on each worker, again from the top after a failure."""
    import ray
    import torch.distributed as dist

    console, rank = handed["console"], dist.get_rank()
    group = ray.get_runtime_context().get_placement_group_id()  # another one at each start
    if not ray.get(console.begin.remote(group)):
        return  # started again after an error that would only come again

    def failed(error: Exception) -> None:
        report = report_of(rank, error)
        ray.get(console.fail.remote(group, report))
        leave_groups()
        if report.lost:
            time.sleep(_HEAR_OUT_S)

    run_worker(Job(**handed["job"]), lambda line: console.say.remote(line), failed)


class _Console:
    """Carries to the driver the workers' lines, and what they report of their failures."""

    def __init__(self, ranks: int, timeout_s: int) -> None:
        self._ranks, self._timeout_s = ranks, timeout_s
        self._lines: list[str] = []
        self._group: str | None = None
        self._reports: list[Report] = []
        self._final: Report | None = None

    def say(self, line: str) -> None:
        self._lines.append(line)

    def drain(self) -> list[str]:
        lines, self._lines = self._lines, []
        return lines

    def begin(self, group: str) -> bool:
        """A worker of this group of workers starts. Returns whether there is anything left to do."""
        if group != self._group:
            if self._reports and not self._final:
                self.say(f"started again: {explain(self._reports, self._ranks, self._timeout_s)}")
            self._group, self._reports = group, []
        return self._final is None

    def fail(self, group: str, report: Report) -> None:
        if group == self._group:
            self._reports.append(report)
            if report.final:
                self._final = self._final or report

    def is_final(self) -> bool:
        return self._final is not None

    def reports(self) -> list[Report]:
        """In the order of arrival; none of groups before the last one."""
        return [self._final] if self._final else self._reports


@contextmanager
def _console(config: Config) -> Iterator[Any]:
    """The console actor, whose lines a thread prints as they come."""
    import ray
    import ray.util.scheduling_strategies

    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )
    remote: Any = ray.remote(_Console)
    options = remote.options(num_cpus=0, scheduling_strategy=here)
    actor = options.remote(config.run.workers, config.run.timeout_s)  # lives as long as the driver
    done = threading.Event()

    def show() -> None:
        while True:
            last = done.wait(_POLL_S)
            try:
                for line in ray.get(actor.drain.remote()):
                    print(line, flush=True)
            except ray.exceptions.RayError:
                return
            if last:
                return

    printer = threading.Thread(target=show, name="console", daemon=True)
    printer.start()
    try:
        yield actor
    finally:
        done.set()
        printer.join(timeout=10)


@contextmanager
def _cluster(config: Config) -> Iterator[None]:
    """The cluster that RAY_ADDRESS names (a submitted job has it), or a local one for as long as the run takes."""
    import ray

    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address:
        ray.init(address=address, runtime_env={"env_vars": _CLUSTER_ENVIRONMENT}, **quiet)
    else:
        os.environ |= _CLUSTER_ENVIRONMENT
        cpus = max(os.cpu_count() or 1, config.run.workers * config.run.cpus_per_worker)
        ray.init(address="local", num_cpus=cpus, object_store_memory=_LOCAL_OBJECT_STORE, **quiet)
    try:
        _check_resources(config, wait=bool(address))
        yield
    finally:
        ray.shutdown()


def _check_resources(config: Config, *, wait: bool) -> None:
    """Say what a cluster lacks, which may grow; refuse what a local Ray will never have."""
    import ray

    has, run = ray.cluster_resources(), config.run
    needs = {"CPU": run.workers * run.cpus_per_worker, "GPU": run.workers if run.device == "cuda" else 0}
    for name, amount in needs.items():
        if has.get(name, 0) >= amount:
            continue
        lack = f"{run.workers} workers need {amount} {name}s, but Ray has {has.get(name, 0):.0f} here"
        if not wait:
            raise ConfigError(f"run.device, run.workers: {lack}; use fewer workers, run.device=cpu, or a cluster")
        print(f"waiting for the cluster to grow: {lack}", flush=True)


def _dead(failure: BaseException | None) -> str | None:
    """What Ray knows of a worker that died without a word of its own."""
    for rank, cause in sorted((getattr(failure, "worker_failures", None) or {}).items()):
        death = getattr(cause, "health_check_failure", None)
        if death is not None:
            return f"worker {rank} died ({type(death).__name__}: {_text(death)}); was it killed, or out of memory?"
    return None


def _text(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
