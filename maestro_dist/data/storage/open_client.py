"""Which client a URL has."""

from __future__ import annotations

from maestro_dist.data.storage.client import FileSystemClient
from maestro_dist.data.storage.obstore_client import object_store
from maestro_dist.data.storage.s3fs_client import S3FileSystemClient, s3_options
from maestro_dist.data.storage.settings import storage_settings

OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "wasb", "wasbs", "memory"}
"""Protocols of stores that have no folders."""
_ALIASES = {"wasb": "abfs", "wasbs": "abfs"}  # protocols that fsspec does not know
_S3 = {"s3", "s3a"}


def open_client(url: str) -> tuple[FileSystemClient, str]:
    """The client for a URL in this thread, and the object's key there (`bucket/name` for an object store)."""
    import fsspec

    settings = storage_settings()
    protocol, separator, rest = url.partition("://")
    if protocol in _S3 and settings.client == "obstore":
        return object_store(rest.split("/", 1)[0], settings), rest
    protocol = _ALIASES.get(protocol, protocol)
    options = s3_options(settings) if protocol in _S3 else {}
    fs, key = fsspec.core.url_to_fs(f"{protocol}{separator}{rest}", **options)
    if protocol in _S3:
        return S3FileSystemClient(fs), str(key)
    return FileSystemClient(fs, has_folders=protocol not in OBJECT_STORES), str(key)
