"""New buckets on the server of the tests."""

from __future__ import annotations

import time

import pytest
from benchmarks.s3_server import KEY, SECRET


def new_bucket(server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """URL of a bucket on this server, whose URL and keys are put into the environment."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    name = f"bucket-{time.time_ns()}"
    s3fs.S3FileSystem().mkdir(name)
    return f"s3://{name}"
