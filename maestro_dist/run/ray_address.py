"""Check within seconds whether RAY_ADDRESS is a cluster that this process can join.

Ray itself tries for 15 minutes and ends with a traceback.
"""

from __future__ import annotations

import importlib
import os
import re
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from maestro_dist.data.storage import redact
from maestro_dist.errors import ConfigError, RunError

_ANSWER_S = 10.0
"""Time limit for an answer; a cluster that has just been started needs some seconds."""
_ELSEWHERE = "unset RAY_ADDRESS to use this machine alone"


def cluster_address() -> str | None:
    """The value of RAY_ADDRESS; None if this run starts its own local Ray."""
    address = os.environ.get("RAY_ADDRESS", "").strip()
    return None if address in ("", "local") else address


def check_address(address: str) -> None:
    """Check that this process can join the Ray cluster at `address`.

    Raises:
        ConfigError: it is not the address of a cluster.
        RunError: there is no answer, or not from a cluster with this version of Ray that accepts this process.
    """
    shown = f"RAY_ADDRESS={_sentence(redact(address).rpartition('@')[2])}"  # the part before an @ may be a secret
    where = _resolved(shown, address)
    host, port = _host_and_port(shown, where)
    _with_time_limit(shown, lambda: _ask(shown, where, host, port, auto=address == "auto"))


def _resolved(shown: str, address: str) -> str:
    """HOST:PORT of the cluster. Raises `MaestroError` for an address of another kind."""
    scheme = address.partition("://")[0].lower() if "://" in address else ""
    if scheme in ("http", "https"):
        raise ConfigError(
            f"{shown} is the address of a job server: submit the run with "
            f"`ray job submit --address URL --working-dir . -- python -m maestro_dist.train ...`, "
            f"or {_ELSEWHERE}"
        )
    if scheme == "ray":
        raise ConfigError(
            f"{shown} is the address of a Ray Client server, which does not work with Ray Train: start the run on a "
            f"node of the cluster with RAY_ADDRESS=HOST:PORT as `ray start` prints it, use `ray job submit`, or "
            f"{_ELSEWHERE}"
        )
    if address == "auto":
        from ray._private.services import canonicalize_bootstrap_address

        try:
            cluster = canonicalize_bootstrap_address("auto")
        except ConnectionError:
            cluster = None
        if cluster is None:
            raise RunError(f"{shown}: Ray is not running on this machine; start it (`ray start`), or {_ELSEWHERE}")
        return str(cluster)
    return address


def _host_and_port(shown: str, address: str) -> tuple[str, int]:
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.%\w]+\]|[^\s:/@\[\]]+):(\d{1,5})", address)
    if match is None or not 1 <= int(match[2]) <= 65535:
        raise ConfigError(
            f"{shown} is not HOST:PORT of a Ray cluster, as `ray start --head` prints it; correct it, or {_ELSEWHERE}"
        )
    return match[1].strip("[]"), int(match[2])


def _with_time_limit(shown: str, call: Callable[[], None]) -> None:
    """Run `call()` in a thread with a time limit: some waits, such as for a name server, have no time limit."""
    outcome: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:  # raised again below
            outcome.append(error)

    thread = threading.Thread(target=run, name="probe", daemon=True)
    thread.start()
    thread.join(3 * _ANSWER_S)
    if thread.is_alive():
        raise RunError(f"{shown}: no answer within {3 * _ANSWER_S:.0f} s; correct the address, or {_ELSEWHERE}")
    if outcome:
        raise outcome[0]


def _ask(shown: str, where: str, host: str, port: int, *, auto: bool) -> None:
    """Check that a Ray cluster of this version listens there and accepts this process."""
    _connect(shown, host, port)
    import grpc
    import ray
    from ray._private.grpc_utils import init_grpc_channel
    from ray.core.generated import gcs_service_pb2_grpc
    from ray.exceptions import AuthenticationError

    messages: Any = importlib.import_module(
        "ray.core.generated.gcs_service_pb2"
    )  # generated at import: unknown to mypy

    try:
        with init_grpc_channel(where, options=[("grpc.enable_http_proxy", 0)]) as channel:
            server = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
            answer = server.CheckAlive(messages.CheckAliveRequest(), timeout=_ANSWER_S)
    except AuthenticationError as error:
        raise RunError(
            f"{shown}: {_sentence(error)}; set RAY_AUTH_TOKEN_PATH to a file with the cluster's token"
        ) from None
    except grpc.RpcError as error:
        code = error.code()
        if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
            if auto:
                return  # Ray itself then tries other tokens
            raise RunError(
                f"{shown}: the cluster requires another token; set RAY_AUTH_MODE=token and give its token in "
                "RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN"
            ) from None
        raise RunError(
            f"{shown}: the server there does not answer as a Ray cluster ({code.name}: "
            f"{_sentence(error.details())}); correct the address, or {_ELSEWHERE}"
        ) from None
    cluster_version = answer.ray_version or "of an older version"
    if cluster_version != ray.__version__:
        raise RunError(
            f"{shown}: the cluster has Ray {cluster_version}, this process has {ray.__version__}; "
            f"install the same version on both sides, or {_ELSEWHERE}"
        )


def _connect(shown: str, host: str, port: int) -> None:
    """Connect, and retry for as long as a cluster that is starting may need."""
    deadline = time.monotonic() + _ANSWER_S
    while True:
        try:
            socket.create_connection((host, port), timeout=_ANSWER_S).close()
            return
        except (OSError, UnicodeError) as error:  # UnicodeError: not a host name
            problem = error
        if time.monotonic() > deadline:
            break
        time.sleep(0.5)
    if isinstance(problem, socket.gaierror | UnicodeError):
        raise RunError(f"{shown}: host {host!r} is not known; correct the address, or {_ELSEWHERE}")
    reason = problem.strerror or str(problem) or type(problem).__name__
    raise RunError(f"{shown}: no Ray cluster answers there ({reason}); is it still running? Start it, or {_ELSEWHERE}")


def _sentence(error: object) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
