"""Writing shards: where each one ends, and its files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from maestro_dist.data.fragments import SampleRows
from maestro_dist.data.label_sets import ClassCounter
from maestro_dist.data.manifest import ManifestSplit, Shard
from maestro_dist.data.moments import RunningMoments
from maestro_dist.data.recordings.table import joined_tables
from maestro_dist.data.sample_checks import Label
from maestro_dist.data.shard_index import INDEX_SUFFIX, index_tar
from maestro_dist.data.storage import Storage
from maestro_dist.data.tar_blocks import bytes_written, end_of_tar
from maestro_dist.data.target_numbers import TargetMoments
from maestro_dist.errors import DataError, StorageError


class ShardId(NamedTuple):
    """A shard: its split, and its number there, from 0."""

    split: str
    number: int

    @property
    def stem(self) -> str:
        """Name of its files without the ending."""
        return f"{self.split}-{self.number:06d}"

    @property
    def files(self) -> tuple[str, str]:
        """Names of its tar and its index."""
        return f"{self.stem}.tar", f"{self.stem}{INDEX_SUFFIX}"


@dataclass(frozen=True)
class ShardPiece:
    """Samples `first` <= number < `last` of a fragment, its bytes `start` to `end`, which go to `shard`.

    `full`: the shard ends with them.
    """

    shard: ShardId
    first: int
    last: int
    start: int
    end: int
    full: bool


class SplitCut:
    """Cuts the samples of one split into shards, by their sizes, and counts its labels.

    A shard ends with the sample that reaches `shard_bytes`. `counter`: how labels are counted.
    """

    def __init__(self, split: str, counter: ClassCounter, shard_bytes: int) -> None:
        self.split, self._shard_bytes = split, shard_bytes
        self.number = 0
        self._size, self._samples, self._keys = 0, 0, set[str]()  # of the open shard
        self._counter, self._class_counts = counter, np.zeros(counter.classes, dtype=np.int64)
        self._targets, self._several = RunningMoments(1), TargetMoments(counter.targets)

    @property
    def open(self) -> ShardId | None:
        """The shard that is not full; None if it has no samples."""
        return ShardId(self.split, self.number) if self._samples else None

    def cut(self, rows: SampleRows) -> Iterator[ShardPiece]:
        """The pieces of the next samples. Their keys may be left out if they were checked before.

        Raises:
            DataError: a shard has two samples with one key.
        """
        self._count(rows.labels)
        first = start = end = 0
        for row, size in enumerate(rows.sizes):
            if rows.keys:
                self._check(rows.keys[row])
            self._size, self._samples = self._size + size, self._samples + 1
            end += size
            if bytes_written(self._size) >= self._shard_bytes:
                yield ShardPiece(ShardId(self.split, self.number), first, row + 1, start, end, full=True)
                first, start = row + 1, end
                self.number, self._size, self._samples, self._keys = self.number + 1, 0, 0, set()
        if first < len(rows.sizes):
            yield ShardPiece(ShardId(self.split, self.number), first, len(rows.sizes), start, end, full=False)

    def manifest(self, shards: list[Shard]) -> ManifestSplit:
        """The split's entry in the manifest."""
        several = self._counter.targets > 1
        regression = not self._counter.classes and not several and bool(shards)
        return ManifestSplit(
            shards=shards,
            samples=sum(shard.samples for shard in shards),
            class_counts=self._class_counts.tolist(),
            target_mean=float(self._targets.mean[0]) if regression else None,
            target_std=float(self._targets.std[0]) if regression else None,
            targets=self._several.statistics() if several else None,
        )

    def _check(self, key: str) -> None:
        if key in self._keys:
            shard = ShardId(self.split, self.number).stem
            raise DataError(
                f"{self.split}, sample {key}: this key is used twice in shard {shard}; give each sample its own"
            )
        self._keys.add(key)

    def _count(self, labels: Sequence[Label]) -> None:
        if self._counter.classes:
            self._class_counts += self._counter.counts(np.array(labels, dtype=np.float64))
            return
        if self._counter.targets > 1:
            self._several.add(labels)
            return
        for label in labels:  # one by one: the sums do not depend on how samples come in pieces
            self._targets.add(np.array([[label]], dtype=np.float64))


class ShardFile:
    """A shard that is being written."""

    def __init__(self, storage: Storage, shard: ShardId) -> None:
        self._storage, self._shard = storage, shard
        self._open = ExitStack()
        self._file: Any = self._open.enter_context(storage.writer(shard.files[0]))

    def append(self, data: np.ndarray) -> None:
        """Write the bytes of samples, uint8."""
        self._file.write(data.data)

    def finish(self, rows: SampleRows) -> Shard:
        """Write the end and the index of the shard, which has these samples."""
        file, (path, index_path) = self._file, self._shard.files
        file.write(end_of_tar(file.tell()))
        size = file.tell()
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        index = replace(index_tar(file), targets=np.array(rows.labels, dtype=np.float64), subjects=rows.subjects)
        if rows.facts:
            index = replace(index, table=joined_tables(rows.facts))
        assert index.keys == rows.keys
        self._open.close()
        data = index.to_bytes()
        self._storage.write(index_path, data)
        return Shard(
            path=path,
            index=index_path,
            samples=len(rows.keys),
            bytes=size,
            sha256=digest,
            index_sha256=hashlib.sha256(data).hexdigest(),
        )

    def abort(self, error: BaseException) -> None:
        """Leave nothing behind: the shard is not written."""
        with suppress(StorageError):
            self._open.__exit__(type(error), error, error.__traceback__)
