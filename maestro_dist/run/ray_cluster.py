"""The Ray cluster of a run: the cluster at RAY_ADDRESS, or a local Ray that is stopped at the end."""

from __future__ import annotations

import atexit
import functools
import logging
import os
import secrets
import shutil
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from maestro_dist.config.schema import Config
from maestro_dist.data.storage import redact
from maestro_dist.errors import ConfigError, DataError, MaestroError, RunError
from maestro_dist.run.ray_address import check_address, cluster_address
from maestro_dist.system.logging_setup import NOTE
from maestro_dist.system.terminal import handlers_kept

_LOG = logging.getLogger(__name__)

# Set before Ray is imported: no changes to printed lines, no metrics agent, workers stay in this process's folder,
# a lost worker is noticed within a second.
_DRIVER_ENVIRONMENT = {
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
# Read by Ray's controller, which has the environment of the cluster's processes, not of the workers.
_CLUSTER_ENVIRONMENT = {"TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "2"}
# Seconds in which a local Ray must start; Ray's own 20 are too few on a busy machine.
_LOCAL_ENVIRONMENT = {"RAY_gcs_server_port_wait_time_s": "120"}
_LOCAL_OBJECT_STORE = 128 * 2**20  # bytes; only small objects pass through it
_LOG_S = 30.0
_CHECK_S, _GONE_S = 5.0, 30.0
"""Seconds between checks of the cluster's head, and seconds that it may be unreachable; Ray gives up after 60 s."""
_SOCKET_PATH = 107
"""Maximum length in bytes of the path of a Unix socket."""
_SOCKET_SUFFIX = len("/ray/session_2026-01-01_00-00-00_000000_1234567/sockets/dash_MetricsHead")


def prepare_environment() -> None:
    """Set Ray's environment variables for this process, before Ray is imported."""
    for name, value in _DRIVER_ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def check_cluster() -> None:
    """Check within seconds that a Ray cluster is available.

    Raises:
        ConfigError: RAY_ADDRESS is not the address of a cluster.
        RunError: no cluster that this process can join answers there; or this machine has no folder for the temporary
            files of a local Ray.
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
    """Context with a connection to the cluster at RAY_ADDRESS (set in a submitted job), or to a new local one.

    Raises `MaestroError` if Ray does not start, or if a local Ray does not have the resources of the run.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    with connected(max(os.cpu_count() or 1, config.run.workers * config.run.cpus_per_worker)):
        _check_resources(config, wait=bool(cluster_address()))
        yield


@contextmanager
def connected(cpus: int, object_store: int = _LOCAL_OBJECT_STORE) -> Iterator[None]:
    """Context with a connection to the cluster at RAY_ADDRESS, or to a new local one with `cpus` CPUs and this many
    bytes for objects.

    Raises `MaestroError` if Ray does not start.
    """
    import ray

    address = cluster_address()
    with _joined(address) if address else _local_ray(cpus, object_store):
        try:
            yield
        finally:
            ray.shutdown()


_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}


@contextmanager
def _joined(address: str) -> Iterator[None]:
    import ray

    _forget_token()
    with _started(f"Ray at {redact(address)} to accept this process"):
        ray.init(address=address, runtime_env={"env_vars": _CLUSTER_ENVIRONMENT}, **_QUIET)
    yield


@contextmanager
def _local_ray(cpus: int, object_store: int) -> Iterator[None]:
    """A local Ray with its own folder: the default folder belongs to the first user of Ray on this machine.

    The folder, with Ray's logs, is kept if the run fails.
    """
    import ray

    os.environ |= _CLUSTER_ENVIRONMENT
    os.environ.update({name: value for name, value in _LOCAL_ENVIRONMENT.items() if name not in os.environ})
    folder = _short_folder()
    remove = functools.partial(_remove, folder)
    atexit.register(remove)  # runs after Ray has ended its processes, also if the start was interrupted
    try:
        with _own_token(), _started("Ray to start on this machine"):
            ray.init(
                address="local",
                num_cpus=cpus,
                object_store_memory=object_store,
                _temp_dir=str(folder / "ray"),
                **_QUIET,
            )
        yield
    except (ConfigError, DataError):  # Ray's logs contain nothing about these
        raise
    except Exception:
        atexit.unregister(remove)
        _LOG.log(NOTE, "Ray's logs are kept in %s", folder)
        raise


class Head:
    """Watches the control server of the cluster: 60 s after its loss, Ray ends this process without cleanup."""

    def __init__(self, address: str) -> None:
        """`address`: HOST:PORT of the control server."""
        self._address = address
        self._last_answer = self._last_check = time.monotonic()

    def check(self) -> None:
        """Raise `RunError` if the server has not answered for longer than `_GONE_S`."""
        now = time.monotonic()
        if now - self._last_check < _CHECK_S:
            return
        self._last_check = now
        host, _, port = self._address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_CHECK_S).close()
            self._last_answer = now
        except OSError as error:
            if now - self._last_answer >= _GONE_S:
                raise RunError(
                    f"the head of the Ray cluster ({self._address}) is gone ({error.strerror or error}); when the "
                    "cluster is back, the same command continues the run"
                ) from None


@contextmanager
def train_folder() -> Iterator[str]:
    """Context with a unique folder name for Ray Train's own records, which nothing reads. Ray Train creates the folder.

    It is removed at the end. Runs and users of a machine do not share it.
    """
    folder = os.path.join(tempfile.gettempdir(), f"maestro_dist-{uuid.uuid4().hex}")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def lacks(config: Config, has: dict[str, float]) -> str:
    """The resources that the workers need and `has` does not contain, as text; empty if it contains all."""
    run = config.run
    needs = {"CPU": run.workers * run.cpus_per_worker, "GPU": run.workers if run.device == "cuda" else 0}
    return " and ".join(
        f"{amount} {name}s, but Ray has {has.get(name, 0):.0f} here"
        for name, amount in needs.items()
        if has.get(name, 0) < amount
    )


def _check_resources(config: Config, *, wait: bool) -> None:
    """Log the resources that a cluster lacks, because it may grow. For a local Ray, raise `ConfigError`."""
    import ray

    lack = lacks(config, ray.cluster_resources())
    if lack and not wait:
        raise ConfigError(
            f"run.device, run.workers: {config.run.workers} workers need {lack}; use fewer workers, run.device=cpu, "
            "or a cluster"
        )
    if lack:
        _LOG.info("waiting for the cluster to grow: %d workers need %s", config.run.workers, lack)


@contextmanager
def _started(what: str) -> Iterator[None]:
    """Context that logs every 30 s that the run waits for Ray, and turns Ray's errors into one line."""
    done = threading.Event()

    def log_wait() -> None:
        started = time.monotonic()
        while not done.wait(_LOG_S):
            _LOG.info("waiting for %s, for %.0f s now", what, time.monotonic() - started)

    threading.Thread(target=log_wait, name="waiting", daemon=True).start()
    try:
        with handlers_kept():
            yield
    except MaestroError:
        raise
    except Exception as error:
        cause = f" ({_sentence(error.__cause__)})" if error.__cause__ else ""
        raise RunError(f"failed to wait for {what}: {_sentence(error)}{cause}") from error
    finally:
        done.set()


@contextmanager
def _own_token() -> Iterator[None]:
    """Context with a new token for the local Ray, unless the user has one.

    Ray itself would write a token to the home folder: readable for everybody, and the folder may not be writable.
    """
    token = Path(os.path.expanduser("~")) / ".ray" / "auth_token"
    given = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ)
    if given or os.access(token, os.R_OK):
        _forget_token()
        yield
        return
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    _forget_token()
    try:
        yield
    finally:
        del os.environ["RAY_AUTH_TOKEN"]


def _forget_token() -> None:
    """Make Ray read its token again: it keeps the first one of a process, which may be of an earlier Ray."""
    with suppress(ImportError, AttributeError):  # other releases
        from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]

        AuthenticationTokenLoader.instance().reset_cache()


def _remove(folder: Path) -> None:
    for _ in range(20):  # some of Ray's processes end, and write, a little later
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.2)


def _short_folder() -> Path:
    """A new private folder with a path that is short enough for Ray's sockets."""
    given = [os.environ.get("RAY_TMPDIR"), os.environ.get("TMPDIR"), "/tmp", "/var/tmp", "/dev/shm"]
    for place in filter(None, given):
        place = os.path.abspath(place)
        if len(os.fsencode(place)) + len("/maestro-12345678") + _SOCKET_SUFFIX > _SOCKET_PATH:
            continue
        try:
            return Path(tempfile.mkdtemp(prefix="maestro-", dir=place))
        except OSError:
            continue
    raise RunError("no writable folder for temporary files with a short path; set TMPDIR to one")


def _sentence(error: object) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
