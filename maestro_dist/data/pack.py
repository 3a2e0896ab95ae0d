"""Write a data set: WebDataset shards, an index for each shard, and finally the manifest.

Samples are written one at a time, to a folder or any fsspec URL. Without its manifest there is no data set. The same
samples give the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import re
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Any

import numpy as np

from maestro_dist.data.description import Description, checked_description, checked_splits
from maestro_dist.data.findings import Findings, warning_lines
from maestro_dist.data.manifest import MANIFEST_NAME, Manifest, ManifestSplit, Shard
from maestro_dist.data.moments import RunningMoments
from maestro_dist.data.plain_values import person, short_repr, type_name, whole_number
from maestro_dist.data.sample_checks import RawSample, SampleChecker
from maestro_dist.data.shard_checks import file_sizes
from maestro_dist.data.shard_index import INDEX_SUFFIX, META, index_tar, member_name
from maestro_dist.data.storage import Storage
from maestro_dist.errors import DataError, StorageError

__all__ = [
    "Description",
    "RawSample",
    "SplitWriter",
    "check_nothing_packed",
    "npy",
    "open_for_packing",
    "pack",
    "write_manifest",
]

_LOG = logging.getLogger(__name__)
_SHARD = re.compile(r"[A-Za-z0-9_-]+-\d{6}\.(tar|index|index\.json)")


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
    description, names = checked_description(description), checked_splits(splits)
    size = whole_number(shard_bytes)
    if size is None or size < 1:
        raise DataError(f"pack: shard_bytes {short_repr(shard_bytes)} is not a whole number from 1")
    if not isinstance(samples, Iterable):
        raise DataError(f"pack: samples is {type_name(samples)}, not an iterable of RawSample")
    storage = open_for_packing(os.fspath(url), overwrite=overwrite)
    checker, findings = SampleChecker(description, names), Findings(description, names)
    with ExitStack() as stack:
        classes = len(description.classes)
        writers = {name: stack.enter_context(SplitWriter(storage, name, classes, size)) for name in names}
        for number, sample in enumerate(samples):
            checked = checker.checked(sample, number)
            members = {member_name(name): npy(array) for name, array in checked.arrays.items()}
            writers[checked.split].add(checked.key, checked.label, checked.meta, members)
            findings.add(checked)
        finished = {name: writer.finish() for name, writer in writers.items()}
        manifest = findings.manifest(finished)
        _check_complete(storage, manifest)
        write_manifest(storage, manifest)
    for line in warning_lines(manifest):
        _LOG.warning("%s", line)
    return manifest


def open_for_packing(url: str, *, overwrite: bool) -> Storage:
    """The storage for a new data set; with `overwrite` the data set there is removed.

    Raises:
        DataError: there is a data set already, and `overwrite` is false.
    """
    storage = Storage(url)
    if not overwrite:
        check_nothing_packed(url)
    elif storage.exists(MANIFEST_NAME):
        storage.remove(MANIFEST_NAME)  # first: shards without a manifest are not a data set
        storage.remove_many([name for name in storage.list() if _SHARD.fullmatch(name)])
    return storage


def check_nothing_packed(url: str) -> None:
    """Raise `DataError` if there is a data set at `url`."""
    if Storage(url).exists(MANIFEST_NAME):
        name = Storage(url).name()
        raise DataError(
            f"{name}: a packed data set is there already; replace it with overwrite=True (--overwrite on the command "
            "line), or choose another place"
        )


def _check_complete(storage: Storage, manifest: Manifest) -> None:
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


class SplitWriter:
    """Writes the shards of one split. `classes`: number of classes; 0 for regression.

    A context manager: when packing fails, the files of the split are removed.
    """

    def __init__(self, storage: Storage, split: str, classes: int, shard_bytes: int) -> None:
        self.storage, self.split, self.shard_bytes = storage, split, shard_bytes
        self.shards: list[Shard] = []
        self.targets = RunningMoments(1)
        self.class_counts = [0] * classes
        self.keys: set[str] = set()
        self._written: list[str] = []
        self._targets: list[float] = []  # of the open shard
        self._subjects: list[str] = []
        self._open: ExitStack | None = None
        self._file: Any = None
        self._tar: Any = None

    def __enter__(self) -> SplitWriter:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is None:
            return
        with suppress(StorageError):  # the first error is the one to report
            if self._open is not None:
                self._open.__exit__(kind, error, trace)
        with suppress(StorageError):
            if self.storage.exists(MANIFEST_NAME):
                return  # another process has packed here in the meantime: the shards belong to it
            self.storage.remove_many(self._written)

    def add(self, key: str, label: float, meta: bytes, members: dict[str, bytes]) -> None:
        """Write a sample: its json `meta`, and its other members by name.

        Raises:
            DataError: the shard has a sample with this key already.
        """
        if key in self.keys:
            shard = f"{self.split}-{len(self.shards):06d}"
            raise DataError(
                f"{self.split}, sample {key}: this key is used twice in shard {shard}; give each sample its own"
            )
        if self._open is None:
            self._begin()
        self._tar.write({"__key__": key, META: meta, **members})
        self.keys.add(key)
        if self.class_counts:
            self.class_counts[int(label)] += 1
        self.targets.add(np.array([[float(label)]]))
        self._targets.append(float(label))
        self._subjects.append(person(json.loads(meta).get("subject")))
        if self._file.tell() >= self.shard_bytes:
            self._end()

    def finish(self) -> ManifestSplit:
        """Close the last shard; returns the split's entry in the manifest."""
        if self._open is not None:
            self._end()
        regression = not self.class_counts and bool(self.shards)
        return ManifestSplit(
            shards=self.shards,
            samples=sum(shard.samples for shard in self.shards),
            class_counts=self.class_counts,
            target_mean=float(self.targets.mean[0]) if regression else None,
            target_std=float(self.targets.std[0]) if regression else None,
        )

    def _begin(self) -> None:
        import webdataset

        self._path = f"{self.split}-{len(self.shards):06d}"
        self._written += [f"{self._path}.tar", f"{self._path}{INDEX_SUFFIX}"]
        self._open = ExitStack()
        self._file = self._open.enter_context(self.storage.writer(f"{self._path}.tar"))
        self._tar = webdataset.TarWriter(self._file, user="", group="", mode=0o444, mtime=0, encoder=False)
        self._open.callback(self._tar.close)
        self.keys.clear()

    def _end(self) -> None:
        assert self._open is not None
        self._tar.close()
        size = self._file.tell()
        self._file.seek(0)
        digest = hashlib.file_digest(self._file, "sha256").hexdigest()
        self._file.seek(0)
        index = replace(index_tar(self._file), targets=np.array(self._targets), subjects=self._subjects)
        self._targets, self._subjects = [], []
        self._open.close()
        self._open = None
        self.storage.write(f"{self._path}{INDEX_SUFFIX}", index.to_bytes())
        shard = Shard(
            path=f"{self._path}.tar",
            index=f"{self._path}{INDEX_SUFFIX}",
            samples=len(index.keys),
            bytes=size,
            sha256=digest,
        )
        self.shards.append(shard)


def npy(array: np.ndarray) -> bytes:
    """An array as the bytes of an npy file."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()
