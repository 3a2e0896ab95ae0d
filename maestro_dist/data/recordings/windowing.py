"""The windows of a data set of recordings: how many each shard has, and which they are."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from maestro_dist.data.index_copies import once_a_machine
from maestro_dist.data.label_sets import ClassCounter
from maestro_dist.data.manifest import Manifest, ManifestModality, ManifestSplit, Shard
from maestro_dist.data.recordings.cutting import Cutter, CutWindows
from maestro_dist.data.recordings.splitting import split_recordings
from maestro_dist.data.recordings.table import RecordingTable, table_of_bytes
from maestro_dist.data.shard_index import ShardIndex
from maestro_dist.data.storage import ObjectDamaged, ObjectMissing, Storage
from maestro_dist.data.target_numbers import target_statistics
from maestro_dist.errors import DataError
from maestro_dist.types import Modality


@dataclass(frozen=True)
class ShardWindows:
    """The n windows of one shard in one split; M modalities of the data set.

    keys      name of each window: that of its recording, and its number there
    row       int64 [n]: its recording, counted in the shard
    first     int64 [n, M]: the first step of each modality in its stream
    present   bool [n, M]
    target    float64 [n]; of several numbers [n, `Manifest.target_width`]
    steps     int64 [R, M]: length of the streams of the shard's recordings
    """

    keys: list[str]
    row: np.ndarray
    first: np.ndarray
    present: np.ndarray
    target: np.ndarray
    steps: np.ndarray
    subjects: list[str]


class Windowing:
    """The windows of all recordings, for a manifest with a `cut`."""

    def __init__(self, manifest: Manifest, table: RecordingTable) -> None:
        """Raises what `split_recordings` raises."""
        assert manifest.cut is not None
        modalities = sorted((_plain(m) for m in manifest.modalities), key=lambda m: m.name)
        self.names = [modality.name for modality in modalities]
        self._cutter = Cutter.of(modalities, manifest.cut.window, manifest.task)
        self._steps = manifest.label_steps
        self._no_labels = np.empty((0, manifest.target_width) if manifest.target_width > 1 else 0)
        self._splitting = split_recordings(table, manifest.cut.split)
        self.table = table

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """All modalities, sorted by name, with the steps of a window."""
        return self._cutter.modalities

    @property
    def window_s(self) -> float:
        """Length of a window."""
        return self._cutter.window.length_s

    def splits(self, stored: ManifestSplit, counter: ClassCounter) -> dict[str, ManifestSplit]:
        """The splits, with the shards that have windows in them."""
        found: dict[str, list[Shard]] = {name: [] for name in self._splitting.names}
        targets: dict[str, list[np.ndarray]] = {name: [] for name in self._splitting.names}
        first = 0
        for shard in stored.shards:
            for name in self._splitting.names:
                label = self._targets(name, first, shard.samples)
                if len(label):
                    changes = {"samples": len(label), "recordings": shard.samples, "first": first}
                    found[name].append(shard.model_copy(update=changes))
                    targets[name].append(label)
            first += shard.samples
        return {
            name: _split(shards, [self._no_labels, *targets[name]], counter, self._steps)
            for name, shards in found.items()
        }

    def shard(self, split: str, shard: Shard) -> ShardWindows:
        """The windows of a shard that are in the split."""
        assert shard.recordings is not None
        assert shard.first is not None
        rows, first, present, target, keys, steps, subjects = [], [], [], [], [], [], []
        for row in range(shard.recordings):
            facts = self.table.facts(shard.first + row)
            steps.append([stream.steps for stream in facts.streams])
            if self._splitting.time_cuts is None and self._splitting.of[shard.first + row] != split:
                continue
            windows = self._cutter.windows(facts)
            times = facts.length_s, self._cutter.window.length_s
            own = np.flatnonzero(self._splitting.some(split, shard.first + row, windows, times))
            windows = windows.some(own)
            rows.append(np.full(len(own), row))
            first.append(windows.first)
            present.append(windows.present)
            target.append(windows.label)
            keys += [f"{facts.key}-{number:06d}" for number in windows.number.tolist()]
            subjects += [facts.subject] * len(own)
        shape = (0, len(self.names))
        return ShardWindows(
            keys,
            np.concatenate([np.empty(0, dtype=np.int64), *rows]),
            np.concatenate([np.empty(shape, dtype=np.int64), *first]),
            np.concatenate([np.empty(shape, dtype=bool), *present]),
            np.concatenate([self._no_labels, *target]),
            np.array(steps, dtype=np.int64).reshape(len(steps), len(self.names)),
            subjects,
        )

    def recording(self, row: int) -> tuple[CutWindows, list[str]]:
        """All windows of a recording of the table, and the split of each; "" if it is in none."""
        facts = self.table.facts(row)
        windows = self._cutter.windows(facts)
        times, of = (facts.length_s, self._cutter.window.length_s), np.full(len(windows), -1)
        for number, name in enumerate(self._splitting.names):
            of[self._splitting.some(name, row, windows, times)] = number
        return windows, [self._splitting.names[number] if number >= 0 else "" for number in of.tolist()]

    def _targets(self, split: str, first: int, recordings: int) -> np.ndarray:
        """The labels of the windows of some recordings that are in the split, in their order."""
        found = [self._no_labels]
        for row in range(first, first + recordings):
            if self._splitting.time_cuts is None and self._splitting.of[row] != split:
                continue
            facts = self.table.facts(row)
            windows = self._cutter.windows(facts)
            times = facts.length_s, self._cutter.window.length_s
            found.append(windows.label[self._splitting.some(split, row, windows, times)])
        return np.concatenate(found)


def window_index(stored: ShardIndex, windows: ShardWindows, names: Sequence[str]) -> ShardIndex:
    """The index of the windows of a shard. A window's members are those of its recording, without absent modalities.

    names  the modalities, in the order of the columns of `windows`
    """
    sizes = stored.sizes[windows.row]
    for column, member in enumerate(stored.members):
        name, _, ending = member.partition(".")
        if ending == "npy" and name in names:
            sizes[:, column] *= windows.present[:, names.index(name)]
    offsets = stored.offsets[windows.row]
    return ShardIndex(windows.keys, stored.members, offsets, sizes, windows.target, windows.subjects)


def load_table(url: str, manifest: Manifest, cache: str | None = None) -> RecordingTable:
    """The table of the recordings at `url`; a remote one is read once on a machine. `cache` is `data.cache`.

    Raises:
        DataError: it is missing or damaged.
        StorageError: it cannot be read at present.
    """
    about = manifest.recordings
    assert about is not None
    storage = Storage(url)

    def parse(data: bytes) -> bytes:
        if hashlib.sha256(data).hexdigest() != about.sha256:
            raise ValueError("its sha256 is not that of the manifest")
        return data

    try:
        data = once_a_machine(storage, about.sha256, cache, lambda: storage.parsed(about.table, parse, expected=True))
    except ObjectMissing as error:
        raise DataError(f"{storage.name(about.table)} is missing; pack the data set again") from error
    except ObjectDamaged as error:
        raise DataError(f"{error}; pack the data set again") from error
    return table_of_bytes(data, storage.name(about.table), about.bytes)


_KEPT = 4
_known: OrderedDict[tuple[str, str], Windowing] = OrderedDict()


def windowing_of(url: str, manifest: Manifest, cache: str | None = None) -> Windowing:
    """The windows that a cut manifest describes; those of the last few are kept in memory. `cache` is `data.cache`.

    Raises what `load_table` and `split_recordings` raise.
    """
    assert manifest.cut is not None
    assert manifest.recordings is not None
    modalities = "".join(modality.model_dump_json() for modality in manifest.modalities)
    key = manifest.recordings.sha256, manifest.cut.model_dump_json() + modalities
    if key not in _known:
        _known[key] = Windowing(manifest, load_table(url, manifest, cache))
    _known.move_to_end(key)
    while len(_known) > _KEPT:
        _known.popitem(last=False)
    return _known[key]


def _plain(modality: ManifestModality) -> Modality:
    return Modality(modality.name, modality.variates, modality.rate_hz, modality.steps, always=modality.always)


def _split(shards: list[Shard], targets: list[np.ndarray], counter: ClassCounter, steps: int) -> ManifestSplit:
    several = counter.targets > 1
    label = np.concatenate(targets)
    if label.ndim == 2:  # over time, or of several targets: counted one by one
        label = label.reshape(-1, counter.targets)
        label = label if several else label[~np.isnan(label)]
    unknown = np.isnan(label).all(axis=1) if several else np.isnan(label)
    counts = counter.counts(label)
    numbers = not counter.classes and not several and len(label) > 0
    return ManifestSplit(
        shards=shards,
        samples=sum(shard.samples for shard in shards),
        class_counts=counts,
        target_mean=float(label.mean()) if numbers else None,
        target_std=float(label.std()) if numbers else None,
        targets=target_statistics(label, counter.targets),
        labelled=None if steps == 1 else int((~unknown).sum()),
    )
