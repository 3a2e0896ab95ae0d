"""Statistics of the windows that a run makes: counted by reading all of them, or some where they are very many."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import numpy as np

from maestro_dist.config.schema import DataConfig
from maestro_dist.data.description import Description
from maestro_dist.data.findings import Findings
from maestro_dist.data.manifest import Manifest, ManifestSplit
from maestro_dist.data.reader import Request, SplitReader, SplitSource
from maestro_dist.data.sample_checks import CheckedSample
from maestro_dist.errors import DataError

_LOG = logging.getLogger(__name__)
_AT_ONCE = 64  # windows that are read together
_MOST_BYTES = 32 << 30
"""Bytes of windows that are read. More change a mean or a deviation in digits that nobody needs, and take hours."""
_MOST_SHARDS = 512
"""Shards of a split whose windows are read, if there are more bytes than that."""


def counted(config: DataConfig, manifest: Manifest) -> Manifest:
    """The manifest with statistics and warnings of its windows, as `pack` finds them.

    Of more than 32 GiB of windows, some are read: every n-th of up to 512 shards of each split. Which ones depends on
    the data alone. Classes and people are counted in all of them.

    Raises:
        DataError: a window is damaged.
    """
    modalities = tuple(manifest.select(None))
    about = Description(
        name=manifest.name,
        licence=manifest.licence,
        citation=manifest.citation,
        source=manifest.source,
        task=manifest.task,
        classes=tuple(manifest.classes),
        target=manifest.target,
        window_s=manifest.window_s,
        modalities=modalities,
        recording=manifest.recording,
        targets=tuple(manifest.targets),
    )
    chosen = {name: _chosen(manifest, split) for name, split in manifest.splits.items()}
    count = sum(split.samples for split in manifest.splits.values())
    read = sum(len(numbers) for parts in chosen.values() for numbers in parts.values())
    some = "" if read == count else f"{read:,} of "
    _LOG.info("%s: counting the statistics of %s%s windows (once for these windows)", manifest.name, some, f"{count:,}")
    findings = Findings(about, list(manifest.splits))
    for name, split in manifest.splits.items():
        if split.samples:
            source = SplitSource(config.url, manifest, config, modalities, name)
            with closing(source.open()) as reader:
                for sample in _samples(source, reader, chosen[name], findings.people[name]):
                    findings.add(sample)
    described = findings.manifest(manifest.splits, manifest.recordings, manifest.cut)
    made = {name: getattr(manifest, name) for name in ("divided", "symbols")}
    return described.model_copy(update=made)


def _chosen(manifest: Manifest, split: ManifestSplit) -> dict[int, range]:
    """The windows of a split that are read: for each shard, by its position, their numbers in the split."""
    window = sum(m.steps * m.variates * np.dtype(np.float32).itemsize for m in manifest.modalities)
    everything = window * sum(other.samples for other in manifest.splits.values())
    ends = np.cumsum(split.shard_samples).tolist()
    whole = {place: range(end - n, end) for place, (end, n) in enumerate(zip(ends, split.shard_samples, strict=True))}
    if everything <= _MOST_BYTES:
        return whole
    # The hash of a shard is as good as a random number, and depends on nothing else.
    places = sorted(sorted(whole, key=lambda place: split.shards[place].sha256)[:_MOST_SHARDS])
    budget = max(window, _MOST_BYTES * split.samples // max(1, sum(s.samples for s in manifest.splits.values())))
    step = max(1, -(-window * sum(len(whole[place]) for place in places) // budget))
    return {place: whole[place][::step] for place in places}


def _samples(
    source: SplitSource, reader: SplitReader, chosen: dict[int, range], people: set[str]
) -> Iterator[CheckedSample]:
    """The windows that are read. The people of all windows are added to `people`."""
    first = 0
    for place, index in enumerate(source.indexes()):
        subjects = index.subjects or [""] * len(index.keys)
        people.update(subject for subject in subjects if subject)
        numbers = np.array(chosen.get(place, ()), dtype=np.int64)
        for start in range(0, len(numbers), _AT_ONCE):
            yield from _read(source.split, reader, numbers[start : start + _AT_ONCE], subjects, first)
        first += len(index.keys)


def _read(
    split: str, reader: SplitReader, numbers: np.ndarray, subjects: list[str], first: int
) -> Iterator[CheckedSample]:
    """Some windows of a shard, whose first one is number `first` of the split."""
    batch: Any = reader.arrays(Request(numbers))  # its fields are typed as tensors
    if batch.bad:
        raise DataError(batch.bad[0])
    rows = {name: {int(place): row for row, place in enumerate(places)} for name, places in batch.rows.items()}
    for place, number in enumerate(numbers.tolist()):
        arrays = {n: batch.values[n][rows[n][place]] for n in rows if place in rows[n]}
        target = batch.target[place].tolist()
        yield CheckedSample(split, batch.keys[place], target, subjects[number - first], arrays, b"")
