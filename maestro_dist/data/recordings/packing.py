"""The table of recordings, written at the end of packing."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from maestro_dist.config.windows import WindowConfig
from maestro_dist.data.manifest import ManifestSplit, Recordings, Shard
from maestro_dist.data.recordings.table import TABLE_NAME, RecordingTable, table_of_bytes
from maestro_dist.data.shard_index import load_index
from maestro_dist.data.storage import Storage
from maestro_dist.errors import DataError

_INDEXES = 16  # that are read at a time


def write_table(
    storage: Storage, splits: Mapping[str, ManifestSplit], window: WindowConfig
) -> tuple[dict[str, ManifestSplit], Recordings]:
    """Write the table of all recordings, from the indexes of the shards.

    Returns the entries of the splits, and what the manifest says about the recordings.

    Raises:
        DataError: two recordings have one key.
        StorageError: an index cannot be read, or the table not be written.
    """
    with ThreadPoolExecutor(_INDEXES) as pool:
        shards = [shard for split in splits.values() for shard in split.shards]
        parts = list(pool.map(lambda shard: _part(storage, shard), shards))
    table = RecordingTable.joined(parts)
    seen: set[str] = set()
    for key in table.texts["key"]:
        if key in seen:
            raise DataError(f"two recordings have the key {key}; give each its own")
        seen.add(key)
    data = table.to_bytes()
    storage.write(TABLE_NAME, data)
    about = Recordings(table=TABLE_NAME, bytes=table.bytes, sha256=hashlib.sha256(data).hexdigest(), window=window)
    no_target: dict[str, Any] = {"class_counts": [], "target_mean": None, "target_std": None}
    return {name: split.model_copy(update=no_target) for name, split in splits.items()}, about


def _part(storage: Storage, shard: Shard) -> RecordingTable:
    return table_of_bytes(load_index(storage, shard).table, storage.name(shard.index))
