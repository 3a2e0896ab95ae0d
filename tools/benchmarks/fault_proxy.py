"""A proxy on loopback that makes a server slow or faulty, and counts requests: `with FaultProxy(url) as proxy`.

The clients use `proxy.url` instead of the server's URL, for instance as AWS_ENDPOINT_URL. A slow link is

    proxy.add(Rule(latency_s=0.03, rate_mb_s=40))

and a server that answers 503 to the next two requests for shards is

    proxy.add(Rule("GET", r"\\.tar", requests=2, fault="status", status=503))
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlsplit

from benchmarks.common import python_path
from benchmarks.proxy_rules import Rule

__all__ = ["Count", "FaultProxy", "Rule"]


@dataclass(frozen=True)
class Count:
    """Requests, and bytes of their bodies in both directions."""

    requests: int
    bytes: int


class FaultProxy:
    """A proxy process in front of the HTTP server at `server`. It ends with this process at the latest.

    url      where clients connect
    control  port on loopback that takes commands, also from other processes: `FaultProxy.attached(url, control)`
    """

    def __init__(self, server: str) -> None:
        parts = urlsplit(server)
        command = [sys.executable, "-P", "-m", "benchmarks.proxy_process", parts.hostname or "", str(parts.port or 80)]
        self._process: subprocess.Popen[str] | None = subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": python_path()},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline().split()
        if len(line) != 2:
            raise RuntimeError("the proxy did not start")
        self.url, self.control = f"http://127.0.0.1:{line[0]}", int(line[1])

    @classmethod
    def attached(cls, url: str, control: int) -> FaultProxy:
        """A running proxy of another process; closing leaves it running."""
        proxy = cls.__new__(cls)
        proxy.url, proxy.control, proxy._process = url, control, None
        return proxy

    def __enter__(self) -> FaultProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process and its connections."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                assert pipe is not None
                pipe.close()

    def add(self, *rules: Rule) -> None:
        """Activate rules, after those that are active."""
        for rule in rules:
            self._command("add", rule=asdict(rule))

    def clear(self) -> None:
        """Remove all rules."""
        self._command("clear")

    def forget(self) -> None:
        """Count from zero again."""
        self._command("forget")

    def count(self, method: str = ".*", path: str = "") -> Count:
        """The requests whose complete method, and a part of whose target, match regular expressions."""
        rows = [row for row in self.counts() if re.fullmatch(method, row[0]) and re.search(path, row[1])]
        return Count(sum(row[2] for row in rows), sum(row[3] for row in rows))

    def counts(self) -> list[tuple[str, str, int, int]]:
        """Method, target (path and query), requests, and bytes of bodies."""
        return [tuple(row) for row in self._command("counts")["counts"]]

    def hits(self) -> int:
        """How often a rule applied to a request or a connection, so far."""
        return int(self._command("counts")["hits"])

    def connections(self) -> int:
        """Connections of clients so far."""
        return int(self._command("counts")["connections"])

    def _command(self, do: str, **more: Any) -> Any:
        with socket.create_connection(("127.0.0.1", self.control), timeout=60) as connection:
            connection.sendall(json.dumps({"do": do, **more}).encode() + b"\n")
            with connection.makefile("rb") as file:
                return json.loads(file.readline())
