"""Micro-batches of a run: slices of the epoch's order, for any number of ranks and readers, also after a restart.

Global batch g of an epoch is `order[g * G : (g + 1) * G]`; the last one may be shorter. Its sample i belongs to data
rank i mod ranks. The position of a run is one integer: the samples consumed since its start.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace

import numpy as np

from maestro_dist.config.learning import MissingConfig
from maestro_dist.data.missing import drop_probability
from maestro_dist.data.mixup import mixing_of
from maestro_dist.data.order import epoch_order, labelled_count, labelled_mask, steps_per_epoch
from maestro_dist.data.prefetch import Consumer, read_ahead
from maestro_dist.data.reader import Request, SplitSource
from maestro_dist.data.sample import BadSample
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
        self.samples = labelled_count(split.samples, config.label_share)
        self._labelled = (
            labelled_mask(schedule.seed, split.samples, config.label_share) if config.label_share < 1 else None
        )
        self.steps_per_epoch = steps_per_epoch(self.samples, schedule.global_batch)
        self._shard_samples = split.shard_samples
        self._micro = schedule.micro_batch or -(-schedule.global_batch // rank.ranks)
        self.accumulation = -(-schedule.global_batch // (rank.ranks * self._micro))
        self._mixup = 0.0 if source.augment is None else source.augment.mixup

    def batches(self, position: int, end: int) -> Generator[Batch, None, None]:
        """Micro-batches of every global batch that starts at `position` or later and before `end`.

        Raises:
            DataError: `position` is not the start of a global batch, or the data is bad (the message names it).
        """
        size = self._schedule.global_batch
        if position % self.samples % size:
            raise DataError(f"position {position} is not at the start of a global batch of {size}")
        workers, requests = self._source.config.loader_workers, self._requests(position, end)
        return read_ahead(self._source, requests, workers, self._consumer)

    def warnings(self) -> list[str]:
        """Warnings: classes without any training sample in `data.label_share`.

        Reads the labels from the shards, but only if a class is so rare that it may be lost. Bad samples do not
        count.

        Raises:
            DataError: a shard is missing or damaged.
        """
        source, share = self._source, self._source.config.label_share
        class_counts = source.manifest.split(source.split).class_counts
        if self._labelled is None or not class_counts or min(n for n in class_counts if n) * share > _NEVER_LOST:
            return []
        kept_counts = [0] * len(class_counts)
        with closing(replace(source, modalities=()).open()) as reader:
            for number in np.flatnonzero(self._labelled).tolist():
                with suppress(BadSample):
                    kept_counts[int(reader.decode(number, reader.stored(number)).target)] += 1
        lost = [
            name
            for name, n, remaining in zip(source.manifest.classes, class_counts, kept_counts, strict=True)
            if n and not remaining
        ]
        if not lost:
            return []
        return [
            f"data.label_share {share:g} leaves {self.samples:,} training samples, none of {', '.join(lost)}; "
            "take a larger share, or another run.seed"
        ]

    def _order(self, epoch: int) -> np.ndarray:
        order = epoch_order(self._schedule.seed, epoch, self._shard_samples, self._source.config.shuffle_shards)
        return order if self._labelled is None else order[self._labelled[order]]

    def _requests(self, position: int, end: int) -> Iterator[Request]:
        epoch, schedule, rank = -1, self._schedule, self._rank
        while position < end:
            if position // self.samples != epoch:
                epoch = position // self.samples
                order = self._order(epoch)
            first = position % self.samples
            global_batch = order[first : first + schedule.global_batch]
            position += len(global_batch)
            step = epoch * self.steps_per_epoch + first // schedule.global_batch
            own_samples = global_batch[rank.rank :: rank.ranks]
            drop = drop_probability(schedule.curriculum, step, schedule.total_steps)
            mixing = None
            if self._mixup:
                mixing = mixing_of(global_batch, self._mixup, seed=schedule.seed, step=step)
                mixing = mixing.part(slice(rank.rank, None, rank.ranks))
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
                        "global_samples": len(global_batch),
                        "position": position,
                        "epoch": epoch,
                        "step": step,
                    },
                )


def evaluation_batches(
    source: SplitSource,
    batch: int,
    rank: DataRank,
    keep: np.ndarray | None = None,
    consumer: Consumer | None = None,
) -> Generator[Batch, None, None]:
    """Every sample of a split exactly once over all ranks. This rank reads samples `rank::ranks`, `batch` at a time.

    `keep`, bool [N, M]: which modalities of each sample are kept (M = the source's modalities). Every rank yields
    the same number of batches; the last may be empty. `Batch.global_samples` counts all ranks' samples of a round.
    A thread reads for any `data.loader_workers`: starting processes for each mask would take longer.

    Raises:
        DataError: a sample or a shard is bad, for any `data.max_bad_samples`: the result must be for the complete
            split.
    """
    strict = replace(source, config=source.config.model_copy(update={"max_bad_samples": 0}))
    samples = source.manifest.split(source.split).samples

    def requests() -> Iterator[Request]:
        rounds = -(-samples // (batch * rank.ranks))
        for number in range(rounds):
            first, end = number * batch * rank.ranks, min(samples, (number + 1) * batch * rank.ranks)
            own_samples = np.arange(first + rank.rank, end, rank.ranks, dtype=np.int64)
            yield Request(
                numbers=own_samples,
                keep=None if keep is None else keep[own_samples],
                fields={"global_samples": end - first, "position": end},
            )

    return read_ahead(strict, requests(), 0, consumer)
