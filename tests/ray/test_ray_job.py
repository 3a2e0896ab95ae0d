"""The command as a submitted job, on a cluster with token authentication, against the same command started directly."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import runs

pytestmark = pytest.mark.slow

BIN = Path(sys.executable).parent


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """A head node that asks for a token: (address of its job server, environment with the token)."""
    token = tmp_path / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    environment = {
        **os.environ,
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
    }
    environment.pop("RAY_ADDRESS", None)
    gcs, dashboard, client, agent = free_ports(4)
    command = [str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=2", "--disable-usage-stats"]
    command += [f"--port={gcs}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
    command += [f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}"]
    head = subprocess.Popen(
        command, env=environment, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    address = f"http://127.0.0.1:{dashboard}"
    try:
        deadline = time.monotonic() + 120
        while status_of(address) is None:
            assert head.poll() is None, "the head node ended"
            assert time.monotonic() < deadline, "no job server"
            time.sleep(0.5)
        yield address, environment
    finally:
        node = psutil.Process(head.pid)  # not `ray stop`: that ends every Ray of this machine
        for process in [*node.children(recursive=True), node]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        head.wait()


def status_of(address: str) -> int | None:
    """HTTP status of the job server to someone without a token."""
    try:
        with urllib.request.urlopen(f"{address}/api/jobs/", timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


def test_a_submitted_job_trains_as_the_command_does(
    cluster: tuple[str, dict[str, str]], whole: Path, synthetic: str, tmp_path: Path
) -> None:
    address, environment = cluster
    assert status_of(address) == 401
    command = ["-m", "maestro_dist.train", *runs.arguments(tmp_path, synthetic, *runs.RAY)]
    submit = [str(BIN / "ray"), "job", "submit", "--address", address, "--working-dir", str(runs.ROOT), "--", "python"]
    deadline = time.monotonic() + 120
    while True:
        done = subprocess.run(
            [*submit, *command], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False
        )
        # a job server answers before its node's agent is there
        if "No available agent" not in done.stdout + done.stderr or time.monotonic() > deadline:
            break
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout + done.stderr
    assert runs.tracked(tmp_path) == runs.tracked(whole)
    runs.assert_same_weights(runs.weights(tmp_path), runs.weights(whole))
