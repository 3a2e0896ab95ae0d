# ruff: noqa: F811
"""Answers that are lost, objects that come with other bytes, buckets that are not found for a while."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from fault_proxy import FaultProxy, Rule
from test_storage_faults import DATA, client, patience  # noqa: F401

from maestro_dist.data.storage import ObjectDamaged, Storage
from maestro_dist.data.storage.plain_json import parse_json
from maestro_dist.data.storage.verified_downloads import KnownContent, download_verified
from maestro_dist.errors import StorageError


def test_a_bucket_that_is_not_found_for_a_write_is_asked_for_again(
    proxied_s3: str, proxy: FaultProxy, client: str
) -> None:
    patience(client, 60)  # a server on a busy disk may be slow
    storage, missing = Storage(proxied_s3), Rule("PUT", "thing", requests=2, fault="status", status=404)
    proxy.add(missing)
    with pytest.raises(StorageError, match=r"^cannot write s3://\S+/thing: there is no such bucket$"):
        storage.write("thing", DATA)
    proxy.clear()
    assert storage.list() == []  # now it is known to exist
    proxy.add(missing)
    storage.write("thing", DATA)
    assert proxy.count("PUT", "thing").requests >= 3


def test_an_object_is_created_once_also_if_the_answer_is_lost(proxied_s3: str, proxy: FaultProxy, client: str) -> None:
    """Also where the HTTP client sends the request again by itself, on a connection that was used before."""
    storage = Storage(proxied_s3)
    storage.write("other", b"")
    for number in (1, 2):
        proxy.add(Rule("PUT", f"thing-{number}", requests=number, fault="lose"))
        storage.write(f"thing-{number}", b"mine", create=True)
        with pytest.raises(FileExistsError):
            storage.write(f"thing-{number}", b"of another", create=True)
        assert storage.read(f"thing-{number}") == b"mine"


def test_damaged_content_is_read_again(proxied_s3: str, proxy: FaultProxy, client: str) -> None:
    storage = Storage(proxied_s3)
    storage.write("thing", b'{"a": 1}')
    proxy.add(Rule("GET", "thing", requests=2, fault="flip", at=3))
    assert storage.parsed("thing", parse_json) == {"a": 1}
    assert proxy.count("GET", "thing").requests == 3
    storage.write("thing", b'{"a": ')
    patience(client, 0.3)
    with pytest.raises(
        ObjectDamaged, match=r"^s3://\S+/thing: Expecting value: .* \(after \d+ attempts in \d+ s\)$"
    ) as caught:
        storage.parsed("thing", parse_json)
    assert caught.value.problem.startswith("Expecting value")


def test_a_download_with_other_bytes_is_made_again(
    proxied_s3: str, proxy: FaultProxy, client: str, tmp_path: Path
) -> None:
    storage, copy = Storage(proxied_s3), tmp_path / "copy"
    known = KnownContent(len(DATA), hashlib.sha256(DATA).hexdigest(), "the list")
    storage.write("thing", DATA)
    proxy.add(Rule("GET", "thing", requests=2, fault="flip", at=1000))
    download_verified(storage, "thing", copy, known)
    assert copy.read_bytes() == DATA
    proxy.add(Rule("GET", "thing", fault="flip", at=1000))
    patience(client, 0.3)
    with pytest.raises(ObjectDamaged, match=r"thing: its sha256 is not that of the list \(after \d+ attempts"):
        download_verified(storage, "thing", copy, known)
