"""The order in which a run reads several data sets: a function of seed, weights and shard sizes only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from maestro_dist import rng
from maestro_dist.data.label_share import KeptSamples
from maestro_dist.data.mixture.pattern import MixPattern
from maestro_dist.data.order import EpochOrder, OrderSettings, steps_per_epoch

_EPOCHS = 2  # of each source that are kept in memory


@dataclass
class _EndlessSource:
    """One data set. `start`: number of its first sample among the samples of all."""

    settings: OrderSettings
    shard_samples: Sequence[int]
    kept: KeptSamples
    start: int

    def __post_init__(self) -> None:
        self.samples = int(self.kept.counts.sum())
        self._orders: dict[int, EpochOrder] = {}

    def take(self, first: int, count: int) -> np.ndarray:
        """Numbers of samples [first, first + count) of the endless sequence of its epochs, int64 [count]."""
        found = []
        size = self.settings.global_batch
        while count:
            epoch, at = divmod(first, self.samples)
            number, inside = divmod(at, size)
            batch = self._order(epoch).batch(number)[inside : inside + count]
            found.append(batch)
            first, count = first + len(batch), count - len(batch)
        return np.concatenate([np.empty(0, dtype=np.int64), *found]) + self.start

    def _order(self, epoch: int) -> EpochOrder:
        if epoch not in self._orders:
            self._orders[epoch] = EpochOrder(self.settings, epoch, self.shard_samples, self.kept)
            for old in sorted(self._orders)[:-_EPOCHS]:
                del self._orders[old]
        return self._orders[epoch]


class MixedOrder:
    """The global batches of a run on several data sets.

    A place of the sequence belongs to a source by a fixed pattern; the source gives its next sample, epoch after epoch
    of its own. So each source is read completely before a sample of it comes again, whatever the weights are.

    samples  number N of samples of all sources: an epoch of the run has as many places
    steps    global batches of an epoch; the last may be smaller
    """

    def __init__(
        self, settings: OrderSettings, pattern: MixPattern, shard_samples: Sequence[Sequence[int]], share: float = 1.0
    ) -> None:
        """`shard_samples`: samples of the shards of each source; `share`: as `data.label_share`."""
        self._size, self._pattern, self._sources = settings.global_batch, pattern, list[_EndlessSource]()
        start = 0
        for number, counts in enumerate(shard_samples):
            seed = source_seed(settings.seed, number)
            chunk = max(1, round(settings.global_batch * float(pattern.shares[number])))
            own = replace(settings, seed=seed, global_batch=chunk)
            self._sources.append(_EndlessSource(own, counts, KeptSamples(seed, counts, share), start))
            start += sum(counts)
        self.samples = sum(source.samples for source in self._sources)
        self.steps = steps_per_epoch(self.samples, self._size)

    def batch(self, epoch: int, number: int, share: slice | None = None) -> np.ndarray:
        """Sample numbers of global batch `number` of an epoch, int64 [<= G]; or of a `share` of it."""
        size = min(self._size, self.samples - number * self._size)
        share = share or slice(0, size)
        first = epoch * self.samples + number * self._size + share.start
        end = first + share.stop - share.start
        of, before = self._pattern.sources(first, end), self._pattern.taken(first)
        found = np.empty(end - first, dtype=np.int64)
        for number_of, source in enumerate(self._sources):
            own = of == number_of
            found[own] = source.take(int(before[number_of]), int(own.sum()))
        return found


class MixedEpoch:
    """One epoch of a `MixedOrder`, as `EpochOrder` is one of a single data set."""

    def __init__(self, order: MixedOrder, epoch: int) -> None:
        self._order, self._epoch = order, epoch
        self.samples, self.steps = order.samples, order.steps

    def batch(self, number: int, share: slice | None = None) -> np.ndarray:
        """See `MixedOrder.batch`."""
        return self._order.batch(self._epoch, number, share)


def source_seed(seed: int, number: int) -> int:
    """The seed of a source; that of the first one is the seed of the run."""
    return seed if number == 0 else rng.key(seed, "source", number) & 0x7FFFFFFFFFFFFFFF
