"""The proxy of the fault tests: it forwards any request unchanged, and injects each fault where a rule says so."""

from __future__ import annotations

import http.client
import http.server
import threading
import time
from collections.abc import Iterator

import pytest
from fault_proxy import Count, FaultProxy, Rule

BODY = bytes(range(256)) * 1200  # 307,200 bytes: several reads


class _Server(http.server.BaseHTTPRequestHandler):
    """GET and HEAD give BODY, in chunks or until close where the path says so; PUT gives what was sent."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        if self.path.startswith("/close"):
            self.send_header("Connection", "close")
        elif self.path.startswith("/chunked"):
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(len(BODY)))
        self.send_header("X-Host", self.headers["Host"])
        self.end_headers()
        if self.command == "HEAD":
            return
        if not self.path.startswith("/chunked"):
            self.wfile.write(BODY)
            return
        for at in range(0, len(BODY), 10_000):
            piece = BODY[at : at + 10_000]
            self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        self.wfile.write(b"0\r\n\r\n")

    do_HEAD = do_GET

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def plain_server() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Server)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # connections that end early are meant to
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def plain(plain_server: str) -> Iterator[FaultProxy]:
    with FaultProxy(plain_server) as proxy:
        yield proxy


def connect(proxy: FaultProxy, timeout: float = 30.0) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(proxy.url.removeprefix("http://"), timeout=timeout)


def get(proxy: FaultProxy, path: str = "/x", timeout: float = 30.0) -> tuple[int, bytes]:
    connection = connect(proxy, timeout)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def test_one_connection_serves_requests_of_all_kinds(plain: FaultProxy) -> None:
    connection = connect(plain)
    for path in ("/a", "/chunked/b", "/c"):
        connection.request("GET", path, headers={"Host": "signed.example"})
        response = connection.getresponse()
        assert (response.getheader("X-Host"), response.read()) == ("signed.example", BODY)
    connection.request("HEAD", "/a")
    response = connection.getresponse()
    assert (response.getheader("Content-Length"), response.read()) == (str(len(BODY)), b"")
    connection.request("PUT", "/put", body=BODY)
    assert connection.getresponse().read() == BODY
    connection.request("GET", "/close/d")
    assert connection.getresponse().read() == BODY
    assert plain.connections() == 1
    assert plain.count("GET") == Count(4, 4 * len(BODY))
    assert plain.count("HEAD", "/a") == Count(1, 0)
    assert plain.count("PUT") == Count(1, 2 * len(BODY))
    assert plain.count("GET", "^/chunked/") == Count(1, len(BODY))
    plain.forget()
    assert (plain.counts(), plain.connections()) == ([], 0)


@pytest.mark.parametrize("status", [403, 404, 429, 500, 503])
def test_a_status_for_some_requests(plain: FaultProxy, status: int) -> None:
    plain.add(Rule("GET", r"\.tar$", requests=2, fault="status", status=status))
    connection = connect(plain)
    answers = []
    for path in ("/a.tar", "/a.json", "/b.tar", "/c.tar"):
        connection.request("GET", path)
        response = connection.getresponse()
        answers.append(response.status)
        response.read()
    assert answers == [status, 200, status, 200]


def test_a_refused_connection(plain: FaultProxy) -> None:
    kept = connect(plain)
    kept.request("GET", "/x")
    kept.getresponse().read()
    plain.add(Rule(fault="refuse", requests=2))
    with pytest.raises(ConnectionError):
        get(plain)
    kept.request("GET", "/x")
    with pytest.raises(ConnectionError):  # also on a connection that was there before
        kept.getresponse()
    assert get(plain) == (200, BODY)


@pytest.mark.parametrize("path", ["/x", "/chunked/x"])
def test_bodies_that_end_early(plain: FaultProxy, path: str) -> None:
    plain.add(Rule(fault="truncate", at=100_000, requests=1), Rule(fault="reset", at=200_000, requests=1))
    with pytest.raises(http.client.IncompleteRead) as caught:
        get(plain, path)
    assert caught.value.partial == BODY[: len(caught.value.partial)]
    connection = connect(plain)
    connection.request("GET", path)
    response = connection.getresponse()
    assert response.read(150_000) == BODY[:150_000]
    with pytest.raises(ConnectionResetError):
        response.read()
    assert get(plain, path) == (200, BODY)


def test_a_body_shorter_than_the_fault_comes_unchanged(plain: FaultProxy) -> None:
    plain.add(Rule(fault="truncate", at=len(BODY)))
    assert get(plain) == (200, BODY)


def test_one_wrong_byte(plain: FaultProxy) -> None:
    plain.add(Rule(fault="flip", at=123_456, requests=1))
    body = get(plain)[1]
    assert [at for at in range(len(BODY)) if body[at] != BODY[at]] == [123_456]
    assert get(plain) == (200, BODY)


def test_a_body_that_stalls(plain: FaultProxy) -> None:
    plain.add(Rule(fault="stall", at=1000, stall_s=60, requests=1))
    with pytest.raises(TimeoutError):
        get(plain, timeout=0.3)
    plain.add(Rule(fault="stall", at=1000, stall_s=0.1, requests=1))
    assert get(plain) == (200, BODY)


def test_a_slow_link(plain: FaultProxy) -> None:
    plain.add(Rule(latency_s=0.1, rate_mb_s=1.0))
    begun = time.monotonic()
    assert get(plain) == (200, BODY)
    assert time.monotonic() - begun > 0.1 + 0.1  # the body takes 0.3 s; less what the socket buffers at its start
    plain.clear()
    plain.add(Rule(latency_s=60))
    with pytest.raises(TimeoutError):
        get(plain, timeout=0.3)


def test_a_rule_that_lasts_for_seconds(plain: FaultProxy) -> None:
    plain.add(Rule(fault="status", lasts_s=0.4))
    answers = [get(plain)[0]]
    deadline = time.monotonic() + 30
    while answers[-1] != 200 and time.monotonic() < deadline:
        time.sleep(0.05)
        answers.append(get(plain)[0])
    assert (answers[0], answers[-1]) == (503, 200)


def test_a_rule_that_waits_for_requests_and_lasts_from_the_first(plain: FaultProxy) -> None:
    plain.add(Rule("GET", "/x", after=2, lasts_s=0.4, from_first=True, fault="status"))
    assert [get(plain)[0] for _ in range(2)] == [200, 200]
    time.sleep(0.5)
    assert get(plain, "/y")[0] == 200
    assert [get(plain)[0], plain.hits()] == [503, 1]
    time.sleep(0.5)
    assert [get(plain)[0], plain.hits()] == [200, 1]


def test_an_answer_that_is_lost(plain: FaultProxy) -> None:
    plain.add(Rule("PUT", fault="lose", requests=1))
    connection = connect(plain)
    connection.request("PUT", "/put", body=BODY)
    with pytest.raises(ConnectionResetError):
        connection.getresponse()
    assert plain.count("PUT") == Count(1, len(BODY))  # the server has it
    assert get(plain) == (200, BODY)


def test_another_process_can_give_rules(plain: FaultProxy) -> None:
    FaultProxy.attached(plain.url, plain.control).add(Rule(fault="status", status=500))
    assert get(plain)[0] == 500


def test_a_server_that_is_down_closes_the_connection() -> None:
    with FaultProxy("http://127.0.0.1:9") as proxy, pytest.raises(ConnectionError):
        get(proxy)


def test_signed_requests_pass(proxy: FaultProxy, proxied_s3: str) -> None:
    import s3fs

    fs, path = s3fs.S3FileSystem(), f"{proxied_s3}/folder/object"
    data = BODY * 40  # 12 MB
    fs.pipe_file(path, data)
    assert fs.cat_file(path) == data
    assert fs.cat_file(path, start=1000, end=2000) == data[1000:2000]
    assert [entry["size"] for entry in fs.ls(f"{proxied_s3}/folder", detail=True)] == [len(data)]
    assert proxy.count("GET", "/folder/object").bytes == len(data) + 1000
    proxy.add(Rule("PUT", fault="status", requests=1))
    fs.pipe_file(path, b"new")  # repeated by the client
    assert fs.cat_file(path) == b"new"
    proxy.add(Rule("GET|HEAD", "/folder/object", fault="status", status=403))
    with pytest.raises(PermissionError):
        fs.cat_file(path)
