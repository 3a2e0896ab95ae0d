"""Sampling by class (`data.class_balance`): rare classes come more often, in epochs that stay as long as they are.

The samples of a split have pieces of a line from 0 to N, one after the other: shard by shard, and in a shard class by
class. A piece is as long as its sample is to occur in an epoch on average: above 1 for rare classes and below 1 for
frequent ones. The line is moved by an offset, and each whole number on it is a place of the epoch (systematic
sampling: Madow, 1949). So a sample occurs as often as its piece is long, rounded down or up, and so do the samples of a
class in a shard. Together they fill N places, whatever the offset is.

From epoch to epoch the offset grows by the golden ratio, modulo 1. No other step spreads successive offsets as evenly
(the three-gap theorem), so a sample whose piece has length l comes at least once in any 2 / l + 1 epochs.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from maestro_dist import rng
from maestro_dist.config.schema import DataConfig
from maestro_dist.data.index_copies import index_of
from maestro_dist.data.label_sets import ClassCounter
from maestro_dist.data.manifest import Manifest
from maestro_dist.data.reader import SplitSource
from maestro_dist.data.recordings.windowing import windowing_of
from maestro_dist.data.shard_index import ShardIndex
from maestro_dist.data.storage import Storage
from maestro_dist.errors import ConfigError, DataError

_KEPT = 1 << 24  # labels that are kept in memory, of one or two bytes each; those of other shards are read again
_STEP = (math.sqrt(5) - 1) / 2  # of the offset from epoch to epoch
_SHOWN = 4  # of the rarest and of the most frequent classes that a line names


def check_class_balance(config: DataConfig, manifest: Manifest) -> None:
    """Raise `ConfigError` if `data.class_balance` is set and the samples have no classes."""
    if config.class_balance and not manifest.classes:
        raise ConfigError(
            f"data.class_balance: {config.class_balance:g}, but the samples of '{manifest.name}' have no classes "
            f"(task {manifest.task}); use 0"
        )


def class_weights(class_counts: Sequence[int], balance: float) -> np.ndarray:
    """How often a sample of each class comes, relative to one of the most frequent class; float64 [C].

    n_c^-balance, divided by that of the most frequent class; equal for equal counts. A class without samples counts as
    one with one sample.
    """
    counts = np.maximum(np.asarray(class_counts, dtype=np.float64), 1.0)
    # rounded to float32: the last bit of a power may differ between machines, but all ranks must find the same order
    return ((counts / counts.max()) ** -balance).astype(np.float32).astype(np.float64)


def deciding_classes(labels: np.ndarray, counter: ClassCounter, class_counts: Sequence[int]) -> np.ndarray:
    """The class that decides how often a sample comes, unsigned int [n]: its own, or the rarest of its labels.

    It is the most frequent class for a sample without any label, and for one whose label, in `labels` [n], is wrong:
    the reader will name it.
    """
    numbers = counter.numbers(labels)
    by_count = np.argsort(-np.asarray(class_counts), kind="stable").tolist()
    kind = np.min_scalar_type(len(by_count))
    if not counter.several:
        return np.where(numbers < 0, by_count[0], numbers).astype(kind)
    found = np.full(len(numbers), by_count[0], dtype=kind)
    for label in by_count:
        found[(numbers >= 0) & (numbers >> label & 1 > 0)] = label
    return found


class ShardLabels(Protocol):
    """The labels of a split's samples, as the index stores them."""

    def all(self) -> Iterator[np.ndarray]:
        """The labels of each shard, float64 [n], in the order of the shards."""
        ...

    def of(self, shard: int) -> np.ndarray:
        """The labels of one shard, float64 [n]."""
        ...


class ClassBalance:
    """The training samples of a run with `data.class_balance`.

    Its memory grows with the number of shards. A limited number of labels is kept; those of other shards are read again
    when an epoch comes to them.

    samples  number N of samples, and of places in each epoch
    shares   float64 [C]: the share of an epoch's places whose sample has the class or label
    """

    def __init__(
        self, labels: ShardLabels, counter: ClassCounter, class_counts: Sequence[int], balance: float, seed: int
    ) -> None:
        """Reads all labels. `class_counts`: samples of each of the C classes in the split."""
        self._labels, self._counter, self._class_counts = labels, counter, class_counts
        self._known: OrderedDict[int, np.ndarray] = OrderedDict()
        self._known_size = 0
        self._lock = threading.Lock()  # the readers and the downloads ask for the order of an epoch
        weights = class_weights(class_counts, balance)
        ends, sizes, seen = [0.0], [0], np.zeros(len(weights))
        for shard, numbers in enumerate(labels.all()):
            own = self._keep(shard, numbers)
            # sums one after the other, which have the same bits on all machines
            ends.append(np.cumsum([ends[-1], *np.bincount(own, minlength=len(weights)) * weights])[-1])
            sizes.append(len(own))
            seen += self._seen(numbers, own, weights)
        self.samples = sum(sizes)
        scale = self.samples / ends[-1] if self.samples else 0.0
        self.shares = seen * scale / max(self.samples, 1)
        self._lengths = weights * scale
        self._starts = np.array(ends) * scale  # of the shards, on the line
        self._starts[-1] = self.samples
        self._first = np.cumsum(sizes)
        self._offset = float(rng.uniform_np(rng.key(seed, "class_balance"), 0))

    def epoch(self, number: int) -> BalancedEpoch:
        """The samples of an epoch."""
        return BalancedEpoch(self, (self._offset + number * _STEP) % 1.0)

    def bounds(self, offset: float) -> np.ndarray:
        """The first place of each shard, and the end of the last, int64 [S + 1]."""
        return np.floor(self._starts + offset).astype(np.int64)

    def copies(self, shard: int, offset: float) -> np.ndarray:
        """How often each sample of a shard occurs, int64 [n]."""
        own = self._deciding(shard)
        order = np.argsort(own, kind="stable")
        start, end = self._starts[shard], self._starts[shard + 1]
        edges = np.concatenate(([start], np.minimum(start + np.cumsum(self._lengths[own[order]]), end)))
        edges[-1] = end  # exactly where the next shard starts
        found = np.empty(len(own), dtype=np.int64)
        found[order] = np.diff(np.floor(edges + offset).astype(np.int64))
        return found

    def first(self, shard: int) -> int:
        """The number of a shard's first sample."""
        return int(self._first[shard])

    def _seen(self, numbers: np.ndarray, own: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """The sum of the weights of the samples that have each class or label, float64 [C]."""
        labels, each = self._counter.numbers(numbers), weights[own]
        if not self._counter.several:
            return np.bincount(labels[labels >= 0], each[labels >= 0], minlength=len(weights))
        return np.array([each[(labels >= 0) & (labels >> n & 1 > 0)].sum() for n in range(len(weights))])

    def _deciding(self, shard: int) -> np.ndarray:
        """See `deciding_classes`."""
        with self._lock:
            found = self._known.get(shard)
            if found is None:
                found = self._keep(shard, self._labels.of(shard))
            self._known.move_to_end(shard)
            return found

    def _keep(self, shard: int, labels: np.ndarray) -> np.ndarray:
        own = self._known[shard] = deciding_classes(labels, self._counter, self._class_counts)
        self._known_size += len(own)
        while self._known_size > _KEPT and len(self._known) > 1:
            self._known_size -= len(self._known.popitem(last=False)[1])
        return own


class BalancedEpoch:
    """The samples of one epoch; some occur several times.

    counts  int64 [S]: number of places of each shard
    """

    def __init__(self, balance: ClassBalance, offset: float) -> None:
        self._balance, self._offset = balance, offset
        self.counts = np.diff(balance.bounds(offset))

    def part(self, shard: int, first: int, end: int) -> np.ndarray:
        """The sample numbers of a shard's places [first, end), ascending."""
        ends = np.cumsum(self._balance.copies(shard, self._offset))
        rows = np.searchsorted(ends, np.arange(first, end), side="right")
        return rows.astype(np.int64) + self._balance.first(shard)


class SourceLabels:
    """Labels from the indexes of the shards, or from the table of recordings. See `ShardLabels`."""

    def __init__(self, source: SplitSource) -> None:
        self._source, self._storage = source, Storage(source.url)
        self._shards = source.manifest.split(source.split).shards

    def all(self) -> Iterator[np.ndarray]:
        """See `ShardLabels.all`. Indexes are read in several threads.

        Raises:
            DataError: an index is missing, damaged, or of an older version without labels.
        """
        if self._source.manifest.cut is not None:
            yield from map(self._of_recordings, range(len(self._shards)))
            return
        for shard, index in enumerate(self._source.indexes()):
            yield self._of_index(shard, index)

    def of(self, shard: int) -> np.ndarray:
        """See `ShardLabels.of`. Raises what `all` raises."""
        if self._source.manifest.cut is not None:
            return self._of_recordings(shard)
        return self._of_index(shard, index_of(self._storage, self._shards[shard], self._source.config.cache))

    def _of_recordings(self, shard: int) -> np.ndarray:
        source = self._source
        return (
            windowing_of(source.url, source.manifest, source.config.cache)
            .shard(source.split, self._shards[shard])
            .target
        )

    def _of_index(self, shard: int, index: ShardIndex) -> np.ndarray:
        if index.targets is None:
            raise DataError(
                f"{self._storage.name(self._shards[shard].index)}: an index of an older version, without labels, which "
                "data.class_balance needs; pack the data set again, or set data.class_balance=0"
            )
        return index.targets


def class_balance_of(source: SplitSource, seed: int) -> ClassBalance:
    """The training samples of a run, by `data.class_balance`. Raises what `SourceLabels.all` raises."""
    counts = source.manifest.split(source.split).class_counts
    return ClassBalance(SourceLabels(source), source.manifest.counter, counts, source.config.class_balance, seed)


def shares_text(classes: Sequence[str], before: Sequence[float], after: Sequence[float]) -> str:
    """The share of each class in an epoch, and without `data.class_balance`; the rarest first.

    before, after  [C]: shares of the samples of the split, and of the places of an epoch
    """
    order = [n for n in np.argsort(before, kind="stable").tolist() if before[n] > 0]
    parts = [f"{classes[n]} {after[n]:.1%} instead of {before[n]:.1%}" for n in order]
    if len(parts) > 2 * _SHOWN:
        parts = [*parts[:_SHOWN], "...", *parts[-_SHOWN:]]
    return ", ".join(parts)


def balanced_shares(class_counts: Sequence[int], balance: float) -> list[float]:
    """The share of each class in an epoch, [C], where each sample has one class."""
    seen = np.asarray(class_counts) * class_weights(class_counts, balance)
    return (seen / max(seen.sum(), 1e-300)).tolist()
