"""The table of recordings, written at the end of packing."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from maestro_dist.config.windows import WindowConfig
from maestro_dist.data.manifest import ManifestSplit, Recordings, Shard
from maestro_dist.data.parts import join_names
from maestro_dist.data.recordings.table import TABLE_NAME, RecordingTable, table_of_bytes
from maestro_dist.data.shard_index import load_index
from maestro_dist.data.storage import Storage
from maestro_dist.errors import DataError

_LOG = logging.getLogger(__name__)

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
    for warning in _warnings(table):
        _LOG.warning("%s", warning)
    data = table.to_bytes()
    storage.write(TABLE_NAME, data)
    about = Recordings(table=TABLE_NAME, bytes=table.bytes, sha256=hashlib.sha256(data).hexdigest(), window=window)
    no_target: dict[str, Any] = {"class_counts": [], "target_mean": None, "target_std": None}
    return {name: split.model_copy(update=no_target) for name, split in splits.items()}, about


def _warnings(table: RecordingTable) -> Iterator[str]:
    """What makes a run leave out whole recordings, which nobody may have meant."""
    keys = table.texts["key"]
    without = [key for key, split in zip(keys, table.texts["split"], strict=True) if not split]
    if 0 < len(without) < len(keys):
        yield (
            f"{len(without):,} of {len(keys):,} recordings have no split ({join_names(without, 5)}): they are in none, "
            "unless a run divides the data set itself (data.split)"
        )
    outside = [keys[row] for row in table.labelled_outside().tolist()]
    if outside:
        yield (
            f"{len(outside):,} of {len(keys):,} recordings have no labels: all theirs lie outside of their time "
            f"({join_names(outside, 5)}): another unit, zone or clock?"
        )


def _part(storage: Storage, shard: Shard) -> RecordingTable:
    return table_of_bytes(load_index(storage, shard).table, storage.name(shard.index))
