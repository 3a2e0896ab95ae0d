"""One interface to local folders and fsspec URLs, with one retry policy for all remote calls."""

from __future__ import annotations

from maestro_dist.data.storage.retry import ObjectDamaged, ObjectMissing
from maestro_dist.data.storage.store import Storage
from maestro_dist.system.redact import redact

__all__ = ["ObjectDamaged", "ObjectMissing", "Storage", "redact"]
