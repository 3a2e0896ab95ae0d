"""Downloads from a real S3 server behind a faulty proxy."""

from __future__ import annotations

import hashlib
import logging
import traceback
from pathlib import Path

import pytest
from fault_proxy import FaultProxy, Rule
from test_storage_faults import CLIENTS, patience

from maestro_dist.data.storage import ObjectMissing, Storage, retry
from maestro_dist.data.storage.request_counts import request_counts
from maestro_dist.data.storage.settings import storage_settings
from maestro_dist.errors import ReaderError, StorageError

SIZE = 6_000_000
DATA = hashlib.shake_256(b"download").digest(SIZE)


@pytest.fixture(params=CLIENTS)
def storage(request: pytest.FixtureRequest, proxied_s3: str, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """The bucket with one object, `thing`."""
    if request.param == "obstore":
        pytest.importorskip("obstore")
    monkeypatch.setattr(retry, "_allowed", set())
    patience(request.param, 10)
    bucket = Storage(proxied_s3)
    bucket.write("thing", DATA)
    return bucket


def test_a_download_is_one_request(storage: Storage, proxy: FaultProxy, tmp_path: Path) -> None:
    digest, told, before = hashlib.sha256(), list[int](), request_counts()
    proxy.forget()
    storage.download("thing", tmp_path / "copy", lambda done, size: told.append(done), size=SIZE, digest=digest)
    assert (tmp_path / "copy").read_bytes() == DATA
    assert digest.digest() == hashlib.sha256(DATA).digest()
    assert told == sorted(told)
    assert told[-1] == SIZE
    assert proxy.count().requests == 1
    counted = request_counts() - before
    assert (counted.requests, counted.received_bytes) == ({**counted.requests, "GET": 1}, SIZE)


@pytest.mark.parametrize("fault", ["reset", "truncate", "status"])
def test_a_download_goes_on_where_it_was(storage: Storage, proxy: FaultProxy, tmp_path: Path, fault: str) -> None:
    at = 4_000_000
    proxy.add(Rule("GET", "thing", requests=2, fault=fault, at=at, status=503))  # type: ignore[arg-type]
    proxy.forget()
    digest = hashlib.sha256()
    storage.download("thing", tmp_path / "copy", size=SIZE, digest=digest)
    assert (tmp_path / "copy").read_bytes() == DATA
    assert digest.digest() == hashlib.sha256(DATA).digest()


def test_after_a_reset_only_the_rest_is_asked_for(proxied_s3: str, proxy: FaultProxy, tmp_path: Path) -> None:
    patience("s3fs", 10)
    storage, at, told = Storage(proxied_s3), 4_000_000, list[int]()
    storage.write("thing", DATA)
    proxy.add(Rule("GET", "thing", requests=1, fault="reset", at=at))
    storage.download("thing", tmp_path / "copy", lambda done, size: told.append(done), size=SIZE)
    assert (tmp_path / "copy").read_bytes() == DATA
    assert told == sorted(told)  # nothing came twice


def test_failures_are_told_without_a_signature(
    storage: Storage, proxy: FaultProxy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "maestro_dist")
    with pytest.raises(ObjectMissing, match="other: no such object"):
        storage.download("other", tmp_path / "copy", size=SIZE)
    patience(storage_settings().client, 0.3)
    for rule in (
        Rule("GET", "thing", fault="status", status=500),
        Rule("GET", "thing", fault="reset", at=0),
        Rule(fault="refuse"),
    ):
        proxy.add(rule)
        with pytest.raises(StorageError, match=r"cannot read s3://\S+/thing: .*after \d+ attempts") as caught:
            storage.download("thing", tmp_path / "copy", size=SIZE)
        proxy.clear()
        told = "".join(traceback.format_exception(caught.value)) + caplog.text
        assert "Signature=" not in told
        assert "X-Amz-Credential" not in told


def test_a_download_can_be_ended(storage: Storage, tmp_path: Path) -> None:
    def end(done: int, size: int) -> None:
        raise ReaderError("ended")

    with pytest.raises(ReaderError, match="ended"):
        storage.download("thing", tmp_path / "copy", end, size=SIZE)
    storage.download("thing", tmp_path / "copy", size=SIZE)  # the connection is not used with a half-read body
    assert (tmp_path / "copy").read_bytes() == DATA
