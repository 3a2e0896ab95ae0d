"""Checks of the shards before a run starts any worker: each shard exists and has the right size."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from maestro_dist.data.manifest import Manifest
from maestro_dist.data.storage import Storage
from maestro_dist.errors import DataError


def has_shards(url: str, manifest: Manifest, splits: Sequence[str]) -> bool:
    """Whether any shard exists. Looks for the first shard of each split only, so a bare manifest is found quickly."""
    storage = Storage(url)
    found = [manifest.splits[name] for name in splits if name in manifest.splits]
    return any(storage.exists(shard.path) for split in found for shard in split.shards[:1])


def check_shards(url: str, manifest: Manifest, splits: Sequence[str]) -> None:
    """Compare the size of each shard of these splits with the manifest. Folders are listed; no shard is read.

    Raises:
        DataError: a shard or an index is missing, or a shard has another size.
    """
    storage = Storage(url)
    shards = [shard for name in splits if name in manifest.splits for shard in manifest.splits[name].shards]
    sizes = file_sizes(storage, [path for shard in shards for path in (shard.path, shard.index)])
    for shard in shards:
        for path in (shard.path, shard.index):
            if path not in sizes:
                raise DataError(
                    f"{storage.name(path)}: no such file, but the manifest names it; copy the data set again"
                )
        if sizes[shard.path] != shard.bytes:
            raise DataError(
                f"{storage.name(shard.path)}: {sizes[shard.path]:,} bytes, the manifest says {shard.bytes:,}: "
                "the shard was cut or replaced; copy it again"
            )


def file_sizes(storage: Storage, paths: Iterable[str]) -> dict[str, int]:
    """Sizes in bytes of those of these files that exist. Each of their folders is listed once."""
    wanted = set(paths)
    folders = {path.rpartition("/")[0] for path in wanted}
    found = {f"{folder}/{name}".lstrip("/"): size for folder in folders for name, size in storage.sizes(folder).items()}
    return {path: size for path, size in found.items() if path in wanted}
