"""From fragments, in order, to the shards of a data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol

from maestro_dist.data.fragments import SampleRows
from maestro_dist.data.label_sets import ClassCounter
from maestro_dist.data.manifest import MANIFEST_NAME, ManifestSplit, Shard
from maestro_dist.data.shard_files import ShardFile, ShardId, SplitCut
from maestro_dist.data.storage import Storage
from maestro_dist.errors import DataError, StorageError


class ShardSink(Protocol):
    """Writes shards, each from pieces of fragments; several at a time."""

    def append(self, shard: ShardId, data: Any, start: int, end: int) -> None:
        """Bytes `start` to `end` of `data` (that of a `Fragment`) come next in the shard."""

    def finish(self, shard: ShardId, rows: SampleRows) -> None:
        """The shard is complete, with these samples. It may be written later."""

    def shards(self) -> dict[ShardId, Shard]:
        """The shards that were finished; waits until all of them are written. Raises what their writing raised."""

    def abort(self, error: BaseException) -> None:
        """Write nothing more, also not later."""


class LocalSink:
    """Writes shards in this process, directly to their files."""

    def __init__(self, storage: Storage, written: Callable[[ShardId, Shard], None] = lambda shard, entry: None) -> None:
        """`written` is called after each shard."""
        self._storage, self._written = storage, written
        self._open: dict[ShardId, ShardFile] = {}
        self._shards: dict[ShardId, Shard] = {}

    def append(self, shard: ShardId, data: Any, start: int, end: int) -> None:
        """See `ShardSink`."""
        if shard not in self._open:
            self._open[shard] = ShardFile(self._storage, shard)
        self._open[shard].append(data[start:end])

    def finish(self, shard: ShardId, rows: SampleRows) -> None:
        """See `ShardSink`."""
        self._shards[shard] = self._open[shard].finish(rows)
        del self._open[shard]
        self._written(shard, self._shards[shard])

    def shards(self) -> dict[ShardId, Shard]:
        """See `ShardSink`."""
        return self._shards

    def abort(self, error: BaseException) -> None:
        """See `ShardSink`."""
        for file in self._open.values():
            file.abort(error)


class ShardAssembly:
    """Cuts the samples of all splits into shards, and gives them to a sink.

    counter  how labels are counted
    sink     where complete shards go
    done     shards that an earlier attempt has written; they are not written again
    """

    def __init__(
        self,
        splits: Sequence[str],
        counter: ClassCounter,
        shard_bytes: int,
        sink: ShardSink,
        *,
        done: Mapping[ShardId, Shard] | None = None,
        before_shard: Callable[[], None] = lambda: None,
    ) -> None:
        """`before_shard` is called before a complete shard is given to the sink."""
        self._cuts = {split: SplitCut(split, counter, shard_bytes) for split in splits}
        self._sink, self._done, self._before_shard = sink, dict(done or {}), before_shard
        self._rows: dict[ShardId, SampleRows] = {}
        self.finished: list[ShardId] = []

    def add(self, split: str, rows: SampleRows, data: Any) -> None:
        """The next samples of a split. `data` (of a `Fragment`) may be None if all their shards are done.

        Raises:
            DataError: a shard has two samples with one key.
            StorageError: a shard cannot be written.
        """
        for piece in self._cuts[split].cut(rows):
            self._rows.setdefault(piece.shard, SampleRows()).extend(rows, piece.first, piece.last)
            if piece.shard not in self._done:
                self._sink.append(piece.shard, data, piece.start, piece.end)
            if piece.full:
                self._finish(piece.shard)

    def close(self) -> dict[str, ManifestSplit]:
        """End the last shards. Returns the entries of the splits in the manifest."""
        for cut in self._cuts.values():
            if cut.open is not None:
                self._finish(cut.open)
        shards = {**self._done, **self._sink.shards()}
        return {
            split: cut.manifest([shards[shard] for shard in self.finished if shard.split == split])
            for split, cut in self._cuts.items()
        }

    def begun(self) -> list[str]:
        """Names of all files that may have been written."""
        return [name for shard in {*self.finished, *self._rows, *self._done} for name in shard.files]

    def _finish(self, shard: ShardId) -> None:
        rows = self._rows.pop(shard)
        self.finished.append(shard)
        if shard not in self._done:
            self._before_shard()
            self._sink.finish(shard, rows)
        elif self._done[shard].samples != len(rows.sizes):
            raise DataError(
                f"{shard.files[0]}: an earlier attempt packed {self._done[shard].samples:,} samples into it, now there "
                f"are {len(rows.sizes):,}: the source has changed; start anew with overwrite=True (--overwrite)"
            )


def remove_shards(storage: Storage, names: Sequence[str]) -> None:
    """Remove the files of a packing that failed, unless another process has packed here in the meantime."""
    with suppress(StorageError):
        if not storage.exists(MANIFEST_NAME):
            storage.remove_many(names)
