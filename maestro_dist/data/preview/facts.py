"""Who is in a data set and what was observed of them: from the indexes, or the table of recordings, without values."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from maestro_dist import rng
from maestro_dist.config.schema import DataConfig
from maestro_dist.data.description import is_static
from maestro_dist.data.index_copies import index_of
from maestro_dist.data.manifest import Manifest, Shard
from maestro_dist.data.preview.curves import drawn_at_random
from maestro_dist.data.recordings.table import RecordingTable
from maestro_dist.data.recordings.windowing import windowing_of
from maestro_dist.data.shard_index import member_name
from maestro_dist.data.storage import Storage
from maestro_dist.errors import DataError
from maestro_dist.types import Modality

_MOST_SHARDS = 200  # whose indexes are read, of each split
_MOST_RECORDINGS = 20_000
_AT_ONCE = 16
NOBODY = ""
"""The name of people without a name."""


@dataclass(frozen=True)
class ShardFacts:
    """What is known about the n samples of a shard without their values; M modalities.

    present  bool [n, M]
    targets  float64 [n], of several targets [n, K]; None in an index of an older version, and so are `subjects`
    """

    keys: list[str]
    subjects: list[str] | None
    present: np.ndarray
    targets: np.ndarray | None


@dataclass(frozen=True)
class SplitFacts:
    """The samples of a split, as far as the indexes of some of its shards tell.

    subjects  the person of each sample, str [N]
    present   bool [N, M]
    targets   float64 [N]; of several targets [N, K]
    read      number of shards that were looked at, of `shards`
    broken    what is wrong with the others, one line each
    """

    subjects: np.ndarray
    present: np.ndarray
    targets: np.ndarray
    read: int
    shards: int
    broken: tuple[str, ...] = ()

    @property
    def people(self) -> int:
        """How many people have a name."""
        return len(set(self.subjects.tolist()) - {NOBODY})


@dataclass(frozen=True)
class Coverage:
    """The share that was observed of each person, P people and M modalities.

    shares  float64 [P, M]
    counts  int64 [P]: samples, or recordings
    """

    people: list[str]
    counts: np.ndarray
    shares: np.ndarray


def shard_facts(config: DataConfig, manifest: Manifest, split: str, shard: Shard) -> ShardFacts:
    """The samples of a shard that are in the split.

    Raises:
        DataError: its index is missing or damaged.
        StorageError: it cannot be read at present.
    """
    modalities = manifest.select(config.modalities)
    if manifest.cut is not None:
        windowing = windowing_of(config.url, manifest, config.cache)
        windows = windowing.shard(split, shard)
        own = [windowing.names.index(modality.name) for modality in modalities]
        return ShardFacts(windows.keys, windows.subjects, windows.present[:, own], windows.target)
    index = index_of(Storage(config.url), shard, config.cache)
    symbols = manifest.symbols is not None and not manifest.symbols.raw
    members = [member_name(modality.name, symbols=symbols) for modality in modalities]
    return ShardFacts(index.keys, index.subjects, index.columns(members)[1] > 0, index.targets)


def split_facts(config: DataConfig, manifest: Manifest, split: str, seed: int) -> SplitFacts:
    """What some shards of a split say, drawn at random. Raises StorageError."""
    shards = manifest.split(split).shards
    drawn = np.sort(drawn_at_random(rng.key(seed, "preview indexes", split), len(shards), _MOST_SHARDS))

    def look(number: int) -> ShardFacts | str:
        try:
            return shard_facts(config, manifest, split, shards[number])
        except DataError as error:
            return str(error)

    if manifest.cut is None:
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            looked = list(pool.map(look, drawn.tolist()))
    else:
        looked = [look(number) for number in drawn.tolist()]  # all from the one table
    found = [facts for facts in looked if isinstance(facts, ShardFacts)]
    width = len(manifest.select(config.modalities))
    no_targets = np.empty((0, manifest.target_width) if manifest.target_width > 1 else 0)
    subjects = [facts.subjects or [NOBODY] * len(facts.keys) for facts in found]
    return SplitFacts(
        subjects=np.array([name for part in subjects for name in part], dtype=np.str_),
        present=np.concatenate([np.empty((0, width), dtype=bool), *(facts.present for facts in found)]),
        targets=np.concatenate([no_targets, *(facts.targets for facts in found if facts.targets is not None)]),
        read=len(drawn),
        shards=len(shards),
        broken=tuple(line for line in looked if isinstance(line, str)),
    )


def coverage_of_windows(splits: Sequence[SplitFacts]) -> Coverage:
    """The share of each person's windows that have a modality."""
    subjects = np.concatenate([np.empty(0, dtype=np.str_), *(facts.subjects for facts in splits)])
    people, place, counts = np.unique(subjects, return_inverse=True, return_counts=True)
    present = np.concatenate([facts.present for facts in splits]) if splits else np.empty((0, 0), dtype=bool)
    sums = [np.bincount(place, present[:, column], len(people)) for column in range(present.shape[1])]
    shares = np.stack(sums, axis=1) / counts[:, None] if sums else np.empty((len(people), 0))
    return Coverage(people.tolist(), counts, shares)


def coverage_of_recordings(table: RecordingTable, rows: np.ndarray, modalities: Sequence[Modality]) -> Coverage:
    """The share of each person's time at which a modality was observed.

    modalities  all of the data set, in the order of the table
    """
    subjects = np.array([table.texts["subject"][row] for row in rows.tolist()], dtype=np.str_)
    seconds, lengths = np.zeros((len(rows), len(modalities))), np.zeros(len(rows))
    for at, row in enumerate(rows.tolist()):
        facts = table.facts(row)
        lengths[at] = facts.length_s
        for column, (modality, stream) in enumerate(zip(modalities, facts.streams, strict=True)):
            steps = stream.steps - int((stream.gaps[:, 1] - stream.gaps[:, 0]).sum())
            observed = facts.length_s * (steps > 0) if is_static(modality) else steps / modality.rate_hz
            seconds[at, column] = min(observed, facts.length_s)  # a stream may begin before time 0
    people, place, counts = np.unique(subjects, return_inverse=True, return_counts=True)
    sums = [np.bincount(place, seconds[:, column], len(people)) for column in range(len(modalities))]
    total = np.bincount(place, lengths, len(people))
    shares = np.stack(sums, axis=1) / np.maximum(total, 1e-300)[:, None]
    return Coverage(people.tolist(), counts, shares)


def recordings_to_count(seed: int, count: int) -> np.ndarray:
    """The rows of the table that the coverage is counted of, drawn at random if there are many."""
    return np.sort(drawn_at_random(rng.key(seed, "preview recordings"), count, _MOST_RECORDINGS))
