"""The Ray that a run uses: the cluster that RAY_ADDRESS names, or one of its own for as long as it takes."""

from __future__ import annotations

import atexit
import functools
import logging
import os
import secrets
import shutil
import socket
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from maestro_dist.config.schema import Config
from maestro_dist.data.storage import redact
from maestro_dist.errors import ConfigError, DataError, MaestroError, RunError
from maestro_dist.run.ray_address import check_address, cluster_address
from maestro_dist.system.terminal import handlers_kept

# Before Ray is imported: no doubled or decorated prints, no metrics agent, workers keep this process's folder,
# a lost worker is noticed within a second.
_DRIVER_ENVIRONMENT = {
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
# Ray's controller reads it, which has the environment of the cluster's processes, not that of the workers.
_CLUSTER_ENVIRONMENT = {"TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "2"}
_LOCAL_OBJECT_STORE = 128 * 2**20  # bytes; nothing large goes through it
_SAY_S = 30.0
_LOOK_S, _GONE_S = 5.0, 30.0
"""How often the cluster's head is looked for, and for how long it may be away; Ray gives up after 60 s."""
_SOCKET_PATH = 107
"""Bytes that the path of a Unix socket may have."""
_BELOW = len("/ray/session_2026-01-01_00-00-00_000000_1234567/sockets/dash_MetricsHead")


def prepare_environment() -> None:
    """Ray's settings for this process, before it is imported."""
    for name, value in _DRIVER_ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def check_cluster() -> None:
    """Find out in seconds whether there will be a Ray to train on.

    Raises:
        ConfigError: RAY_ADDRESS is not the address of a cluster.
        RunError: nobody answers there, or not as a cluster that this process can join; or this machine has no place
            for a Ray of its own.
    """
    prepare_environment()
    import ray

    if ray.is_initialized():
        return
    address = cluster_address()
    if address is None:
        shutil.rmtree(_short_folder())
        return
    check_address(address)


@contextmanager
def cluster(config: Config) -> Iterator[None]:
    """The cluster that RAY_ADDRESS names (a submitted job has it), or a local one for as long as the run takes.

    Raises `MaestroError` where Ray does not start, or a local one will never have what the run needs.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    address = cluster_address()
    with _joined(address) if address else _own(config):
        try:
            _check_resources(config, wait=bool(address))
            yield
        finally:
            ray.shutdown()


_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}


@contextmanager
def _joined(address: str) -> Iterator[None]:
    import ray

    with _started(f"Ray at {redact(address)} to let this process in"):
        ray.init(address=address, runtime_env={"env_vars": _CLUSTER_ENVIRONMENT}, **_QUIET)
    yield


@contextmanager
def _own(config: Config) -> Iterator[None]:
    """A Ray of this run's own in a folder of its own: the usual one belongs to whoever used it first on this machine.

    The folder, with Ray's logs in it, is kept where the run fails.
    """
    import ray

    os.environ |= _CLUSTER_ENVIRONMENT
    folder = _short_folder()
    remove = functools.partial(_remove, folder)
    atexit.register(remove)  # after Ray's own end of its processes, also of a start that was interrupted
    try:
        with _own_token(), _started("Ray to start on this machine"):
            ray.init(
                address="local",
                num_cpus=max(os.cpu_count() or 1, config.run.workers * config.run.cpus_per_worker),
                object_store_memory=_LOCAL_OBJECT_STORE,
                _temp_dir=str(folder / "ray"),
                **_QUIET,
            )
        yield
    except (ConfigError, DataError):  # Ray's logs say nothing about these
        raise
    except Exception:
        atexit.unregister(remove)
        print(f"Ray's logs are kept in {folder}", file=sys.stderr, flush=True)
        raise


class Head:
    """Watches the cluster's control server: a minute after its loss Ray ends this process, and nothing is closed."""

    def __init__(self, address: str) -> None:
        """`address`: HOST:PORT of the control server."""
        self._address = address
        self._seen = self._asked = time.monotonic()

    def check(self) -> None:
        """Raise `RunError` where nobody has answered there for so long that it will not come back in time."""
        now = time.monotonic()
        if now - self._asked < _LOOK_S:
            return
        self._asked = now
        host, _, port = self._address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_LOOK_S).close()
            self._seen = now
        except OSError as error:
            if now - self._seen >= _GONE_S:
                raise RunError(
                    f"the head of the Ray cluster ({self._address}) is gone ({error.strerror or error}); when there is "
                    "a cluster again, the same command goes on"
                ) from None


@contextmanager
def train_folder() -> Iterator[str]:
    """A name for Ray Train's own records of one run, which nothing reads: made by whoever writes first, removed here.

    No two runs and no two users of a machine share it.
    """
    folder = os.path.join(tempfile.gettempdir(), f"maestro_dist-{uuid.uuid4().hex}")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def lacks(config: Config, has: dict[str, float]) -> str:
    """What the workers need of a cluster and `has` does not hold, in words; empty where it holds all."""
    run = config.run
    needs = {"CPU": run.workers * run.cpus_per_worker, "GPU": run.workers if run.device == "cuda" else 0}
    return " and ".join(
        f"{amount} {name}s, but Ray has {has.get(name, 0):.0f} here"
        for name, amount in needs.items()
        if has.get(name, 0) < amount
    )


def _check_resources(config: Config, *, wait: bool) -> None:
    """Say what a cluster lacks, which may grow; refuse what a local Ray will never have."""
    import ray

    lack = lacks(config, ray.cluster_resources())
    if lack and not wait:
        raise ConfigError(
            f"run.device, run.workers: {config.run.workers} workers need {lack}; use fewer workers, run.device=cpu, "
            "or a cluster"
        )
    if lack:
        print(f"waiting for the cluster to grow: {config.run.workers} workers need {lack}", flush=True)


@contextmanager
def _started(what: str) -> Iterator[None]:
    """Say now and then that Ray is waited for; turn its errors into one line."""
    done = threading.Event()

    def say() -> None:
        started = time.monotonic()
        while not done.wait(_SAY_S):
            print(f"waiting for {what}, for {time.monotonic() - started:.0f} s now", flush=True)

    threading.Thread(target=say, name="waiting", daemon=True).start()
    try:
        with handlers_kept():
            yield
    except MaestroError:
        raise
    except Exception as error:
        cause = f" ({_sentence(error.__cause__)})" if error.__cause__ else ""
        raise RunError(f"waited in vain for {what}: {_sentence(error)}{cause}") from error
    finally:
        done.set()


@contextmanager
def _own_token() -> Iterator[None]:
    """A secret of this run's own for its local Ray, unless the user has one.

    Ray would write one to the home folder, for all to read and where nothing may be writable.
    """
    token = Path(os.path.expanduser("~")) / ".ray" / "auth_token"
    given = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ)
    if given or os.access(token, os.R_OK):
        yield
        return
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    try:
        yield
    finally:
        del os.environ["RAY_AUTH_TOKEN"]


def _remove(folder: Path) -> None:
    for _ in range(20):  # helpers of Ray live, and write, a little longer than it does
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.2)


def _short_folder() -> Path:
    """A new folder that only this user can enter, short enough for the sockets that Ray makes below it."""
    given = [os.environ.get("RAY_TMPDIR"), os.environ.get("TMPDIR"), "/tmp", "/var/tmp", "/dev/shm"]
    for place in filter(None, given):
        place = os.path.abspath(place)
        if len(os.fsencode(place)) + len("/maestro-12345678") + _BELOW > _SOCKET_PATH:
            continue
        try:
            return Path(tempfile.mkdtemp(prefix="maestro-", dir=place))
        except OSError:
            continue
    raise RunError("no folder for temporary files that can be written and has a short name: name one in TMPDIR")


def _sentence(error: object) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
