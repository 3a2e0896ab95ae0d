"""Data, checkpoints and leases on a real S3-compatible server over HTTP."""

from __future__ import annotations

import http.server
import signal
import threading
from pathlib import Path

import pytest
import runs
import synthetic

from maestro_dist.data.manifest import load_manifest
from maestro_dist.data.storage import Storage, retry
from maestro_dist.errors import RunError, StorageError
from maestro_dist.run.lease import Lease


def test_objects_come_and_go(s3: str) -> None:
    storage = Storage(s3)
    storage.write("a/b/one", b"1" * 1000)
    storage.write("a/two", b"2")
    assert storage.list("a") == ["b", "two"]
    assert storage.read_range("a/b/one", 990, 100) == b"1" * 10
    with storage.writer("a/three") as file:
        file.write(b"3" * 100)
    assert storage.size("a/three") == 100
    storage.remove("a/b", recursive=True)
    assert not storage.exists("a/b/one")


def test_a_lease_holds_on_a_store(s3: str) -> None:
    held = Lease(f"{s3}/runs/x")
    with pytest.raises(RunError, match="held by another driver"):
        Lease(f"{s3}/runs/x")
    held.release()
    again = Lease(f"{s3}/runs/x")
    assert again.attempt == 2
    again.release()


def test_wrong_keys_are_named_without_showing_them(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(StorageError, match="credentials") as caught:
        Storage(s3).read("x")
    assert "not-the-secret" not in str(caught.value)


@pytest.mark.slow
def test_a_killed_run_on_a_store_ends_as_one_on_disk(s3: str, tmp_path: Path) -> None:
    local, remote = str(tmp_path / "data"), f"{s3}/data"
    synthetic.write(local)
    synthetic.write(remote)
    assert load_manifest(remote) == load_manifest(local)
    assert runs.train(tmp_path, local, "optim.epochs=2") == 0

    uri = f"sqlite:///{tmp_path}/remote/mlflow.db"
    extra = ["optim.epochs=2", "checkpoint.every_steps=2", f"data.cache={tmp_path}/cache", f"tracking.uri={uri}"]
    process = runs.start(f"{s3}/runs", remote, *extra)
    run = Storage(f"{s3}/runs/tiny")
    runs.wait_for(lambda: run.exists("checkpoints/step-000000004/checkpoint.json"), process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert runs.train(f"{s3}/runs", remote, *extra) == 0
    runs.assert_same_weights(runs.weights(tmp_path), runs.weights(f"{s3}/runs"))
    assert runs.tracked(tmp_path / "remote") == runs.tracked(tmp_path)

    from maestro_dist.evaluate import main

    assert main([f"{s3}/runs/tiny", "--rates", "0", "--threads", "1"]) == 0
    assert runs.train(f"{s3}/runs", remote, *extra) == 0  # finished


class _Restarting(http.server.BaseHTTPRequestHandler):
    """An S3 server that is overloaded at first; every name has the same object."""

    overloaded = 2
    body = b""

    def do_GET(self) -> None:
        cls = type(self)
        fails, cls.overloaded = cls.overloaded > 0, cls.overloaded - 1
        error = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
        content = error if fails else self.body
        self.send_response(503 if fails else 200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", '"1"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        """Print nothing."""


def test_a_server_that_is_restarted_is_waited_for(packed_manifest: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server refuses connections, then answers 503; the manifest is read in the end."""
    import s3fs

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Restarting, bind_and_activate=False)
    server.server_bind()  # so that nobody else takes the port; connections are refused until it listens
    monkeypatch.setattr(_Restarting, "body", packed_manifest)
    for name, value in {"ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}", "ACCESS_KEY_ID": "k"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 1:
            server.server_activate()
            threading.Thread(target=server.serve_forever, args=[0.02], daemon=True).start()

    monkeypatch.setattr(retry.time, "sleep", pause)
    with pytest.raises(StorageError, match=r"cannot read s3://bucket/data/manifest\.json: .*\(after 1 attempts"):
        Storage("s3://bucket/data", patience_s=0).read("manifest.json")
    assert load_manifest("s3://bucket/data").name == "synthetic"
    server.shutdown()
    server.server_close()
    assert pauses
    assert _Restarting.overloaded < 0


@pytest.fixture
def packed_manifest(tmp_path: Path) -> bytes:
    synthetic.write(str(tmp_path))
    return (tmp_path / "manifest.json").read_bytes()
