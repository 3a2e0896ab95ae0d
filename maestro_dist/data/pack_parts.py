"""Pack a data set part by part: in this process or on many workers, and again from where an earlier attempt ended.

The shards have the same bytes in any case: the fragments come in the order of the parts, and where a shard ends depends
on the sizes of the samples alone. Statistics are merged in the order of the parts, too.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from maestro_dist import __version__
from maestro_dist.data.findings import Findings, warning_lines
from maestro_dist.data.fragments import Fragment, PackFormat, PartEnd, SampleRows, part_fragments
from maestro_dist.data.manifest import FORMAT, MANIFEST_NAME, Manifest, load_manifest
from maestro_dist.data.pack import (
    check_complete,
    check_nothing_packed,
    described,
    remove_data_set,
    write_manifest,
)
from maestro_dist.data.pack_records import PackRecords, PartRecord, SampleSizes, has_records, record_shard
from maestro_dist.data.parts import Part, Remarks
from maestro_dist.data.shard_assembly import LocalSink, ShardAssembly, ShardSink, remove_shards
from maestro_dist.data.shard_files import SplitCut
from maestro_dist.data.storage import Storage
from maestro_dist.data.storage.local_files import remove_abandoned
from maestro_dist.errors import ConfigError, DataError, StorageError
from maestro_dist.system.logging_setup import NOTE

_LOG = logging.getLogger(__name__)


Items = Iterator[tuple[int, Fragment | PartEnd]]
"""Fragments and ends of parts, each with the number of its part."""


class PackWorkers(Protocol):
    """Whoever converts parts and writes shards."""

    def fragments(self, parts: Sequence[tuple[int, Part]], about: PackFormat) -> Items:
        """(number of the part, fragment or end) of all parts, in their order."""

    def sink(self, url: str) -> ShardSink:
        """A sink for shards at `url`; it records each with `record_shard`."""


class ThisProcess:
    """Converts and writes in this process, one part after the other."""

    def fragments(self, parts: Sequence[tuple[int, Part]], about: PackFormat) -> Items:
        """See `PackWorkers`."""
        for number, part in parts:
            for item in part_fragments(part, about):
                yield number, item

    def sink(self, url: str) -> ShardSink:
        """See `PackWorkers`."""
        return LocalSink(Storage(url), lambda shard, entry: record_shard(url, shard, entry))


@dataclass
class PackProgress:
    """How far a packing is: parts, samples, their bytes, and complete shards; and all parts."""

    all_parts: int
    parts: int = 0
    samples: int = 0
    bytes: int = 0
    shards: int = 0


@dataclass(frozen=True)
class PartsPacking:
    """What to pack.

    parts      the parts; the samples of the data set are theirs, in this order
    request    what identifies parts and samples, in plain JSON: an attempt with another one starts anew
    overwrite  replace the data set at the place, or an unfinished packing of something else
    progress   is called after each fragment
    """

    parts: Sequence[Part]
    about: PackFormat
    request: dict[str, Any] = field(default_factory=dict)
    overwrite: bool = False
    progress: Callable[[PackProgress], None] = lambda _: None

    def identity(self) -> dict[str, Any]:
        """What must be the same in a restart."""
        sizes = {"format": FORMAT, "version": __version__, "shard_bytes": self.about.shard_bytes}
        return {**self.request, **sizes, "splits": list(self.about.splits), "parts": len(self.parts)}


def pack_parts(url: str, packing: PartsPacking, workers: PackWorkers) -> tuple[Manifest, Remarks]:
    """Pack all parts below `url`, a folder or an fsspec URL. Returns the manifest, and the remarks of the parts.

    After a kill, an interruption, or a failure of storage or workers, the same call continues. It keeps complete
    shards, and skips parts whose samples are all in them. An error in the data would occur again: it leaves nothing.

    Raises:
        DataError: there is a data set at `url`, or an unfinished packing of something else (without `overwrite`); a
            sample does not fit the description; a file of a part is damaged.
        StorageError: a file cannot be read or written.
    """
    storage, records = Storage(url), PackRecords(url, packing.identity())
    if records.match() and storage.exists(MANIFEST_NAME):  # it was killed after its last step
        remarks = _remarks(records)
        _clean(storage, records)
        return load_manifest(url), remarks
    _make_room(url, packing, records)
    sink = workers.sink(url)
    attempt = _Attempt(storage, packing, records, sink)
    try:
        manifest, remarks = attempt.pack(workers)
        check_complete(storage, manifest)
        write_manifest(storage, manifest)
    except (ConfigError, DataError) as error:
        sink.abort(error)
        remove_shards(storage, attempt.assembly.begun())
        with suppress(StorageError):
            _clean(storage, records)
        raise
    except BaseException as error:
        sink.abort(error)
        _LOG.log(NOTE, "%s: what is packed so far is kept; the same command continues", storage.name())
        raise
    _clean(storage, records)
    for line in warning_lines(manifest):
        _LOG.warning("%s", line)
    return manifest, remarks


def check_not_packed(url: str) -> None:
    """Raise `DataError` if there is a data set at `url`, unless it is that of a packing that did not end properly."""
    if not has_records(url):
        check_nothing_packed(url)


def _remarks(records: PackRecords) -> Remarks:
    records.begin()
    remarks = Remarks()
    for part in records.parts():
        remarks.merge_json(part.end.remarks)
    return remarks


def _make_room(url: str, packing: PartsPacking, records: PackRecords) -> None:
    """Afterwards there is no data set, and there are records of this packing, old or new."""
    storage = Storage(url)
    if not packing.overwrite:
        check_nothing_packed(url)
    elif storage.exists(MANIFEST_NAME) or not records.match():
        remove_data_set(storage)
        records.forget()
    if records.begin():
        _LOG.log(NOTE, "%s: continuing the packing that was not finished", storage.name())


def _clean(storage: Storage, records: PackRecords) -> None:
    """Remove the records, and unfinished files of processes that were killed."""
    records.remove_all()
    if storage.local is not None:
        remove_abandoned(storage.local)


class _Attempt:
    """One attempt to pack."""

    def __init__(self, storage: Storage, packing: PartsPacking, records: PackRecords, sink: ShardSink) -> None:
        about, self._storage = packing.about, storage
        self._packing, self._records, self._done = packing, records, records.shards()
        self._findings, self._remarks = Findings(about.description, about.splits), Remarks()
        self._progress = PackProgress(len(packing.parts))
        self.assembly = ShardAssembly(
            about.splits,
            about.counter,
            about.shard_bytes,
            sink,
            done=self._done,
            before_shard=records.flush,
        )

    def pack(self, workers: PackWorkers) -> tuple[Manifest, Remarks]:
        """Pack what is not done. Returns the manifest, and the remarks of all parts."""
        recorded, needless = self._recorded()
        parts = [(number, part) for number, part in enumerate(self._packing.parts) if number not in needless]
        known, items = self._records.parts(), workers.fragments(parts, self._packing.about)
        for number in range(len(self._packing.parts)):
            part = next(known) if number < recorded else None
            if part is None or number not in needless:
                converted = self._converted(number, items)
                if part is None:
                    self._records.add(converted)
                part = converted
            else:
                for split, samples in part.samples.items():
                    self._add(split, samples.rows(), None)
            self._findings.merge_json(part.end.findings)
            self._remarks.merge_json(part.end.remarks)
            self._progress.parts += 1
            self._tell()
        manifest = described(self._storage, self._findings, self.assembly)
        self._tell()
        return manifest, self._remarks

    def _recorded(self) -> tuple[int, set[int]]:
        """How many parts are recorded, and the numbers of those whose samples are all in shards that are done."""
        count, needless, about = 0, set(), self._packing.about
        cuts = {split: SplitCut(split, about.counter, about.shard_bytes) for split in about.splits}
        for part in self._records.parts():
            pieces = (piece for split, samples in part.samples.items() for piece in cuts[split].cut(samples.rows()))
            shards = {piece.shard for piece in pieces}
            if shards <= self._done.keys():
                needless.add(part.number)
            count += 1
        return count, needless

    def _converted(self, number: int, items: Items) -> PartRecord:
        """Pack the fragments of a part."""
        packed: dict[str, SampleSizes] = {}
        for of, item in items:
            assert of == number
            if isinstance(item, PartEnd):
                return PartRecord(number, packed, item)
            self._add(item.split, item.rows, item.data)
            packed.setdefault(item.split, SampleSizes()).add(item.rows)
        raise AssertionError(f"part {number} has no end")

    def _add(self, split: str, rows: SampleRows, data: Any) -> None:
        self.assembly.add(split, rows, data)
        self._progress.samples += len(rows.sizes)
        self._progress.bytes += sum(rows.sizes)
        self._tell()

    def _tell(self) -> None:
        self._progress.shards = len(self.assembly.finished)
        self._packing.progress(self._progress)
