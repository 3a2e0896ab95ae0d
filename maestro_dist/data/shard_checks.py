"""Checks of the shards before a run starts any worker: each shard exists and has the right size."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from maestro_dist.data.manifest import Manifest, Shard
from maestro_dist.data.storage import ObjectMissing, Storage
from maestro_dist.errors import DataError

_THREADS = 16


def has_shards(url: str, manifest: Manifest, splits: Sequence[str]) -> bool:
    """Whether any shard exists. Looks for the first shard of each split only, so a bare manifest is found quickly.

    Raises:
        ConfigError: a split does not exist, or is empty.
    """
    storage = Storage(url)
    return any(storage.exists(shard.path) for name in splits for shard in manifest.split(name).shards[:1])


def check_shards(url: str, manifest: Manifest, splits: Sequence[str]) -> None:
    """Compare the size of each shard of these splits with the manifest. No shard is read.

    Raises:
        ConfigError: a split does not exist, or is empty.
        DataError: a shard or an index is missing, or a shard has another size.
    """
    storage = Storage(url)

    def check(shard: Shard) -> None:
        try:
            found = storage.size(shard.path)
            storage.size(shard.index)
        except ObjectMissing as error:
            raise DataError(f"{error}, but the manifest names it; copy the data set again") from error
        if found != shard.bytes:
            raise DataError(
                f"{storage.name(shard.path)}: {found:,} bytes, the manifest says {shard.bytes:,}: "
                "the shard was cut or replaced; copy it again"
            )

    shards = [shard for name in splits for shard in manifest.split(name).shards]
    with ThreadPoolExecutor(_THREADS) as pool:
        for _ in pool.map(check, shards):
            pass
