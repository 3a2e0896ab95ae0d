"""Look for what is wrong or odd in a packed data set: damage, dead or clipped channels, labels, people, duplicates."""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from maestro_dist.config.schema import DataConfig
from maestro_dist.data.manifest import Manifest, ManifestModality, Shard, load_manifest
from maestro_dist.data.reader import Request, SplitSource
from maestro_dist.data.recordings.cut_data import usual_windows
from maestro_dist.data.shard_checks import check_shards
from maestro_dist.data.shard_index import ShardIndex, index_tar, load_index
from maestro_dist.data.storage import Storage
from maestro_dist.errors import ConfigError, DataError, StorageError

Level = Literal["error", "warning", "note"]

_AT_ONCE, _MOST_BYTES = 64, 64 << 20
"""Windows that are read together: so many, and of so many bytes."""
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
    def missing(self) -> float:
        """Share of the steps without a value."""
        return 1 - self.count / max(1, self.steps)

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


def lint(config: DataConfig, *, hashes: bool = True) -> Iterator[Remark]:
    """All remarks about the data set at `data.url`, while it is read. `hashes`: compare the sha256 of each shard.

    Recordings are cut and divided as `data.window` and `data.split` say; packed windows keep their splits.

    Raises:
        ConfigError: there is no room for a copy of a remote shard.
        StorageError: it cannot be read at present.
    """
    url = config.url
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
        recordings = stored.recordings is not None
        manifest = usual_windows(url, stored, config.window, config.split) if recordings else stored
    except (ConfigError, DataError) as error:
        yield Remark("error", "recordings", str(error))
        return
    if manifest.symbols is not None and not manifest.symbols.raw:
        yield Remark("warning", "windows", "there are only symbols, so the values were not looked at")
        return
    found = _Found()
    for split, entry in manifest.splits.items():
        if entry.samples:
            yield from _windows(config, manifest, split, found)
    yield from _channels(manifest, found)
    yield from label_remarks(manifest)
    yield from _targets(found, "samples" if manifest.label_steps == 1 else "parts")
    yield from _shared_people(found)
    yield from _duplicates(found)


def _files(url: str, stored: Manifest, *, hashes: bool) -> Iterator[Remark]:
    """Each tar against its hash and its index."""
    storage = Storage(url)
    for split in stored.splits.values():
        for shard in split.shards:
            try:
                index = load_index(storage, shard)
                with _local_copy(storage, shard) as path:
                    problem = _changed(path, shard) if hashes else ""
                    problem = problem or _misfit(index, path)
            except DataError as error:
                yield Remark("error", shard.index, str(error))
                continue
            if problem:
                yield Remark("error", shard.path, f"{problem}; pack the data set again")


@contextmanager
def _local_copy(storage: Storage, shard: Shard) -> Iterator[Path]:
    """Context with a local file that has the shard: itself, or a copy of what is in the store at present."""
    local = storage.local_path(shard.path)
    if local is not None:
        storage.size(shard.path, expected=True)  # a missing one is named
        yield local
        return
    with tempfile.TemporaryDirectory(prefix="maestro-lint-") as folder:
        copy = Path(folder) / "shard.tar"
        try:
            storage.download(shard.path, copy, expected=True)
        except OSError as error:
            raise ConfigError(
                f"cannot copy shard {shard.path} ({shard.bytes:,} bytes) to {folder}: {error.strerror or error}; set "
                "TMPDIR to a folder with more room"
            ) from error
        yield copy


def _changed(path: Path, shard: Shard) -> str:
    """Whether the sha256 of a shard is another than that of the manifest; empty if it is not."""
    try:
        with path.open("rb") as file:
            same = hashlib.file_digest(file, "sha256").hexdigest() == shard.sha256
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
    return "" if same else "its sha256 is not that of the manifest"


def _misfit(index: ShardIndex, path: Path) -> str:
    """How tar and index differ; empty if they do not."""
    try:
        with path.open("rb") as file:
            found = index_tar(file)
    except (OSError, ValueError, EOFError) as error:
        return f"it is no tar ({error})"
    if found.keys != index.keys:
        return f"it has {len(found.keys):,} samples with other keys than its index"
    offsets, sizes = found.columns(index.members)
    if found.members != index.members or (sizes != index.sizes).any():
        return "its members are not those of its index"
    return "" if (offsets[sizes > 0] == index.offsets[sizes > 0]).all() else "its index points elsewhere"


def _windows(config: DataConfig, manifest: Manifest, split: str, found: _Found) -> Iterator[Remark]:
    """Read all windows of a split; a remark for each bad one, up to some."""
    count = manifest.split(split).samples
    modalities = tuple(manifest.select(None))
    tolerant = config.model_copy(update={"max_bad_samples": count, "sources": []})
    source = SplitSource(config.url, manifest, tolerant, modalities, split)
    window = sum(modality.steps * modality.variates * 4 for modality in modalities)
    at_once = max(1, min(_AT_ONCE, _MOST_BYTES // max(1, window)))
    people = [subject for index in source.indexes() for subject in index.subjects or [""] * len(index.keys)]
    found.people[split] = set(people) - {""}
    bad = 0
    with closing(source.open()) as reader:
        for first in range(0, count, at_once):
            batch: Any = reader.arrays(Request(np.arange(first, min(first + at_once, count))))
            for line in batch.bad:
                bad += 1
                if bad <= _MOST_NAMED:
                    yield Remark("error", split, line)
            _count(batch, split, manifest, found)
    if bad > _MOST_NAMED:
        yield Remark("error", split, f"{bad - _MOST_NAMED:,} more samples are bad")


def _count(batch: Any, split: str, manifest: Manifest, found: _Found) -> None:
    for column, name in enumerate(manifest.targets):
        numbers = batch.target.reshape(-1, len(manifest.targets))  # over time each part counts
        found.targets[split, name].add(numbers[:, column : column + 1])
    digests = [hashlib.sha256() for _ in batch.keys]
    shapes: list[list[np.ndarray]] = [[] for _ in batch.keys]
    for modality in manifest.modalities:
        values, places = batch.values[modality.name], batch.rows[modality.name].tolist()
        for variate in range(modality.variates if len(values) else 0):
            found.channels[split, modality.name, variate].add(values[:, :, variate])
        if _is_static(modality):  # many people have the same age
            continue
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


def _is_static(modality: ManifestModality) -> bool:
    """Whether it is one value, such as the age, and has no time."""
    return modality.always and modality.steps == 1


def _shape(window: np.ndarray, std: list[float]) -> np.ndarray:
    """Means of the segments of a window [T, D], in standard deviations, without its own mean."""
    parts = np.array_split(window, min(_SEGMENTS, len(window)))
    seen = [np.maximum((~np.isnan(part)).sum(axis=0), 1) for part in parts]
    means = np.stack([np.nansum(part, axis=0) / n for part, n in zip(parts, seen, strict=True)])
    return ((means - means.mean(axis=0)) / np.where(np.array(std) > 0, std, 1.0)).reshape(-1)


def _channels(manifest: Manifest, found: _Found) -> Iterator[Remark]:
    for modality in manifest.modalities:
        missing: dict[int, list[str]] = defaultdict(list)  # splits by variate
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
                if channel.missing > _MISSING:
                    missing[variate].append(f"{channel.missing:.0%} in {split}")
                where = name if modality.variates == 1 else f"{name}, variate {variate}"
                train = modality.mean[variate], modality.std[variate]
                yield from _channel(where, channel, train, static=_is_static(modality))
        for said in dict.fromkeys(map(tuple, missing.values())):  # a sensor's variates are often missing together
            own = [str(variate) for variate in missing if tuple(missing[variate]) == said]
            where = modality.name if len(own) == modality.variates else f"{modality.name}, variate {', '.join(own)}"
            yield Remark("warning", where, f"most of its values are missing: {', '.join(said)}")


def _channel(where: str, channel: _Channel, train: tuple[float, float], *, static: bool) -> Iterator[Remark]:
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


def _targets(found: _Found, what: str) -> Iterator[Remark]:
    """The range of each of several targets, by split. `what` has a label each."""
    for (split, name), target in found.targets.items():
        where = f"{split}, target {name}"
        known = f"known in {target.count:,} of {target.steps:,} {what}"
        if not target.count:
            yield Remark("warning", where, f"it is unknown in all {what}")
        elif target.low == target.high and target.count > 1:
            yield Remark("warning", where, f"it is always {target.low:g}; {known}")
        else:
            text = f"{target.low:g} to {target.high:g}, mean {target.mean:g}, deviation {target.std:g}; {known}"
            yield Remark("note", where, text)


def label_remarks(manifest: Manifest) -> Iterator[Remark]:
    """Classes that a split lacks, or that nearly all of its samples have. Reads the manifest only."""
    what = "sample" if manifest.label_steps == 1 else "part"
    for name, split in manifest.splits.items():
        if not split.samples or not split.class_counts:
            continue
        lacking = [label for label, count in zip(manifest.classes, split.class_counts, strict=True) if not count]
        if lacking:
            yield Remark("warning", name, f"no {what} of {', '.join(lacking)}")
        labels = split.samples if split.labelled is None else split.labelled
        share = max(split.class_counts) / max(labels, 1)
        if share > _ONE_CLASS and len(lacking) < len(manifest.classes) - 1:
            most = manifest.classes[int(np.argmax(split.class_counts))]
            yield Remark("warning", name, f"{share:.0%} of its {what}s are of {most}")


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
