"""The Ray launcher: a Ray Train run on the cluster at hand, or on a local Ray that is stopped again at the end."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from maestro_dist import errors
from maestro_dist.config.schema import Config
from maestro_dist.errors import ConfigError, RunError
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
_WORKER_ENVIRONMENT = {
    "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "2",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
_FINAL = (errors.ConfigError, errors.DataError, errors.NonFiniteError, errors.RunError)
"""Errors that would only come again. Others (a store that does not answer) are worth another start."""
_LOCAL_OBJECT_STORE = 128 * 2**20  # bytes; nothing large goes through it
_POLL_S = 0.3


def train(config: Config, job: Job, interruptible: Callable[[], AbstractContextManager[None]]) -> None:
    """Run the worker function on `run.workers` workers until it ends.

    Workers that die are started again by Ray, up to `run.max_failures` times, and go on from the newest checkpoint.
    An error that would only come again (bad data, a NaN) ends the run at once and is raised here unchanged.
    `interruptible` sets this process's signal handlers; Ray sets its own when it starts.
    """
    for name, value in _DRIVER_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray

    with _cluster(config), interruptible(), _console() as console:
        from ray.train import TrainingFailedError

        failure: BaseException | None = None
        try:
            _fit(_trainer(config, job, console))
        except TrainingFailedError as error:
            failure = error
        reported = ray.get(console.failure.remote())
        if reported:
            raise getattr(errors, reported[0])(reported[1]) from failure
        if failure:
            raise RunError(_describe(failure)) from failure


def _fit(trainer: Any) -> None:
    """`trainer.fit()` in a thread: in the main thread Ray Train would take the signals and not let go of them."""
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

    console = handed["console"]
    if ray.get(console.failure.remote()):
        return  # started again after an error that would only come again
    try:
        run_worker(Job(**handed["job"]), lambda line: console.say.remote(line))
    except _FINAL as error:
        kind = next(base for base in type(error).__mro__ if base.__module__ == errors.__name__)
        ray.get(console.fail.remote(kind.__name__, str(error)))
        raise


class _Console:
    """Carries the workers' lines, and the first error of ours, to the driver."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._failure: tuple[str, str] | None = None

    def say(self, line: str) -> None:
        self._lines.append(line)

    def drain(self) -> list[str]:
        lines, self._lines = self._lines, []
        return lines

    def fail(self, kind: str, message: str) -> None:
        self._failure = self._failure or (kind, message)

    def failure(self) -> tuple[str, str] | None:
        return self._failure


@contextmanager
def _console() -> Iterator[Any]:
    """The console actor, whose lines a thread prints as they come."""
    import ray
    import ray.util.scheduling_strategies

    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )
    remote: Any = ray.remote(_Console)
    actor = remote.options(num_cpus=0, scheduling_strategy=here).remote()  # lives as long as the driver
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
        ray.init(address=address, **quiet)
    else:
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


def _describe(error: BaseException) -> str:
    failures = getattr(error, "worker_failures", None) or {}
    for rank, cause in sorted(failures.items()):
        text = " ".join(str(cause).split()) or "no message"
        return f"worker {rank} failed ({type(cause).__name__}: {text[:300]}); --debug shows the traceback"
    return f"Ray Train gave up: {' '.join(str(error).split())[:400]}"
