"""Look for what is wrong or odd in a packed data set: damage, dead or clipped channels, labels, people, duplicates."""

from __future__ import annotations

import hashlib
import io
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from maestro_dist.config.schema import DataConfig
from maestro_dist.data.manifest import Manifest, Shard, load_manifest
from maestro_dist.data.reader import Request, SplitSource
from maestro_dist.data.recordings.cut_data import usual_windows
from maestro_dist.data.shard_checks import check_shards
from maestro_dist.data.shard_index import ShardIndex, index_tar, load_index
from maestro_dist.data.storage import Storage
from maestro_dist.errors import ConfigError, DataError

Level = Literal["error", "warning", "note"]

_AT_ONCE = 64  # windows that are read together
_MOST_NAMED = 5
_MISSING = 0.9
"""Share of missing values from which a modality is odd."""
_CLIPPED = 0.02
"""Share of values that are exactly the smallest or the largest one, from which a channel may be clipped."""
_FAR, _WIDE = 3.0, 10.0
"""How many standard deviations of the training split apart a mean is odd; how many times as large a deviation is."""
_ONE_CLASS = 0.95
_SEGMENTS, _DIGITS = 8, 3
"""Windows are near-duplicates if the means of their segments, in standard deviations, agree to so many digits."""


@dataclass(frozen=True)
class Remark:
    """Something that is wrong (error), that the user should look at (warning), or that is good to know (note)."""

    level: Level
    where: str
    text: str


@dataclass
class _Channel:
    """Counts of one variate in one split; the sums are of float64."""

    windows: int = 0
    constant: int = 0
    steps: int = 0
    count: int = 0
    total: float = 0.0
    squares: float = 0.0
    low: float = np.inf
    high: float = -np.inf
    at_low: int = 0
    at_high: int = 0

    def add(self, windows: np.ndarray) -> None:
        """Add windows float32 [R, T]."""
        seen = ~np.isnan(windows)
        values = windows[seen].astype(np.float64)
        self.windows, self.steps = self.windows + len(windows), self.steps + windows.size
        if not len(values):
            return
        self.count, self.total = self.count + len(values), self.total + float(values.sum())
        self.squares += float((values**2).sum())
        low, high = float(values.min()), float(values.max())
        if low <= self.low:
            self.at_low = int((values == low).sum()) + (self.at_low if low == self.low else 0)
        if high >= self.high:
            self.at_high = int((values == high).sum()) + (self.at_high if high == self.high else 0)
        self.low, self.high = min(low, self.low), max(high, self.high)
        spread = np.fmax.reduce(windows, axis=1) - np.fmin.reduce(windows, axis=1)
        self.constant += int(((spread == 0) & (seen.sum(axis=1) > 1)).sum())

    @property
    def mean(self) -> float:
        """Mean of the observed values."""
        return self.total / max(1, self.count)

    @property
    def std(self) -> float:
        """Their standard deviation."""
        return float(np.sqrt(max(0.0, self.squares / max(1, self.count) - self.mean**2)))


@dataclass
class _Found:
    """What the windows of all splits have shown."""

    channels: dict[tuple[str, str, int], _Channel] = field(default_factory=lambda: defaultdict(_Channel))
    exact: dict[str, list[tuple[str, str]]] = field(default_factory=lambda: defaultdict(list))
    near: dict[str, list[tuple[str, str]]] = field(default_factory=lambda: defaultdict(list))
    targets: dict[tuple[str, str], _Channel] = field(default_factory=lambda: defaultdict(_Channel))
    people: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))


def lint(url: str, *, hashes: bool = True) -> Iterator[Remark]:
    """All remarks about the data set at `url`, while it is read. `hashes`: compare the sha256 of each shard.

    Raises:
        StorageError: it cannot be read at present.
    """
    try:
        stored = load_manifest(url)
        check_shards(url, stored, [name for name, split in stored.splits.items() if split.samples])
    except (ConfigError, DataError) as error:
        yield Remark("error", "manifest", str(error))
        return
    damaged = False
    for remark in _files(url, stored, hashes=hashes):
        damaged = True
        yield remark
    if damaged:
        return
    try:
        manifest = usual_windows(url, stored) if stored.recordings is not None else stored
    except (ConfigError, DataError) as error:
        yield Remark("error", "recordings", str(error))
        return
    if manifest.symbols is not None and not manifest.symbols.raw:
        yield Remark("warning", "windows", "there are only symbols, so the values were not looked at")
        return
    found = _Found()
    for split, entry in manifest.splits.items():
        if entry.samples:
            yield from _windows(url, manifest, split, found)
    yield from _channels(manifest, found)
    yield from label_remarks(manifest)
    yield from _targets(found)
    yield from _shared_people(found)
    yield from _duplicates(found)


def _files(url: str, stored: Manifest, *, hashes: bool) -> Iterator[Remark]:
    """Each tar against its hash and its index."""
    storage = Storage(url)
    for split in stored.splits.values():
        for shard in split.shards:
            try:
                index, data = load_index(storage, shard), storage.read(shard.path, expected=True)
            except DataError as error:
                yield Remark("error", shard.index, str(error))
                continue
            if hashes and hashlib.sha256(data).hexdigest() != shard.sha256:
                yield Remark("error", shard.path, "its sha256 is not that of the manifest; pack the data set again")
                continue
            problem = _misfit(index, data, shard)
            if problem:
                yield Remark("error", shard.path, f"{problem}; pack the data set again")


def _misfit(index: ShardIndex, data: bytes, shard: Shard) -> str:
    """How tar and index differ; empty if they do not."""
    try:
        found = index_tar(io.BytesIO(data))
    except (OSError, ValueError, EOFError) as error:
        return f"it is no tar ({error})"
    if found.keys != index.keys:
        return f"it has {len(found.keys):,} samples with other keys than its index"
    offsets, sizes = found.columns(index.members)
    if found.members != index.members or (sizes != index.sizes).any():
        return "its members are not those of its index"
    return "" if (offsets[sizes > 0] == index.offsets[sizes > 0]).all() else "its index points elsewhere"


def _windows(url: str, manifest: Manifest, split: str, found: _Found) -> Iterator[Remark]:
    """Read all windows of a split; a remark for each bad one, up to some."""
    count = manifest.split(split).samples
    modalities = tuple(manifest.select(None))
    source = SplitSource(url, manifest, DataConfig(url=url, max_bad_samples=count), modalities, split)
    people = [subject for index in source.indexes() for subject in index.subjects or [""] * len(index.keys)]
    found.people[split] = set(people) - {""}
    bad = 0
    with closing(source.open()) as reader:
        for first in range(0, count, _AT_ONCE):
            batch: Any = reader.arrays(Request(np.arange(first, min(first + _AT_ONCE, count))))
            for line in batch.bad:
                bad += 1
                if bad <= _MOST_NAMED:
                    yield Remark("error", split, line)
            _count(batch, split, manifest, found)
    if bad > _MOST_NAMED:
        yield Remark("error", split, f"{bad - _MOST_NAMED:,} more samples are bad")


def _count(batch: Any, split: str, manifest: Manifest, found: _Found) -> None:
    for column, name in enumerate(manifest.targets):
        found.targets[split, name].add(batch.target[:, column : column + 1])
    digests = [hashlib.sha256() for _ in batch.keys]
    shapes: list[list[np.ndarray]] = [[] for _ in batch.keys]
    for modality in manifest.modalities:
        values, places = batch.values[modality.name], batch.rows[modality.name].tolist()
        for variate in range(modality.variates if len(values) else 0):
            found.channels[split, modality.name, variate].add(values[:, :, variate])
        for window, place in zip(values, places, strict=True):
            digests[place].update(modality.name.encode() + window.tobytes())
            shapes[place].append(_shape(window, modality.std))
    for place, key in enumerate(batch.keys):
        if not shapes[place]:  # it has no window
            continue
        found.exact[digests[place].hexdigest()].append((split, key))
        shape = np.concatenate([np.empty(0), *shapes[place]])
        if np.count_nonzero(~np.isnan(shape)) >= _SEGMENTS and np.nanstd(shape) > 0:
            found.near[np.round(shape, _DIGITS).tobytes().hex()].append((split, key))


def _shape(window: np.ndarray, std: list[float]) -> np.ndarray:
    """Means of the segments of a window [T, D], in standard deviations, without its own mean."""
    parts = np.array_split(window, min(_SEGMENTS, len(window)))
    seen = [np.maximum((~np.isnan(part)).sum(axis=0), 1) for part in parts]
    means = np.stack([np.nansum(part, axis=0) / n for part, n in zip(parts, seen, strict=True)])
    return ((means - means.mean(axis=0)) / np.where(np.array(std) > 0, std, 1.0)).reshape(-1)


def _channels(manifest: Manifest, found: _Found) -> Iterator[Remark]:
    for modality in manifest.modalities:
        for split, entry in manifest.splits.items():
            channels = [found.channels.get((split, modality.name, v), _Channel()) for v in range(modality.variates)]
            if not entry.samples:
                continue
            windows = max(channel.windows for channel in channels)
            name = f"{split}, {modality.name}"
            if not windows:
                yield Remark("warning", name, "no sample has it")
                continue
            for variate, channel in enumerate(channels):
                where = name if modality.variates == 1 else f"{name}, variate {variate}"
                train = modality.mean[variate], modality.std[variate]
                yield from _channel(where, channel, train, static=modality.always and modality.steps == 1)


def _channel(where: str, channel: _Channel, train: tuple[float, float], *, static: bool) -> Iterator[Remark]:
    missing = 1 - channel.count / max(1, channel.steps)
    if missing > _MISSING:
        yield Remark("warning", where, f"{missing:.0%} of its values are missing")
    if not channel.count or static:
        return
    if channel.low == channel.high:
        yield Remark("warning", where, f"it is always {channel.low:g}: a dead channel, or a constant")
        return
    if channel.constant > channel.windows / 2:
        share = channel.constant / channel.windows
        yield Remark("warning", where, f"it does not change within {share:.0%} of its windows")
    for side, value, hits in (("smallest", channel.low, channel.at_low), ("largest", channel.high, channel.at_high)):
        distinct = channel.constant <= channel.windows / 2 and channel.std > 0
        if distinct and hits > _CLIPPED * channel.count and abs(value - channel.mean) > channel.std:
            share = hits / channel.count
            yield Remark("warning", where, f"{share:.1%} of its values are exactly the {side} one, {value:g}: clipped?")
    mean, std = train
    if std > 0 and abs(channel.mean - mean) > _FAR * std:
        yield Remark("warning", where, f"its mean is {channel.mean:g}, that of training {mean:g}: another unit?")
    elif std > 0 and not std / _WIDE <= channel.std <= std * _WIDE:
        yield Remark("warning", where, f"its deviation is {channel.std:g}, that of training {std:g}: another unit?")


def _targets(found: _Found) -> Iterator[Remark]:
    """The range of each of several targets, by split."""
    for (split, name), target in found.targets.items():
        where = f"{split}, target {name}"
        known = f"known in {target.count:,} of {target.steps:,} samples"
        if not target.count:
            yield Remark("warning", where, "it is unknown in all samples")
        elif target.low == target.high and target.count > 1:
            yield Remark("warning", where, f"it is always {target.low:g}; {known}")
        else:
            text = f"{target.low:g} to {target.high:g}, mean {target.mean:g}, deviation {target.std:g}; {known}"
            yield Remark("note", where, text)


def label_remarks(manifest: Manifest) -> Iterator[Remark]:
    """Classes that a split lacks, or that nearly all of its samples have. Reads the manifest only."""
    for name, split in manifest.splits.items():
        if not split.samples or not split.class_counts:
            continue
        lacking = [label for label, count in zip(manifest.classes, split.class_counts, strict=True) if not count]
        if lacking:
            yield Remark("warning", name, f"no sample of {', '.join(lacking)}")
        share = max(split.class_counts) / split.samples
        if share > _ONE_CLASS and len(lacking) < len(manifest.classes) - 1:
            most = manifest.classes[int(np.argmax(split.class_counts))]
            yield Remark("warning", name, f"{share:.0%} of its samples are of {most}")


def _shared_people(found: _Found) -> Iterator[Remark]:
    splits_of = defaultdict(list)
    for split, people in found.people.items():
        for person in people:
            splits_of[person].append(split)
    shared: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for person, splits in splits_of.items():
        if len(splits) > 1:
            shared[tuple(splits)].append(person)
    for several, names in shared.items():
        yield Remark("error", " and ".join(several), f"{len(names):,} people are in both: {_some(sorted(names))}")


def _duplicates(found: _Found) -> Iterator[Remark]:
    yield from _groups(found.exact, "the same windows", "error")
    same = {entry for group in found.exact.values() if len(group) > 1 for entry in group}  # they are not named again
    near = {shape: [entry for entry in group if entry not in same] for shape, group in found.near.items()}
    yield from _groups(near, "nearly the same windows", "warning")


def _groups(groups: dict[str, list[tuple[str, str]]], what: str, across: Level) -> Iterator[Remark]:
    """A remark for each set of splits that duplicates are in. `across`: its level where that is more than one split."""
    pairs: Counter[tuple[str, ...]] = Counter()
    examples: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for group in groups.values():
        if len(group) > 1:
            splits = tuple(sorted({split for split, _ in group}))
            pairs[splits] += len(group)
            examples[splits].append(" = ".join(key for _, key in group[:2]))
    for splits, count in pairs.items():
        level = across if len(splits) > 1 else "warning"
        yield Remark(level, " and ".join(splits), f"{count:,} samples have {what}: {_some(examples[splits])}")


def _some(names: list[str]) -> str:
    return ", ".join(names[:_MOST_NAMED]) + (", ..." if len(names) > _MOST_NAMED else "")
