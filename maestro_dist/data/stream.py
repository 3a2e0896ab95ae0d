"""Micro-batches of a run: slices of the global order, whatever the number of ranks, readers or restarts.

Global batch g of an epoch is `order[g * G : (g + 1) * G]` (shorter at the epoch's tail); sample i of it belongs to data
rank i mod ranks. The position of a run is one integer: samples consumed since its start.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from maestro_dist.config.learning import AugmentConfig, MissingConfig
from maestro_dist.config.schema import DataConfig
from maestro_dist.data.manifest import Manifest
from maestro_dist.data.missing import drop_probability
from maestro_dist.data.mixup import mixing_of
from maestro_dist.data.order import epoch_order, labelled, labelled_count, steps_per_epoch
from maestro_dist.data.prefetch import Say, by_log, read_ahead
from maestro_dist.data.reader import Request, SplitSource, presence
from maestro_dist.data.sample import BadSample
from maestro_dist.errors import DataError
from maestro_dist.types import Batch, Modality

if TYPE_CHECKING:
    import torch

__all__ = ["TrainStream", "evaluation_batches", "presence"]

_NEVER_LOST = 40  # samples of a class to be expected in a random part: that there is none has a chance of e^-40


class TrainStream:
    """The training split for one data rank.

    samples          N of the split, or of the share of it that `data.label_share` leaves
    steps_per_epoch  optimizer steps of one epoch
    accumulation     micro-batches of a global batch: ceil(G / (ranks * micro)), the same on every rank

    `symbols`: read SAX symbols instead of raw windows, where `reads_symbols` says so. `slices`: this rank's steps of
    each modality, [first, end), where ranks share the time axis; by default all. `augment` changes the windows.
    `say` and `device` are those of `read_ahead`.
    """

    def __init__(
        self,
        url: str,
        manifest: Manifest,
        config: DataConfig,
        modalities: Sequence[Modality],
        *,
        seed: int,
        global_batch: int,
        micro_batch: int | None,
        rank: int,
        ranks: int,
        curriculum: MissingConfig,
        total_steps: int,
        symbols: bool = False,
        slices: Mapping[str, tuple[int, int]] | None = None,
        augment: AugmentConfig | None = None,
        say: Say = by_log,
        device: torch.device | None = None,
    ) -> None:
        self._say, self._device = say, device
        self._source = SplitSource(url, manifest, config, tuple(modalities), config.train, symbols, slices, augment)
        split = manifest.split(config.train)
        self.samples = labelled_count(split.samples, config.label_share)
        self._labelled = labelled(seed, split.samples, config.label_share) if config.label_share < 1.0 else None
        self.steps_per_epoch = steps_per_epoch(self.samples, global_batch)
        self._shard_samples = split.shard_samples
        self._seed, self._global_batch, self._rank, self._ranks = seed, global_batch, rank, ranks
        self._micro = micro_batch or -(-global_batch // ranks)
        self.accumulation = -(-global_batch // (ranks * self._micro))
        self._curriculum, self._total_steps = curriculum, total_steps
        self._mixup = 0.0 if augment is None else augment.mixup

    def batches(self, position: int, end: int) -> Generator[Batch, None, None]:
        """Micro-batches of every global batch that starts at `position` or later and before `end`.

        Raises:
            DataError: `position` is not where a global batch starts, or the data is wrong (named).
        """
        if position % self.samples % self._global_batch:
            raise DataError(f"position {position} is not at the start of a global batch of {self._global_batch}")
        workers, requests = self._source.config.loader_workers, self._requests(position, end)
        return read_ahead(self._source, requests, workers, say=self._say, device=self._device)

    def warnings(self) -> list[str]:
        """What a person should know: classes of which `data.label_share` leaves no training sample.

        Labels are read one by one from the shards, but only where a class is rare enough to be lost by chance.
        Raises `DataError` for a shard that is missing or damaged; bad samples are not counted here.
        """
        source, share = self._source, self._source.config.label_share
        before = source.manifest.split(source.split).class_counts
        if self._labelled is None or not before or min(n for n in before if n) * share > _NEVER_LOST:
            return []
        found = [0] * len(before)
        with closing(replace(source, modalities=()).open()) as reader:
            for number in np.flatnonzero(self._labelled).tolist():
                with suppress(BadSample):
                    found[int(reader.decode(number, reader.stored(number)).target)] += 1
        lost = [name for name, n, left in zip(source.manifest.classes, before, found, strict=True) if n and not left]
        if not lost:
            return []
        return [
            f"warning: data.label_share {share:g} leaves {self.samples:,} training samples, none of {', '.join(lost)}; "
            "take a larger share, or another run.seed"
        ]

    def _order(self, epoch: int) -> np.ndarray:
        order = epoch_order(self._seed, epoch, self._shard_samples, self._source.config.shuffle_shards)
        return order if self._labelled is None else order[self._labelled[order]]

    def _requests(self, position: int, end: int) -> Iterator[Request]:
        epoch = -1
        while position < end:
            if position // self.samples != epoch:
                epoch = position // self.samples
                order = self._order(epoch)
            first = position % self.samples
            whole = order[first : first + self._global_batch]
            position += len(whole)
            step = epoch * self.steps_per_epoch + first // self._global_batch
            mine = whole[self._rank :: self._ranks]
            drop = drop_probability(self._curriculum, step, self._total_steps)
            mixing = None
            if self._mixup:
                mixing = mixing_of(whole, self._mixup, seed=self._seed, step=step)
                mixing = mixing.part(slice(self._rank, None, self._ranks))
            for micro in range(self.accumulation):
                taken = slice(micro * self._micro, (micro + 1) * self._micro)
                yield Request(
                    numbers=mine[taken],
                    drop=drop,
                    seed=self._seed,
                    both=self._curriculum.consistency > 0.0 and drop > 0.0,
                    mixing=None if mixing is None else mixing.part(taken),
                    fields={
                        "last": micro == self.accumulation - 1,
                        "global_samples": len(whole),
                        "position": position,
                        "epoch": epoch,
                        "step": step,
                    },
                )


def evaluation_batches(
    url: str,
    manifest: Manifest,
    config: DataConfig,
    modalities: Sequence[Modality],
    split: str,
    *,
    batch: int,
    rank: int,
    ranks: int,
    keep: np.ndarray | None = None,
    symbols: bool = False,
    slices: Mapping[str, tuple[int, int]] | None = None,
    say: Say = by_log,
    device: torch.device | None = None,
) -> Generator[Batch, None, None]:
    """Every sample of a split exactly once over all ranks: this rank's are `rank::ranks`, `batch` at a time.

    `keep`, bool [N, M], says which modalities of each sample are left (M = `modalities`, sorted by name); `symbols`
    whether SAX symbols are read instead of raw windows (`reads_symbols` says when they may be); `slices` which steps
    of each modality, `say` and `device` are as in `TrainStream`. Every rank
    yields the same number of batches; the last may be empty. `global_samples` counts all ranks' samples of a round.
    A thread reads, whatever `data.loader_workers`: starting processes anew for each mask would take longer.
    """
    strict = config.model_copy(update={"max_bad_samples": 0})  # a score over what is left would look like the split's
    source = SplitSource(url, manifest, strict, tuple(modalities), split, symbols, slices)
    samples = manifest.split(split).samples

    def requests() -> Iterator[Request]:
        rounds = -(-samples // (batch * ranks))
        for number in range(rounds):
            first, end = number * batch * ranks, min(samples, (number + 1) * batch * ranks)
            mine = np.arange(first + rank, end, ranks, dtype=np.int64)
            yield Request(
                numbers=mine,
                keep=None if keep is None else keep[mine],
                fields={"global_samples": end - first, "position": end},
            )

    return read_ahead(source, requests(), workers=0, say=say, device=device)
