"""RAY_ADDRESS of every wrong kind, and what a Ray of a run's own needs: one line in seconds, before a run is begun."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import runs

from maestro_dist.config.schema import Config
from maestro_dist.errors import ConfigError, MaestroError, RunError
from maestro_dist.run import ray_address, ray_cluster, ray_launcher
from maestro_dist.run.ray_cluster import check_cluster


@pytest.fixture(autouse=True)
def in_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_address, "_ANSWER_S", 0.3)
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_TMPDIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("http://127.0.0.1:8265", "ray job submit --address"),
        ("HTTPS://bob:hidden@cluster", "ray job submit --address"),
        ("ray://127.0.0.1:10001", "Ray Client"),
        ("other://cluster", "not HOST:PORT"),
        ("cluster", "not HOST:PORT"),
        ("cluster:", "not HOST:PORT"),
        (":6379", "not HOST:PORT"),
        ("cluster:redis", "not HOST:PORT"),
        ("cluster:0", "not HOST:PORT"),
        ("cluster:65536", "not HOST:PORT"),
        ("clus\nter:6379", "not HOST:PORT"),
        ("bob:hidden@cluster:6379", "not HOST:PORT"),
    ],
)
def test_an_address_of_another_kind_is_refused(address: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConfigError, match=said) as raised:
        check_cluster()
    line = str(raised.value)
    assert line.startswith("RAY_ADDRESS=")
    assert "unset RAY_ADDRESS" in line
    assert "\n" not in line
    assert "hidden" not in line


@contextmanager
def listening(answer: bytes | None) -> Iterator[str]:
    """Somebody who answers so and closes; with None it never says anything."""
    server = socket.create_server(("127.0.0.1", 0))
    taken: list[socket.socket] = []

    def serve() -> None:
        while True:
            try:
                taken.append(server.accept()[0])
            except OSError:
                return
            if answer is not None:
                taken[-1].sendall(answer)
                taken[-1].close()

    threading.Thread(target=serve, daemon=True).start()
    yield f"127.0.0.1:{server.getsockname()[1]}"
    server.shutdown(socket.SHUT_RDWR)  # wakes the thread
    server.close()
    for one in taken:
        one.close()


@pytest.mark.parametrize(
    "answer", [None, b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH_9.6\r\n"], ids=repr
)
def test_another_server_is_no_cluster(answer: bytes | None, monkeypatch: pytest.MonkeyPatch) -> None:
    with listening(answer) as address:
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(RunError, match=rf"RAY_ADDRESS={address}: the server there does not answer as a Ray"):
            check_cluster()


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost"])
def test_nobody_listens(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if host == "[::1]" and not Path("/proc/net/if_inet6").exists():
        pytest.skip("no IPv6 here")
    with socket.socket() as taken:  # bound, so that nobody else is given the port, but not listening
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("RAY_ADDRESS", f"{host}:{taken.getsockname()[1]}")
        with pytest.raises(RunError, match="no Ray cluster answers there"):
            check_cluster()


def test_a_host_without_an_address_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    monkeypatch.setattr(socket, "create_connection", unknown)
    monkeypatch.setenv("RAY_ADDRESS", "head.of.cluster:6379")
    with pytest.raises(RunError, match=r"host 'head.of.cluster' is not known"):
        check_cluster()


def test_a_name_server_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: over.wait())
    monkeypatch.setenv("RAY_ADDRESS", "head.of.cluster:6379")
    with pytest.raises(RunError, match=r"RAY_ADDRESS=head\.of\.cluster:6379: no answer within"):
        check_cluster()
    over.set()


def test_auto_finds_no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private import services

    monkeypatch.setattr(services, "find_gcs_addresses", lambda: set())
    monkeypatch.setattr(services, "find_bootstrap_address", lambda folder: None)
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with pytest.raises(RunError, match="RAY_ADDRESS=auto: Ray is not running on this machine"):
        check_cluster()


@contextmanager
def control_server(version: str, token: str = "") -> Iterator[str]:
    """What a cluster's control server says to whoever asks whether it is alive."""
    import grpc
    from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

    class Alive(gcs_service_pb2_grpc.NodeInfoGcsServiceServicer):
        def CheckAlive(self, request: Any, context: Any) -> Any:
            if token and ("authorization", f"Bearer {token}") not in context.invocation_metadata():
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
            return gcs_service_pb2.CheckAliveReply(ray_version=version)

    server = grpc.server(ThreadPoolExecutor(1))
    gcs_service_pb2_grpc.add_NodeInfoGcsServiceServicer_to_server(Alive(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


def test_a_cluster_of_this_version_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray_address, "_ANSWER_S", 20.0)
    with control_server(ray.__version__) as address:
        monkeypatch.setenv("RAY_ADDRESS", f" {address} ")
        check_cluster()


@pytest.mark.parametrize(
    ("version", "token", "said"),
    [
        ("2.9.3", "", "the cluster has Ray 2.9.3, this process"),
        ("", "", "the cluster has Ray of an older version"),
        ("2.60.0", "secret", "the cluster requires another token; set RAY_AUTH_MODE=token"),
    ],
)
def test_a_cluster_that_cannot_be_joined_says_why(
    version: str, token: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_address, "_ANSWER_S", 20.0)
    with control_server(version, token) as address:
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(RunError, match=said):
            check_cluster()


def test_nothing_is_begun_where_the_address_is_wrong(
    synthetic: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    assert runs.train(tmp_path / "runs", synthetic, *runs.RAY) == 2
    assert capsys.readouterr().err.startswith("error: RAY_ADDRESS=http://127.0.0.1:8265 is the address of a job server")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("address", [None, "", " ", "local"])
def test_a_run_of_its_own_has_no_address(address: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address or "")
    if address is None:
        monkeypatch.delenv("RAY_ADDRESS")
    assert ray_address.cluster_address() is None
    check_cluster()


@pytest.mark.parametrize("place", ["long", "missing", "a file", "short"])
def test_ray_works_in_a_short_folder_of_this_user_alone(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    places = {
        "long": tmp_path / ("x" * 100),
        "missing": Path("/none"),
        "a file": tmp_path / "file",
        "short": Path("/tmp"),
    }
    if place == "long":
        places[place].mkdir()
    monkeypatch.setenv("TMPDIR", str(places[place]))
    folder = ray_cluster._short_folder()
    try:
        socket_path = f"{folder}/ray/session_2026-01-01_00-00-00_000000_1234567/sockets/dash_MetricsHead"
        assert len(os.fsencode(socket_path)) <= 107
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert folder.stat().st_uid == os.getuid()
    finally:
        folder.rmdir()


def test_no_place_for_temporary_files_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: object) -> None:
        raise OSError("full")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(tempfile, "mkdtemp", full)
    with pytest.raises(RunError, match="set TMPDIR to one"):
        check_cluster()


def test_a_token_is_this_run_s_own_unless_the_user_has_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with ray_cluster._own_token():
        assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
    assert "RAY_AUTH_TOKEN" not in os.environ
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("mine")
    with ray_cluster._own_token():
        assert "RAY_AUTH_TOKEN" not in os.environ


TWICE = """
import ray
from maestro_dist.run.ray_cluster import connected

answer = ray.remote(lambda: "answered")
for _ in range(2):
    with connected(1):
        print(ray.get(answer.remote()), flush=True)
"""


@pytest.mark.slow
def test_a_process_may_start_ray_twice() -> None:
    """As in a notebook: packing by workers, then a run. Ray remembers the first token of a process."""
    known = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-c", TWICE]
    found = subprocess.run(command, env=known, capture_output=True, text=True, timeout=300, check=False)
    assert found.stdout.splitlines().count("answered") == 2, found.stderr


def test_ray_that_does_not_start_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def fails(**_: object) -> None:
        raise ConnectionError("no\nway") from OSError("a cause")

    monkeypatch.setattr(ray, "init", fails)
    monkeypatch.setattr(ray_cluster, "_short_folder", lambda: tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    entered = ray_cluster.cluster(Config())
    with pytest.raises(MaestroError, match=r"failed to wait for Ray to start on this machine: no way \(a cause\)"):
        entered.__enter__()


def test_a_wait_for_workers_says_what_is_lacking(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import ray

    over, answers = threading.Event(), iter([(False, 0), (False, 1), (False, 2)])

    def asked(_: object) -> tuple[bool, int]:
        try:
            return next(answers)
        except StopIteration:
            over.set()
            return False, 2

    monkeypatch.setattr(ray_launcher, "_answer", asked)
    monkeypatch.setattr(ray_launcher, "_LOG_S", 0.0)
    monkeypatch.setattr(ray_launcher, "_POLL_S", 0.01)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 1.0})
    config = Config.model_validate({"run": {"workers": 2}})
    head = SimpleNamespace(check=lambda: None)
    ray_launcher._fit(SimpleNamespace(fit=over.wait), config, SimpleNamespace(state=None), head)
    assert capsys.readouterr().out.splitlines() == [
        f"waiting for {count} of 2 workers to start, for 0 s now: they need 2 CPUs, but Ray has 1 here"
        for count in (2, 1)
    ]


def test_a_head_that_is_gone_ends_the_run_before_ray_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "_CHECK_S", 0.001)
    monkeypatch.setattr(ray_cluster.time, "monotonic", iter(range(0, 1000, 10)).__next__)
    with listening(None) as address:
        head = ray_cluster.Head(address)  # at 0 s
        for _ in range(5):
            head.check()  # to 50 s
        head._address = "127.0.0.1:1"
        head.check()
        head.check()
        with pytest.raises(RunError, match=r"head of the Ray cluster \(127.0.0.1:1\) is gone \(Connection refused\)"):
            head.check()  # after 30 s


def test_a_console_that_has_died_ends_the_run_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def dead(*_: object, **__: object) -> None:
        raise ray.exceptions.RayActorError

    monkeypatch.setattr(ray, "get", dead)
    with pytest.raises(RunError, match="the process that forwards the workers' reports is gone"):
        ray_launcher._answer(SimpleNamespace(remote=lambda: None))
