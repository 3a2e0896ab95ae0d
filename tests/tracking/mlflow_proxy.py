"""A proxy before an MLflow server: from a chosen request on, the server is gone or never answers."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class MlflowProxy:
    """Passes requests on while `mode` is "pass"; "dead" closes connections, "silent" takes requests and never answers.

    at_metrics  called once, before the first batch of metrics is passed on; None: nothing happens
    """

    def __init__(self, port: int) -> None:
        self.mode = "pass"
        self.at_metrics: Callable[[], None] | None = None
        self.port, self._released, self._lock = port, threading.Event(), threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                proxy.answer(self)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.uri = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        request.close_connection = True
        if request.path.endswith("/runs/log-batch") and b'"metrics": [{' in body:
            with self._lock:
                call, self.at_metrics = self.at_metrics, None
            if call is not None:
                call()
        if self.mode == "silent":
            self._released.wait()
        if self.mode != "pass":
            return
        server = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        headers = {name: value for name, value in request.headers.items() if name.lower() not in ("host", "connection")}
        server.request(request.command, request.path, body, headers)
        got = server.getresponse()
        content = got.read()
        request.send_response(got.status)
        for name, value in got.getheaders():
            if name.lower() not in ("transfer-encoding", "content-length", "connection", "server", "date"):
                request.send_header(name, value)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)

    def close(self) -> None:
        self.mode = "dead"
        self._released.set()
        self._server.shutdown()
        self._server.server_close()
