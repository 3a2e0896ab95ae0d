"""Which client a URL has."""

from __future__ import annotations

import os
import threading
from typing import Any

from maestro_dist.data.storage.client import FileSystemClient
from maestro_dist.data.storage.obstore_client import ObjectStoreClient
from maestro_dist.data.storage.s3fs_client import S3FileSystemClient
from maestro_dist.data.storage.settings import StorageSettings, storage_settings

OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "wasb", "wasbs", "memory"}
"""Protocols of stores that have no folders."""
_ALIASES = {"wasb": "abfs", "wasbs": "abfs"}  # protocols that fsspec does not know
_S3 = {"s3", "s3a"}


def open_client(url: str) -> tuple[FileSystemClient, str]:
    """The client for a URL, and the object's key there (`bucket/name` for an object store)."""
    import fsspec

    settings = storage_settings()
    protocol, separator, rest = url.partition("://")
    if protocol in _S3:
        return _s3_client(rest.split("/", 1)[0], settings), rest
    protocol = _ALIASES.get(protocol, protocol)
    fs, key = fsspec.core.url_to_fs(f"{protocol}{separator}{rest}")
    return FileSystemClient(fs, has_folders=protocol not in OBJECT_STORES), str(key)


_clients: dict[tuple[Any, ...], S3FileSystemClient | ObjectStoreClient] = {}
_making = threading.Lock()


def _s3_client(bucket: str, settings: StorageSettings) -> S3FileSystemClient | ObjectStoreClient:
    """The client of S3 in this process, for all threads: a new one for each thread would take a tenth of a second."""
    environment = tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_")))
    s3fs = settings.client == "s3fs"
    key = (os.getpid(), settings, hash(environment), "" if s3fs else bucket)
    with _making:
        client = _clients.get(key)
        if client is None:
            client = _clients[key] = S3FileSystemClient(settings) if s3fs else ObjectStoreClient(bucket, settings)
    client.connect()
    return client
