"""An HTTP proxy in front of one server, as a process of its own: counts requests and injects faults.

It forwards all bytes unchanged, with the client's Host header, which S3 signatures contain. Only heads are parsed;
bodies are copied. `fault_proxy.py` starts it and gives it rules (`proxy_rules.py`). Only the standard library is
imported, so that it starts fast.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from benchmarks.proxy_rules import Plan, Rule, State

_BUFFER = 1 << 20  # bytes of one read; large, because each read costs a turn of the event loop
_PACED = 128 << 10  # bytes of one read on a connection with a limited rate
_CREDIT_S = 0.02  # how much a paced connection may catch up: the event loop wakes up to a millisecond late
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close with RST
_NO_BODY = {204, 304}


class _Head:
    """Start line and headers of a request or a response."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        start, *lines = raw.decode("latin-1").rstrip("\r\n").split("\r\n")
        self.words = start.split(" ", 2)
        pairs = (line.partition(":") for line in lines)
        self._fields = {name.strip().lower(): value.strip().lower() for name, _, value in pairs}

    @property
    def chunked(self) -> bool:
        return "chunked" in self._fields.get("transfer-encoding", "")

    @property
    def length(self) -> int | None:
        value = self._fields.get("content-length")
        return None if value is None else int(value)

    @property
    def closes(self) -> bool:
        return "close" in self._fields.get("connection", "")

    @property
    def expects(self) -> bool:
        return "expect" in self._fields


class _Stream:
    """A socket with a buffer for reading."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock, self._loop = sock, asyncio.get_running_loop()
        self._bytes = bytearray(_BUFFER)
        self._buffer = memoryview(self._bytes)
        self._start = self._end = 0

    async def head(self) -> _Head | None:
        """The next head; None at the end of the stream."""
        raw = await self._until(b"\r\n\r\n")
        return _Head(raw) if raw else None

    async def line(self) -> bytes:
        """The next line, with its end."""
        return await self._until(b"\r\n")

    async def pieces(self, size: int | None, most: int = _BUFFER) -> AsyncIterator[memoryview]:
        """The next `size` bytes (None: all until the end), `most` at a time; a piece is valid until the next one."""
        left = sys.maxsize if size is None else size
        while left:
            if self._start == self._end and not await self._fill():
                if size is None:
                    return
                raise ConnectionError("the stream ended in a body")
            end = self._start + min(self._end - self._start, most, left)
            piece, self._start = self._buffer[self._start : end], end
            left -= len(piece)
            yield piece

    async def send(self, data: bytes | memoryview) -> None:
        """Send all of it."""
        await self._loop.sock_sendall(self.sock, data)

    def closed_by_peer(self) -> bool:
        """Whether the other side has closed a connection that should be idle."""
        try:
            return not self.sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def close(self) -> None:
        self.sock.close()

    def reset(self) -> None:
        """Close with RST; bytes that are not delivered yet are lost."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.sock.close()

    async def _until(self, end: bytes) -> bytes:
        while (at := self._bytes.find(end, self._start, self._end)) < 0:
            if not await self._fill():
                return b""
        stop = at + len(end)
        raw, self._start = bytes(self._buffer[self._start : stop]), stop
        return raw

    async def _fill(self) -> bool:
        unread = self._end - self._start
        if unread == 0:
            self._start = self._end = 0
        elif self._start:
            self._buffer[:unread] = bytes(self._buffer[self._start : self._end])
            self._start, self._end = 0, unread
        if self._end == len(self._buffer):
            raise ConnectionError("a head is too long")
        count = await self._loop.sock_recv_into(self.sock, self._buffer[self._end :])
        self._end += count
        return count > 0


class _Broken(Exception):
    """A fault has ended the connection."""


class _Connection:
    """One connection of a client and its own connection to the server."""

    def __init__(self, client: _Stream, target: tuple[str, int], state: State) -> None:
        self._client, self._target, self._state = client, target, state
        self._server: _Stream | None = None
        self._sent_at = 0.0  # when the paced bytes so far are through

    async def serve(self) -> None:
        """Answer requests until one side closes."""
        try:
            while head := await self._client.head():
                if not await self._answer(head):
                    return
        except (OSError, _Broken, ValueError):
            pass
        finally:
            self._client.close()
            if self._server is not None:
                self._server.close()

    async def _answer(self, request: _Head) -> bool:
        """Whether the connection stays open."""
        method, target = request.words[0], request.words[1]
        plan = self._state.plan(method, target)
        await asyncio.sleep(plan.latency_s)
        kind = plan.fault.fault if plan.fault else None
        if kind == "refuse":
            return False
        if kind == "status":
            assert plan.fault is not None
            return await self._answer_status(request, plan.fault.status)
        server = await self._connected()
        await server.send(request.raw)
        sending = None
        if request.chunked or request.length:
            copied = self._copy(self._client, server, request, Plan(rate=plan.rate), (method, target))
            sending = asyncio.create_task(copied)
        try:
            while True:
                response = await server.head()
                if response is None:
                    return False
                status = int(response.words[1])
                if kind == "lose" and status >= 200:
                    self._client.reset()
                    raise _Broken
                await self._client.send(response.raw)
                if status >= 200:
                    break
            until_close = False
            if method != "HEAD" and status not in _NO_BODY:
                until_close = response.length is None and not response.chunked
                await self._copy(server, self._client, response, plan, (method, target))
            open_still = not (request.closes or response.closes or until_close)
            return open_still and (sending is None or sending.done())
        finally:
            if sending is not None:
                sending.cancel()
                with suppress(asyncio.CancelledError, OSError, _Broken):
                    await sending

    async def _answer_status(self, request: _Head, status: int) -> bool:
        stays = not (request.closes or request.expects or request.chunked)
        if stays:
            async for _ in self._client.pieces(request.length or 0):
                pass
        code = {403: "AccessDenied", 404: "NoSuchKey", 429: "TooManyRequests", 503: "SlowDown"}.get(status, "Error")
        body = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>injected</Message></Error>'.encode()
        head = f"HTTP/1.1 {status} {code}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n"
        head += "\r\n" if stays else "Connection: close\r\n\r\n"
        await self._client.send(head.encode() + (b"" if request.words[0] == "HEAD" else body))
        return stays

    async def _connected(self) -> _Stream:
        if self._server is not None and self._server.closed_by_peer():
            self._server.close()
            self._server = None
        if self._server is None:
            self._server = _Stream(socket.socket())
            await asyncio.get_running_loop().sock_connect(self._server.sock, self._target)
        return self._server

    async def _copy(self, source: _Stream, to: _Stream, head: _Head, plan: Plan, key: tuple[str, str]) -> None:
        """Copy the body that follows `head`."""
        most = _BUFFER if plan.rate is None else _PACED
        counted, position = self._state.counts.setdefault(key, [0, 0]), 0
        if not head.chunked:
            async for piece in source.pieces(head.length, most):
                await self._pass_on(to, piece, position, plan)
                position += len(piece)
                counted[1] += len(piece)
            return
        while True:
            line = await source.line()
            size = int(line.split(b";")[0], 16)
            await to.send(line)
            async for piece in source.pieces(size, most):
                await self._pass_on(to, piece, position, plan)
                position += len(piece)
                counted[1] += len(piece)
            if size == 0:
                while line != b"\r\n":  # trailers, and the empty line that ends them
                    line = await source.line()
                    await to.send(line)
                return
            await to.send(await source.line())

    async def _pass_on(self, to: _Stream, piece: memoryview, position: int, plan: Plan) -> None:
        """Send a piece of a body that begins at `position`, with the fault where it falls into the piece."""
        if plan.rate is not None:
            now = time.monotonic()
            self._sent_at = max(self._sent_at, now - _CREDIT_S)
            await asyncio.sleep(max(0.0, self._sent_at - now))
            self._sent_at += len(piece) / plan.rate
        else:
            await asyncio.sleep(0)  # no fast connection holds up the others
        rule = plan.fault
        at = -1 if rule is None else rule.at - position
        if rule is None or not 0 <= at < len(piece):
            await to.send(piece)
            return
        if rule.fault == "flip":
            piece[at] ^= 0xFF
            await to.send(piece)
            return
        await to.send(piece[:at])
        if rule.fault == "stall":
            await asyncio.sleep(rule.stall_s)
            await to.send(piece[at:])
            return
        if rule.fault == "reset":
            await asyncio.sleep(0.02)  # so that the client has read the bytes before the fault
            to.reset()
        raise _Broken


async def _accept(listener: socket.socket, target: tuple[str, int], state: State) -> None:
    loop, tasks = asyncio.get_running_loop(), set()
    while True:
        sock, _ = await loop.sock_accept(listener)
        state.connections += 1
        if state.refuses():
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            sock.close()
            continue
        task = asyncio.create_task(_Connection(_Stream(sock), target, state).serve())
        tasks.add(task)
        task.add_done_callback(tasks.discard)


def _obey(state: State, command: dict[str, Any]) -> Any:
    if command["do"] == "add":
        state.add(Rule(**command["rule"]))
    elif command["do"] == "clear":
        state.rules.clear()
    elif command["do"] == "forget":
        state.counts.clear()
        state.connections = 0
    counts = [[method, target, *numbers] for (method, target), numbers in state.counts.items()]
    return {"counts": counts, "connections": state.connections, "hits": state.hits}


async def _main(host: str, port: int) -> None:
    state = State()

    async def control(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            writer.write(json.dumps(_obey(state, json.loads(await reader.readline()))).encode() + b"\n")
            await writer.drain()
            writer.close()

    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    listener.setblocking(False)
    controls = await asyncio.start_server(control, "127.0.0.1", 0, limit=1 << 20)
    print(listener.getsockname()[1], controls.sockets[0].getsockname()[1], flush=True)
    await _accept(listener, (host, port), state)


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    asyncio.run(_main(sys.argv[1], int(sys.argv[2])))
