"""S3 through obstore (optional), which moves large objects faster than s3fs.

Its own layer for fsspec is not used: it ignores `mode="create"`, on which the leases of runs depend.
"""

from __future__ import annotations

import errno
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from maestro_dist.data.storage.client import FileSystemClient
from maestro_dist.data.storage.request_counts import count_received, count_request
from maestro_dist.data.storage.retry import NoSuchBucket
from maestro_dist.data.storage.settings import StorageSettings
from maestro_dist.errors import StorageError


class ObjectStoreClient(FileSystemClient):
    """S3 through obstore, which moves large objects faster. Each call counts as one request of its kind."""

    def __init__(self, bucket: str, settings: StorageSettings) -> None:
        try:
            self._api: Any = importlib.import_module("obstore")
            store: Any = importlib.import_module("obstore.store")
        except ImportError as error:
            raise StorageError("s3.client: obstore is not installed; pip install obstore, or use s3fs") from error
        options: dict[str, Any] = {"region": settings.region_or_environment or "us-east-1"}
        endpoint = settings.endpoint_or_environment
        if endpoint:
            options["endpoint"] = endpoint
        if settings.anonymous:
            options["skip_signature"] = True
        connect, answer = settings.time_limits_s
        self._store = store.S3Store(
            bucket,
            config=options,
            client_options={
                "allow_http": bool(endpoint and endpoint.startswith("http://")),
                "connect_timeout": f"{connect}s",
                "timeout": f"{answer}s",
            },
            retry_config={"max_retries": 0},
            credential_provider=None if settings.anonymous else _Credentials(settings.profile),
        )

    def connect(self) -> None:
        """Nothing to do: connections are made when they are needed."""

    def read(self, key: str) -> bytes:
        return count_received(self._call("GET", lambda name: bytes(self._store.get(name).bytes()), key))

    def read_range(self, key: str, start: int, end: int) -> bytes:
        return count_received(
            self._call("GET", lambda name: bytes(self._store.get_range(name, start=start, end=end)), key)
        )

    def size(self, key: str) -> int:
        return int(self._call("HEAD", lambda name: self._store.head(name)["size"], key))

    def find(self, key: str) -> None:
        try:
            self.size(key)
        except FileNotFoundError:
            if not self.sizes(key):
                raise

    def sizes(self, key: str) -> dict[str, int]:
        try:
            listed = self._call("LIST", lambda name: self._store.list_with_delimiter(f"{name}/" if name else None), key)
        except FileNotFoundError as error:
            raise NoSuchBucket(f"there is no bucket {key.partition('/')[0]!r}") from error
        found = {str(folder).rsplit("/", 1)[-1]: 0 for folder in listed["common_prefixes"]}
        marker = _in_bucket(key).strip("/")  # of the folder itself
        objects = [(str(item["path"]), int(item["size"])) for item in listed["objects"]]
        return found | {path.rsplit("/", 1)[-1]: size for path, size in objects if path != marker}

    def details(self, key: str) -> tuple[int | None, str]:
        head = self._call("HEAD", self._store.head, key)
        return int(head["size"]), str(head.get("e_tag") or "")

    def tree(self, key: str) -> dict[str, tuple[int | None, str]]:
        start = len(_in_bucket(key).rstrip("/")) + 1 if _in_bucket(key) else 0
        found = {str(item["path"])[start:]: item for item in self._call("LIST", self._below, key)}
        return {name: (int(item["size"]), str(item.get("e_tag") or "")) for name, item in found.items() if name}

    def _below(self, name: str) -> list[Any]:
        return [item for part in self._store.list(f"{name}/" if name else None) for item in part]

    def write(self, key: str, data: bytes, *, create: bool) -> None:
        mode = "create" if create else "overwrite"
        self._call("PUT", lambda name: self._store.put(name, data, mode=mode, use_multipart=False), key)

    def upload(self, path: Path, key: str) -> None:
        self._call("PUT", lambda name: self._store.put(name, path), key)

    def remove(self, key: str) -> None:
        self._call("DELETE", self._store.delete, key)

    def remove_many(self, keys: Sequence[str]) -> None:
        names = [_in_bucket(key) for key in keys]
        if names:
            self._call("DELETE", lambda _: self._store.delete(names), keys[0])

    def remove_folder(self, key: str) -> None:
        bucket = key.split("/", 1)[0]
        self.remove_many([f"{bucket}/{item['path']}" for item in self._call("LIST", self._below, key)])

    def _call(self, kind: str, call: Any, key: str) -> Any:
        count_request(kind)
        errors = self._api.exceptions
        try:
            return call(_in_bucket(key))
        except errors.AlreadyExistsError as error:
            raise FileExistsError(key) from error
        except (errors.PermissionDeniedError, errors.UnauthenticatedError) as error:
            raise PermissionError(str(error)) from error
        except errors.BaseError as error:
            raise OSError(errno.EIO, _first_sentence(error)) from error


class _Credentials:
    """Credentials for obstore from where botocore finds them: environment, shared files, the machine's role."""

    def __init__(self, profile: str | None) -> None:
        from botocore.session import Session

        self._credentials = Session(profile=profile).get_credentials()
        if self._credentials is None:
            raise PermissionError("there are no credentials")

    def __call__(self) -> dict[str, Any]:
        from datetime import UTC, datetime, timedelta

        keys = self._credentials.get_frozen_credentials()
        names = {"access_key_id": keys.access_key, "secret_access_key": keys.secret_key, "token": keys.token}
        return {**names, "expires_at": datetime.now(UTC) + timedelta(minutes=10)}  # botocore renews them itself


def _in_bucket(key: str) -> str:
    return key.partition("/")[2]


def _first_sentence(error: Exception) -> str:
    """The text of an error of obstore, which is followed by a dump of its parts."""
    return str(error).partition("\n\nDebug source")[0]
