"""A real S3-compatible server (SeaweedFS) on loopback, for the whole session, and a proxy that makes it faulty."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from benchmarks.fault_proxy import FaultProxy
from benchmarks.s3_server import s3_server as running_server
from buckets import new_bucket


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of the server."""
    with running_server(tmp_path_factory.mktemp("s3")) as url:
        yield url


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """URL of a bucket, with the server and its keys in the environment as a user would put them there."""
    return new_bucket(s3_server, monkeypatch)


@pytest.fixture
def proxy(s3_server: str) -> Iterator[FaultProxy]:
    """A proxy in front of the server, without rules."""
    with FaultProxy(s3_server) as proxy:
        yield proxy


@pytest.fixture
def proxied_s3(proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> str:
    """URL of a bucket behind `proxy`, with the proxy as the server in the environment."""
    bucket = new_bucket(proxy.url, monkeypatch)
    proxy.forget()
    return bucket
