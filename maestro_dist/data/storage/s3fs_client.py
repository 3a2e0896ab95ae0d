"""S3 through s3fs, the default client."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from typing import Any

from maestro_dist.data.storage.client import FileSystemClient
from maestro_dist.data.storage.presigned import SignedReader
from maestro_dist.data.storage.request_counts import count_botocore_requests, count_received, count_request
from maestro_dist.data.storage.retry import NoSuchBucket, error_codes
from maestro_dist.data.storage.settings import StorageSettings


class S3FileSystemClient(FileSystemClient):
    """S3 through s3fs. Its requests are counted where botocore sends them, so that hidden ones count too."""

    counts_calls = False
    _MOST_REMOVED = 1000  # by one request

    def __init__(self, settings: StorageSettings) -> None:
        from s3fs import S3FileSystem

        super().__init__(S3FileSystem(skip_instance_cache=True, **_options(settings)), has_folders=False)
        self._fs.retries = 1
        self._signed = SignedReader(settings)

    def connect(self) -> None:
        """Prepare the connection, unless it is; s3fs makes a new one after its loop has ended."""
        count_botocore_requests(self._fs.connect())

    def read(self, key: str) -> bytes:
        # with more than one range at a time, s3fs asks for the size first
        return count_received(self._fs.cat_file(key, max_concurrency=1))

    def pieces(self, key: str, start: int, end: int) -> Iterator[bytes]:
        count_request("GET")
        url = self._fs.sign(key)
        for piece in self._signed.pieces(url, key, start, end):
            yield count_received(piece)

    def size(self, key: str) -> int:
        bucket, name, _ = self._fs.split_path(key)
        return int(self._fs.call_s3("head_object", Bucket=bucket, Key=name)["ContentLength"])

    def sizes(self, key: str) -> dict[str, int]:
        # `fs.ls` also lists the folder above where it finds nothing
        found: dict[str, int] = {}
        start = len(self._prefix(key))
        for page in self._pages(key, Delimiter="/"):
            found |= {item["Prefix"][start:].rstrip("/"): 0 for item in page.get("CommonPrefixes", ())}
            found |= {item["Key"][start:]: int(item["Size"]) for item in page.get("Contents", ())}
        found.pop("", None)  # the marker of the folder itself
        return found

    def details(self, key: str) -> tuple[int | None, str]:
        bucket, name, _ = self._fs.split_path(key)
        head = self._fs.call_s3("head_object", Bucket=bucket, Key=name)
        return int(head["ContentLength"]), str(head.get("ETag", ""))

    def tree(self, key: str) -> dict[str, tuple[int | None, str]]:
        start = len(self._prefix(key))
        found = {item["Key"][start:]: item for page in self._pages(key) for item in page.get("Contents", ())}
        return {name: (int(item["Size"]), str(item.get("ETag", ""))) for name, item in found.items() if name}

    def _prefix(self, key: str) -> str:
        name = self._fs.split_path(key)[1].rstrip("/")
        return f"{name}/" if name else ""

    def _pages(self, key: str, **options: str) -> Iterator[dict[str, Any]]:
        """The answers to a listing of a folder, up to 1000 names each."""
        request = {"Bucket": self._fs.split_path(key)[0], "Prefix": self._prefix(key), **options}
        while True:
            try:
                page = self._fs.call_s3("list_objects_v2", **request)
            except FileNotFoundError as error:
                raise NoSuchBucket(f"there is no bucket {request['Bucket']!r}") from error
            yield page
            if not page.get("IsTruncated"):
                return
            request["ContinuationToken"] = page["NextContinuationToken"]

    def remove_folder(self, key: str) -> None:
        bucket = self._fs.split_path(key)[0]
        found = [f"{bucket}/{item['Key']}" for page in self._pages(key) for item in page.get("Contents", ())]
        self.remove_many(found)

    def write(self, key: str, data: bytes, *, create: bool) -> None:
        try:
            super().write(key, data, create=create)
        except OSError as error:
            if create and (error.errno == errno.EINVAL and error_codes(error) & {"PreconditionFailed", "412"}):
                raise FileExistsError(key) from error
            raise

    def remove(self, key: str) -> None:
        self._fs.rm_file(key)

    def remove_many(self, keys: Sequence[str]) -> None:
        for start in range(0, len(keys), self._MOST_REMOVED):
            some = [self._fs.split_path(key) for key in keys[start : start + self._MOST_REMOVED]]
            names = [{"Key": name} for _, name, _ in some]
            answer = self._fs.call_s3("delete_objects", Bucket=some[0][0], Delete={"Objects": names, "Quiet": True})
            _raise_first(answer.get("Errors"))


def _raise_first(errors: Sequence[dict[str, Any]] | None) -> None:
    for error in errors or ():
        if error.get("Code") != "NoSuchKey":
            raise OSError(errno.EIO, f"{error.get('Key')} was not removed: {error.get('Code')} {error.get('Message')}")


def _options(settings: StorageSettings) -> dict[str, Any]:
    """Options of s3fs. It finds in the environment what they leave out."""
    connect, answer = settings.time_limits_s
    limits = {"connect_timeout": connect, "read_timeout": answer, "retries": {"total_max_attempts": 1}}
    options: dict[str, Any] = {"use_listings_cache": False, "config_kwargs": limits}
    given = {"endpoint_url": settings.endpoint_url, "profile": settings.profile, "anon": settings.anonymous or None}
    options |= {name: value for name, value in given.items() if value is not None}
    region = settings.region_or_environment
    if region and (settings.region or "AWS_DEFAULT_REGION" not in os.environ):
        options["client_kwargs"] = {"region_name": region}
    return options
