"""Micro-batches of a run: shares of global batches, for any number of ranks and readers, also after a restart.

Each data rank takes consecutive samples of a global batch (`rank_share`). The position of a run is one integer: the
samples consumed since its start.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace

import numpy as np

from maestro_dist.config.learning import MissingConfig
from maestro_dist.data.class_balance import ClassBalance, class_balance_of, shares_text
from maestro_dist.data.label_share import KeptSamples
from maestro_dist.data.lengths import sample_lengths
from maestro_dist.data.missing import drop_probability
from maestro_dist.data.mixture.order import MixedEpoch
from maestro_dist.data.mixture.read_ahead import Downloads, read_ahead_of
from maestro_dist.data.mixture.source import MixedSource
from maestro_dist.data.mixup import Mixing, mixing_of
from maestro_dist.data.order import EpochOrder, OrderSettings, rank_share, steps_per_epoch
from maestro_dist.data.prefetch import Consumer, read_ahead
from maestro_dist.data.reader import Request, SplitSource
from maestro_dist.data.sample import BadSample
from maestro_dist.data.shard_read_ahead import NeededShard
from maestro_dist.errors import DataError
from maestro_dist.types import Batch

_NEVER_LOST = 40  # expected samples of a class in the share: the probability that none is left is e^-40


@dataclass(frozen=True)
class DataRank:
    """The share of the samples that one reader takes: number `rank` of `ranks` equal shares."""

    rank: int = 0
    ranks: int = 1


@dataclass(frozen=True)
class TrainSchedule:
    """How a run reads the training split.

    global_batch  samples of one optimizer step, over all ranks
    micro_batch   samples that a rank takes at a time; None: its complete share of the global batch
    curriculum    probability that a modality is dropped, by the completed share of `total_steps`
    """

    seed: int
    global_batch: int
    total_steps: int
    micro_batch: int | None = None
    curriculum: MissingConfig = field(default_factory=MissingConfig)


class TrainStream:
    """The training split for one data rank.

    samples          N of the split, or of the share that `data.label_share` keeps
    steps_per_epoch  optimizer steps of one epoch
    accumulation     micro-batches of a global batch: ceil(G / (ranks * micro_batch)), the same on every rank
    """

    def __init__(
        self, source: SplitSource, schedule: TrainSchedule, rank: DataRank, consumer: Consumer | None = None
    ) -> None:
        config, split = source.config, source.manifest.split(source.split)
        self._source, self._schedule, self._rank, self._consumer = source, schedule, rank, consumer
        self._shard_samples = split.shard_samples
        self._kept: KeptSamples | ClassBalance
        if config.class_balance:
            self._kept = class_balance_of(source, schedule.seed)
        else:
            self._kept = KeptSamples(schedule.seed, self._shard_samples, config.label_share)
        self.samples = self._kept.samples
        self.steps_per_epoch = steps_per_epoch(self.samples, schedule.global_batch)
        self._micro = schedule.micro_batch or -(-schedule.global_batch // rank.ranks)
        self.accumulation = -(-schedule.global_batch // (rank.ranks * self._micro))
        self._mixup = 0.0 if source.augment is None else source.augment.mixup
        self._order_settings = order_settings(source, schedule.seed, schedule.global_batch)

    def batches(self, position: int, end: int) -> Generator[Batch, None, None]:
        """Micro-batches of every global batch that starts at `position` or later and before `end`.

        Raises:
            DataError: `position` is not the start of a global batch, or the data is bad (the message names it).
        """
        size = self._schedule.global_batch
        if position % self.samples % size:
            raise DataError(f"position {position} is not at the start of a global batch of {size}")
        workers = self._source.config.loader_workers
        shards = read_ahead_of(self._source, lambda: self._needed_shards(position, end), processes=workers > 0)
        requests = self._requests(position, end, shards)
        return _closing(read_ahead(self._source, requests, workers, self._consumer), shards)

    def warnings(self) -> list[str]:
        """Warnings: classes without any training sample in `data.label_share`.

        Reads the labels from the indexes (of an older version: from the shards), but only if a class is so rare that it
        may be lost.

        Raises:
            DataError: a shard is missing or damaged.
        """
        source, share = self._source, self._source.config.label_share
        class_counts = source.manifest.split(source.split).class_counts
        if (
            source.manifest.mixture is not None
            or not isinstance(self._kept, KeptSamples)
            or share == 1
            or not class_counts
            or min((n for n in class_counts if n), default=0) * share > _NEVER_LOST * source.manifest.label_steps
        ):
            return []
        kept_counts = np.zeros(len(class_counts), dtype=np.int64)
        with closing(replace(source, modalities=()).open()) as reader:
            for shard, (index, first) in enumerate(zip(source.indexes(), reader.starts.tolist(), strict=False)):
                numbers = self._kept.numbers(shard)
                if index.targets is not None:
                    targets = index.targets[numbers - first]
                    kept_counts += source.manifest.counter.counts(targets)
                    continue
                for number in numbers.tolist():
                    with suppress(BadSample):
                        target = reader.decode(number, reader.stored(number)).target
                        kept_counts += source.manifest.counter.counts(np.array([target]))
        lost = [
            name
            for name, n, remaining in zip(source.manifest.classes, class_counts, kept_counts.tolist(), strict=True)
            if n and not remaining
        ]
        if not lost:
            return []
        return [
            f"data.label_share {share:g} leaves {self.samples:,} training samples, none of {', '.join(lost)}; "
            "take a larger share, or another run.seed"
        ]

    def notes(self) -> list[str]:
        """Lines for the log: how often labels come with `data.class_balance`, where only their samples tell."""
        split, manifest = self._source.manifest.split(self._source.split), self._source.manifest
        if not isinstance(self._kept, ClassBalance) or not manifest.counter.several:
            return []
        before = [count / split.samples for count in split.class_counts]
        shares = shares_text(manifest.classes, before, self._kept.shares.tolist())
        return [f"data.class_balance {self._source.config.class_balance:g}: training sees {shares}"]

    def order(self, epoch: int) -> EpochOrder | MixedEpoch:
        """The global batches of an epoch."""
        return epoch_order(self._source, self._order_settings, epoch, self._kept)

    def _needed_shards(self, position: int, end: int) -> Iterator[NeededShard]:
        """The shards that this rank reads from `position` up to `end`, each once an epoch; or the samples of shards."""
        if self._source.downloads_parts or self._source.manifest.mixture is not None:
            yield from self._needed_samples(position, end)
            return
        while position < end:
            epoch, first = divmod(position, self.samples)
            seen: set[int] = set()
            number = first // self._schedule.global_batch
            order = self.order(epoch)
            assert isinstance(order, EpochOrder)
            for batch, pieces in order.groups(number, self._rank.rank, self._rank.ranks):
                if epoch * self.samples + batch * self._schedule.global_batch >= end:
                    return
                for piece in pieces:
                    if piece.shard not in seen:
                        seen.add(piece.shard)
                        yield NeededShard(epoch * self.steps_per_epoch + batch, piece.shard)
            position = (epoch + 1) * self.samples

    def _needed_samples(self, position: int, end: int) -> Iterator[NeededShard]:
        """The samples that this rank reads from `position` up to `end`, as shard and number in the shard."""
        size, starts = self._schedule.global_batch, np.cumsum([0, *self._shard_samples])
        while position < end:
            epoch, first = divmod(position, self.samples)
            order = self.order(epoch)
            for batch in range(first // size, order.steps):
                if epoch * self.samples + batch * size >= end:
                    return
                share = rank_share(min(size, self.samples - batch * size), self._rank.rank, self._rank.ranks)
                step = epoch * self.steps_per_epoch + batch
                yield from needed_samples(step, order.batch(batch, share), starts)
            position = (epoch + 1) * self.samples

    def _requests(self, position: int, end: int, shards: Downloads) -> Iterator[Request]:
        epoch, schedule, rank = -1, self._schedule, self._rank
        while position < end:
            if position // self.samples != epoch:
                epoch = position // self.samples
                order = self.order(epoch)
            number = position % self.samples // schedule.global_batch
            size = min(schedule.global_batch, self.samples - position % self.samples)
            position += size
            step = epoch * self.steps_per_epoch + number
            shards.reached(step)
            share = rank_share(size, rank.rank, rank.ranks)
            own_samples = order.batch(number, share)
            drop = drop_probability(schedule.curriculum, step, schedule.total_steps)
            mixing = self._mixing(order, number, share, step) if self._mixup else None
            for micro in range(self.accumulation):
                part = slice(micro * self._micro, (micro + 1) * self._micro)
                yield Request(
                    numbers=own_samples[part],
                    drop=drop,
                    seed=schedule.seed,
                    both=schedule.curriculum.consistency > 0.0 and drop > 0.0,
                    mixing=None if mixing is None else mixing.part(part),
                    fields={
                        "last": micro == self.accumulation - 1,
                        "global_samples": size,
                        "position": position,
                        "epoch": epoch,
                        "step": step,
                    },
                )

    def _mixing(self, order: EpochOrder | MixedEpoch, number: int, share: slice, step: int) -> Mixing:
        assert isinstance(order, EpochOrder)
        around, lanes = order.whole_lanes(number, share)
        numbers = order.batch(number, around)
        mixing = mixing_of(numbers, lanes, self._mixup, seed=self._schedule.seed, step=step)
        return mixing.part(slice(share.start - around.start, share.stop - around.start))


def _closing(batches: Generator[Batch, None, None], shards: Downloads) -> Generator[Batch, None, None]:
    """The batches; afterwards, also after an error, nothing is read ahead any more."""
    try:
        yield from batches
    finally:
        batches.close()
        shards.close()


def needed_samples(step: int, numbers: np.ndarray, starts: np.ndarray) -> Iterator[NeededShard]:
    """Samples `numbers` of the split, for global batch `step`. `starts`: number of the first sample of each shard."""
    shards = np.searchsorted(starts, numbers, side="right") - 1
    for shard, row in zip(shards.tolist(), (numbers - starts[shards]).tolist(), strict=True):
        yield NeededShard(step, shard, row)


def epoch_order(
    source: SplitSource, settings: OrderSettings, epoch: int, kept: KeptSamples | ClassBalance
) -> EpochOrder | MixedEpoch:
    """The global batches of an epoch of a split, of one data set or of several."""
    if isinstance(source, MixedSource):
        return MixedEpoch(source.mixed_order(settings), epoch)
    lengths = sample_lengths(source) if settings.stretch > 1 else None
    return EpochOrder(settings, epoch, source.manifest.split(source.split).shard_samples, kept.epoch(epoch), lengths)


def order_settings(source: SplitSource, seed: int, global_batch: int) -> OrderSettings:
    """What decides the order in which a run reads `source`."""
    config, augment = source.config, source.augment
    mixes = augment is not None and augment.mixup > 0.0
    return OrderSettings(seed, global_batch, config.shuffle_shards, config.lanes, mixes, config.like_lengths)


def evaluation_batches(
    source: SplitSource,
    batch: int,
    rank: DataRank,
    keep: np.ndarray | None = None,
    consumer: Consumer | None = None,
) -> Generator[Batch, None, None]:
    """Every sample of a split exactly once over all ranks. A rank reads consecutive samples, `batch` at a time.

    `keep`, bool [N, M]: which modalities of each sample are kept (M = the source's modalities). Every rank yields
    the same number of batches; the last may be empty. `Batch.global_samples` counts all ranks' samples of a round.
    A thread reads for any `data.loader_workers`: starting processes for each mask would take longer.

    Raises:
        DataError: a sample or a shard is bad, for any `data.max_bad_samples`: the result must be for the complete
            split.
    """
    strict = replace(source, config=source.config.model_copy(update={"max_bad_samples": 0}))
    samples = source.manifest.split(source.split).samples

    own = rank_share(samples, rank.rank, rank.ranks)
    ends = np.cumsum(source.manifest.split(source.split).shard_samples)

    def needed() -> Iterator[NeededShard]:
        if strict.downloads_parts:
            for first in range(own.start, own.stop, batch):
                numbers = np.arange(first, min(first + batch, own.stop))
                yield from needed_samples((first - own.start) // batch, numbers, np.concatenate([[0], ends]))
            return
        for shard in range(int(np.searchsorted(ends, own.start, side="right")), len(ends)):
            start = int(ends[shard - 1]) if shard else 0
            if start >= own.stop:
                return
            yield NeededShard(max(0, start - own.start) // batch, shard)

    def requests() -> Iterator[Request]:
        shares = [rank_share(samples, other, rank.ranks) for other in range(rank.ranks)]
        position = 0
        for first in range(0, -(-samples // rank.ranks), batch):
            together = sum(min(batch, max(0, share.stop - share.start - first)) for share in shares)
            shards.reached(first // batch)
            own_samples = np.arange(own.start + first, min(own.start + first + batch, own.stop), dtype=np.int64)
            position += together
            yield Request(
                numbers=own_samples,
                keep=None if keep is None else keep[own_samples],
                fields={"global_samples": together, "position": position},
            )

    shards = read_ahead_of(strict, needed)
    return _closing(read_ahead(strict, requests(), 0, consumer), shards)
