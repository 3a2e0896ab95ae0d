"""Write a data set: WebDataset shards, an index for each shard, and finally the manifest.

Samples are written one at a time, to a folder or any fsspec URL. Without its manifest there is no data set. The same
samples give the same bytes.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any

from maestro_dist.data.description import Description
from maestro_dist.data.findings import Findings, warning_lines
from maestro_dist.data.fragments import Fragment, PackFormat, part_fragments
from maestro_dist.data.manifest import MANIFEST_NAME, Manifest
from maestro_dist.data.parts import GivenSamples
from maestro_dist.data.plain_values import type_name
from maestro_dist.data.recordings.label_track import LabelTrack
from maestro_dist.data.recordings.packing import write_table
from maestro_dist.data.recordings.raw import SPLIT as RECORDINGS_SPLIT
from maestro_dist.data.recordings.raw import RawRecording
from maestro_dist.data.recordings.table import TABLE_NAME
from maestro_dist.data.sample_checks import RawSample
from maestro_dist.data.shard_assembly import LocalSink, ShardAssembly, remove_shards
from maestro_dist.data.shard_checks import file_sizes
from maestro_dist.data.storage import Storage
from maestro_dist.errors import DataError

__all__ = [
    "Description",
    "LabelTrack",
    "RawRecording",
    "RawSample",
    "check_nothing_packed",
    "open_for_packing",
    "pack",
    "pack_recordings",
    "write_manifest",
]

_LOG = logging.getLogger(__name__)
_SHARD = re.compile(rf"[A-Za-z0-9_-]+-\d{{6}}\.(tar|index|index\.json)|{re.escape(TABLE_NAME)}")


def pack(
    url: str | os.PathLike[str],
    description: Description,
    samples: Iterable[RawSample],
    *,
    splits: Sequence[str] = ("train", "validation", "test"),
    shard_bytes: int = 32 << 20,
    overwrite: bool = False,
) -> Manifest:
    """Pack all samples below `url`, a folder or an fsspec URL, and return the manifest.

    splits       the splits of the manifest, in this order; a split may be empty
    shard_bytes  a shard ends with the sample that reaches this size
    overwrite    replace the data set at `url`, if there is one

    The manifest has the means and standard deviations of `train`, or, if it is empty, of the first split with
    samples (such a data set can be evaluated on, not trained on). Outliers, and people in two splits, are logged as
    warnings; `findings.warning_lines(manifest)` gives the same lines. Where packing fails, the written shards are
    removed.

    Raises:
        DataError: there is a data set at `url` (without `overwrite`), the description is wrong (checked before the
            first sample is read), or a sample does not fit the description.
        StorageError: a file cannot be written.
    """
    about = PackFormat.checked(description, splits, shard_bytes)
    if not isinstance(samples, Iterable):
        raise DataError(f"pack: samples is {type_name(samples)}, not an iterable of RawSample")
    storage = open_for_packing(os.fspath(url), overwrite=overwrite)
    findings, sink = Findings(about.description, about.splits), LocalSink(storage)
    assembly = ShardAssembly(about.splits, about.counter, about.shard_bytes, sink)
    try:
        for item in part_fragments(GivenSamples(samples), about):
            if isinstance(item, Fragment):
                assembly.add(item.split, item.rows, item.data)
            else:
                findings.merge_json(item.findings)
        manifest = described(storage, findings, assembly)
        check_complete(storage, manifest)
        write_manifest(storage, manifest)
    except BaseException as error:
        sink.abort(error)
        remove_shards(storage, assembly.begun())
        raise
    for line in warning_lines(manifest):
        _LOG.warning("%s", line)
    return manifest


def pack_recordings(
    url: str | os.PathLike[str],
    description: Description,
    recordings: Iterable[RawRecording],
    *,
    shard_bytes: int = 32 << 20,
    overwrite: bool = False,
) -> Manifest:
    """Pack whole recordings below `url`, as `pack` does windows. A run cuts them by `data.window` and `data.split`.

    The description needs a `window`, the default of runs; its `window_s` and the steps of its modalities follow.

    Raises:
        DataError: as `pack`; or two recordings have the same key.
        StorageError: a file cannot be written.
    """
    if isinstance(description, Description) and description.window is None:
        raise DataError(f"{description.name}: recordings need description.window, the default way to cut them")
    given: Iterable[Any] = recordings
    return pack(url, description, given, splits=(RECORDINGS_SPLIT,), shard_bytes=shard_bytes, overwrite=overwrite)


def described(storage: Storage, findings: Findings, assembly: ShardAssembly) -> Manifest:
    """The manifest of all samples; of recordings the table is written, too."""
    splits, window = assembly.close(), findings.description.window
    if window is None:
        return findings.manifest(splits)
    splits, recordings = write_table(storage, splits, window)
    return findings.manifest(splits, recordings)


def open_for_packing(url: str, *, overwrite: bool) -> Storage:
    """The storage for a new data set; with `overwrite` the data set there is removed.

    Raises:
        DataError: there is a data set already, and `overwrite` is false.
    """
    storage = Storage(url)
    if not overwrite:
        check_nothing_packed(url)
    elif storage.exists(MANIFEST_NAME):
        remove_data_set(storage)
    return storage


def remove_data_set(storage: Storage) -> None:
    """Remove the manifest, if there is one, and all shards."""
    storage.remove(MANIFEST_NAME)  # first: shards without a manifest are not a data set
    storage.remove_many([name for name in storage.list() if _SHARD.fullmatch(name)])


def check_nothing_packed(url: str) -> None:
    """Raise `DataError` if there is a data set at `url`."""
    if Storage(url).exists(MANIFEST_NAME):
        name = Storage(url).name()
        raise DataError(
            f"{name}: a packed data set is there already; replace it with overwrite=True (--overwrite on the command "
            "line), or choose another place"
        )


def check_complete(storage: Storage, manifest: Manifest) -> None:
    """Raise `DataError` if another process packed to the same place, failed, and removed a shard of this one."""
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    found = file_sizes(storage, [path for shard in shards for path in (shard.path, shard.index)])
    for shard in shards:
        if shard.path not in found or shard.index not in found:
            raise DataError(
                f"{storage.name(shard.path)} has vanished: another process packs to this place; pack again alone"
            )


def write_manifest(storage: Storage, manifest: Manifest) -> None:
    """Write the manifest; the last step of packing."""
    storage.write(MANIFEST_NAME, (json.dumps(manifest.to_json(), indent=1) + "\n").encode())
