"""An HTTP/1.1 proxy on loopback in front of an S3 server: it counts requests, adds latency and injects faults."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

_PIECE = 1 << 16


@dataclass(frozen=True)
class Asked:
    """One request: `kind` is GET, HEAD, PUT, LIST or DELETE; `target` is the path with its query; `number` from 0."""

    kind: str
    target: str
    number: int


@dataclass(frozen=True)
class Fault:
    """What happens to a request instead of its answer.

    status  this HTTP status with an S3 error of the name `code`; the server never sees the request
    body    after the first half of the answer's body: "reset" (TCP reset), "cut" (the connection ends), "stall"
            (nothing more comes for `delay_s`)
    lose    the server does its work, but the client gets a reset instead of the answer
    delay_s seconds before the request is passed on
    """

    status: int = 0
    code: str = "InternalError"
    body: str = ""
    lose: bool = False
    delay_s: float = 0.0


@dataclass
class CountingProxy:
    """A proxy for the server at `server` (http://host:port); a context manager. `faults` decides for each request."""

    server: str
    latency_s: float = 0.0
    faults: Callable[[Asked], Fault | None] = lambda asked: None
    counts: Counter[str] = field(default_factory=Counter)
    asked: list[Asked] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        """What clients use as the URL of the server."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> CountingProxy:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self.listen()
        return self

    def __exit__(self, *_: object) -> None:
        self.refuse()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    def listen(self) -> None:
        """Accept connections, at the same port as before."""
        self._listening = self._run(asyncio.start_server(self._serve, "127.0.0.1", self.port, limit=1 << 20))
        self.port = self._listening.sockets[0].getsockname()[1]

    def refuse(self) -> None:
        """Refuse new connections and drop the present ones."""

        async def stop() -> None:
            self._listening.close()
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()

        self._run(stop())

    def reset_counts(self) -> None:
        """Forget the requests so far."""
        self.counts.clear()
        self.asked.clear()

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        place = urlsplit(self.server)
        upstream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                lines = head.decode("latin-1").split("\r\n")
                method, target, _ = lines[0].split(" ", 2)
                headers = {name.strip().lower(): value.strip() for name, _, value in (s.partition(":") for s in lines)}
                if headers.get("expect"):
                    writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                    lines = [line for line in lines if not line.lower().startswith("expect:")]
                body = await _body(reader, headers)
                asked = Asked(kind_of(method, target), target, len(self.asked))
                self.asked.append(asked)
                self.counts[asked.kind] += 1
                fault = self.faults(asked) or Fault()
                await asyncio.sleep(self.latency_s + fault.delay_s * (not fault.body))
                if fault.status:
                    writer.write(_error(fault, with_body=method != "HEAD"))
                    await writer.drain()
                    continue
                upstream = upstream or await asyncio.open_connection(place.hostname, place.port, limit=1 << 20)
                upstream[1].write("\r\n".join(lines).encode("latin-1") + body)
                answer = await upstream[0].readuntil(b"\r\n\r\n")
                given = answer.decode("latin-1").split("\r\n")
                fields = {n.strip().lower(): value.strip() for n, _, value in (s.partition(":") for s in given)}
                bare = method == "HEAD" or given[0].split(" ")[1] in ("204", "304")
                content = b"" if bare else await _body(upstream[0], fields)
                if fault.lose:
                    writer.transport.abort()
                    return
                if fault.body and content:
                    writer.write(answer + content[: len(content) // 2])
                    await writer.drain()
                    if fault.body == "stall":
                        await asyncio.sleep(fault.delay_s)
                    if fault.body == "reset":
                        await asyncio.sleep(0.05)
                        writer.transport.abort()
                    return
                writer.write(answer + content)
                await writer.drain()
                if fields.get("connection", "").lower() == "close":
                    upstream[1].close()
                    upstream = None
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            if upstream is not None:
                upstream[1].close()


def kind_of(method: str, target: str) -> str:
    """The kind of a request from its first line."""
    path, _, query = target.partition("?")
    if method == "GET" and (
        "list-type=" in query or path.count("/") < 2 or (path.endswith("/") and "delimiter" in query)
    ):
        return "LIST"
    if method == "POST":
        return "DELETE" if "delete" in query.split("&")[0] else "PUT"
    return method


async def _body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    """The body as it is on the wire."""
    if "chunked" not in headers.get("transfer-encoding", ""):
        return await reader.readexactly(int(headers.get("content-length", 0)))
    parts = []
    while True:
        line = await reader.readline()
        size = int(line.split(b";")[0], 16)
        parts += [line, await reader.readexactly(size + 2)]
        if size == 0:
            return b"".join(parts)


def _error(fault: Fault, *, with_body: bool) -> bytes:
    text = f"<Error><Code>{fault.code}</Code><Message>injected</Message></Error>" if with_body else ""
    head = f"HTTP/1.1 {fault.status} Fault\r\nContent-Type: application/xml\r\nContent-Length: {len(text)}\r\n\r\n"
    return (head + text).encode()
