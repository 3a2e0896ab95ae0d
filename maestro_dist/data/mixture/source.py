"""The samples of a split of several data sets, read as those of one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from maestro_dist.config.schema import DataConfig
from maestro_dist.data.manifest import Manifest
from maestro_dist.data.mixture.manifest import known_parts
from maestro_dist.data.mixture.merge import SourceBatch, merged
from maestro_dist.data.mixture.order import MixedOrder, source_seed
from maestro_dist.data.mixture.pattern import MixPattern
from maestro_dist.data.order import OrderSettings
from maestro_dist.data.reader import Request, SplitReader, SplitSource
from maestro_dist.data.shard_index import ShardIndex
from maestro_dist.data.storage.retry import Heartbeat
from maestro_dist.data.windows import Empty
from maestro_dist.types import Batch


@dataclass(frozen=True)
class MixedSource(SplitSource):
    """The samples of a split of S data sets: those of the first, then those of the second, and so on.

    `manifest` is that of all (`mixed_manifest`). parts: URL and manifest of each data set.
    """

    parts: tuple[tuple[str, Manifest], ...] = ()

    @cached_property
    def sources(self) -> list[SplitSource]:
        """The split of each data set."""
        found = []
        for url, manifest in self.parts:
            names = {modality.name for modality in manifest.modalities}
            own = tuple(modality for modality in self.modalities if modality.name in names)
            slices = None if self.slices is None else {m.name: self.slices[m.name] for m in own}
            config = self.config.model_copy(update={"url": url, "sources": []})
            found.append(SplitSource(url, manifest, config, own, self.split, self.symbols, slices, self.augment))
        return found

    @property
    def starts(self) -> np.ndarray:
        """Number of the first sample of each source, and of all samples, int64 [S + 1]."""
        return np.cumsum([0, *(_samples(manifest, self.split) for _, manifest in self.parts)])

    def mixed_order(self, settings: OrderSettings) -> MixedOrder:
        """The order of the training samples; made once for the same settings."""
        if self._orders.get("settings") != settings:
            assert self.manifest.mixture is not None
            pattern = MixPattern([part.weight for part in self.manifest.mixture])
            counts = [source.manifest.split(self.split).shard_samples for source in self.sources]
            self._orders.update(settings=settings, order=MixedOrder(settings, pattern, counts))
        found: MixedOrder = self._orders["order"]
        return found

    @cached_property
    def _orders(self) -> dict[str, Any]:
        return {}

    @property
    def downloads_parts(self) -> bool:
        """Shards of several data sets are downloaded as a whole."""
        return False

    def indexes(self) -> Iterator[ShardIndex]:
        """See `SplitSource.indexes`."""
        for source in self.sources:
            if _samples(source.manifest, self.split):
                yield from source.indexes()

    def open(self, heartbeat: Heartbeat = lambda what: None) -> MixedReader:  # type: ignore[override]
        """See `SplitSource.open`."""
        return MixedReader(self, heartbeat)


def _samples(manifest: Manifest, split: str) -> int:
    return manifest.splits[split].samples if split in manifest.splits else 0


class MixedReader:
    """Reads micro-batches of several data sets. Only one thread at a time may use it. See `SplitReader`."""

    def __init__(self, source: MixedSource, heartbeat: Heartbeat) -> None:
        self.source, self.format = source, source.format
        self._starts = source.starts
        self._readers: list[SplitReader | None] = [None] * len(source.parts)
        self._heartbeat = heartbeat

    def close(self) -> None:
        """Close all files."""
        for reader in self._readers:
            if reader is not None:
                reader.close()

    def batch(self, request: Request) -> Batch:
        """See `SplitReader.batch`."""
        return self.arrays(request).tensors()

    def arrays(self, request: Request, empty: Empty = np.empty) -> Batch:
        """See `SplitReader.arrays`."""
        of = np.searchsorted(self._starts, request.numbers, side="right") - 1
        parts = []
        for number in np.unique(of).tolist():
            places = np.flatnonzero(of == number)
            reader, start = self._reader(number), int(self._starts[number])
            own = replace(
                request,
                numbers=request.numbers[places] - start,
                keep=None if request.keep is None else request.keep[places][:, self._columns(number)],
                seed=source_seed(request.seed, number),
                fields={name: request.fields[name] for name in ("epoch", "step") if name in request.fields},
            )
            found = reader.arrays(own)
            left = ~np.isin(own.numbers, found.bad_samples)
            parts.append(SourceBatch(found, places[left], start))
        return merged(parts, self.format, empty, request.fields)

    def most_bytes(self, request: Request) -> int:
        """See `SplitReader.most_bytes`."""
        sizes = [self.format.part(m).stop - self.format.part(m).start for m in self.format.modalities]
        steps = sum(size * m.variates for size, m in zip(sizes, self.format.modalities, strict=True))
        return len(request.numbers) * (1 + request.both) * steps * self.format.dtype.itemsize + (1 << 16)

    def _reader(self, number: int) -> SplitReader:
        reader = self._readers[number]
        if reader is None:
            reader = self._readers[number] = self.source.sources[number].open(self._heartbeat)
        return reader

    def _columns(self, number: int) -> list[int]:
        names = [modality.name for modality in self.source.modalities]
        return [names.index(modality.name) for modality in self.source.sources[number].modalities]


def source_of(url: str, manifest: Manifest, config: DataConfig, *details: Any, **more: Any) -> SplitSource:
    """`SplitSource`, or `MixedSource` where the manifest is that of several data sets.

    Raises what `known_parts` raises.
    """
    source = SplitSource(url, manifest, config, *details, **more)
    if manifest.mixture is None:
        return source
    return MixedSource(**vars(source), parts=known_parts(config, manifest))
