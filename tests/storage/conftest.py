"""A real S3-compatible server (SeaweedFS) on loopback, for the whole session."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

KEY, SECRET = "maestro-test-key", "maestro-test-secret"


def free_port(taken: set[int]) -> int:
    """A port that is free together with the one 10,000 above it, where the server puts its gRPC."""
    for port in range(20100, 22700):
        if port in taken:
            continue
        try:
            for number in (port, port + 10000):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", number))
        except OSError:
            continue
        taken.add(port)
        return port
    raise RuntimeError("no free port")


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of the server."""
    folder = tmp_path_factory.mktemp("s3")
    keys = folder / "keys.json"
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    credentials = [{"accessKey": KEY, "secretKey": SECRET}]
    keys.write_text(json.dumps({"identities": [{"name": "t", "credentials": credentials, "actions": actions}]}))
    taken: set[int] = set()
    ports = {name: free_port(taken) for name in ("s3", "master", "volume", "filer")}
    weed = shutil.which("weed", path=str(Path(sys.executable).parent))
    assert weed, "the extra `dev` brings SeaweedFS"
    command = [weed, "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder}", "-s3", f"-s3.config={keys}"]
    command += [f"-{'s3' if name == 's3' else name}.port={port}" for name, port in ports.items()]
    command += ["-master.volumeSizeLimitMB=64", "-volume.max=0", "-master.telemetry=false"]
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-master.electionTimeout=1s"]
    log = (folder / "server.log").open("w")
    server = subprocess.Popen(command, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{ports['s3']}"
    try:
        _wait(url, server)
        yield url
    finally:
        server.kill()
        server.wait()
        log.close()


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """URL of a bucket, with the server and its keys in the environment as a user would put them there."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    name = f"bucket-{time.time_ns()}"
    s3fs.S3FileSystem().mkdir(name)
    return f"s3://{name}"


def _wait(url: str, server: subprocess.Popen[bytes]) -> None:
    import s3fs
    from botocore.exceptions import BotoCoreError

    options = {"connect_timeout": 1, "read_timeout": 2, "retries": {"max_attempts": 0}}
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert server.poll() is None, "the server ended"
        try:
            fs = s3fs.S3FileSystem(
                key=KEY, secret=SECRET, endpoint_url=url, config_kwargs=options, skip_instance_cache=True
            )
            fs.mkdir(f"ready-{time.time_ns()}")
            return
        except (OSError, BotoCoreError):
            time.sleep(0.3)
    raise AssertionError("the server did not start")
