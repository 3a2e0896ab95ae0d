"""The order of an epoch: a function of (seed, epoch, shard sizes, global batch), not of the number of ranks or readers.

The shards of the split are permuted, and the sequence of their samples is cut into *lanes* of equal length. Each global
batch takes its samples from all lanes, always the same number from each lane. So a rank that takes a part of each
global batch reads a part of the lanes, and with them a part of the shards, while the global batches stay the same for
any number of ranks. (Canonical nodes of MosaicML Streaming are the same idea.)

Nothing here grows with the number of samples: a lane is permuted group by group, when its samples are needed.

Where samples differ in length, each lane can sort what it gives to some successive global batches (a *stretch*) by
length, so that the samples of a batch have like lengths. The batches of a stretch then come in random order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from maestro_dist import rng

_MIXED = 8  # samples that a lane gives to a global batch where mixup finds partners among them


Lengths = Callable[[np.ndarray], np.ndarray]
"""The lengths, in any unit, of samples int64 [n] of the split."""


class Piece(NamedTuple):
    """Samples [first, end) of a shard, counted among the samples of the shard that the epoch has."""

    shard: int
    first: int
    end: int


class EpochSamples(Protocol):
    """The samples of an epoch, in manifest order. A sample may occur several times.

    counts  int64 [S]: number of them in each shard
    """

    counts: np.ndarray

    def part(self, shard: int, first: int, end: int) -> np.ndarray:
        """The numbers of samples [first, end) of those of a shard, ascending, int64."""
        ...


@dataclass(frozen=True)
class OrderSettings:
    """What decides the order, besides the sizes of the shards.

    global_batch    samples G of an optimizer step
    shuffle_shards  shards whose samples are shuffled together
    lanes           most lanes; `lane_count` says how many are used
    mixes           whether mixup needs several samples of the same lane in a global batch
    stretch         global batches whose samples are sorted by length; 1: not sorted
    """

    seed: int
    global_batch: int
    shuffle_shards: int
    lanes: int = 64
    mixes: bool = False
    stretch: int = 1


def lane_count(settings: OrderSettings, shards: int) -> int:
    """Number of lanes: a divisor of `settings.lanes`.

    One lane where all shards are shuffled together. Else as many as give a sample to each global batch and have two
    shards or more.
    """
    if shards <= settings.shuffle_shards:
        return 1
    limit = min(settings.global_batch // (_MIXED if settings.mixes else 1), shards // 2)
    return max(n for n in range(1, settings.lanes + 1) if settings.lanes % n == 0 and n <= max(1, limit))


def rank_share(size: int, rank: int, ranks: int) -> slice:
    """The samples of a global batch (or of a split) of `size` that a rank takes: consecutive ones."""
    return slice(_cut(size, rank, ranks), _cut(size, rank + 1, ranks))


def _cut(size: int, part: int, parts: int) -> int:
    """Where part `part` of `parts` equal parts of `size` starts. The first part is never empty, if size is above 0."""
    return -(-part * size // parts)


class EpochOrder:
    """The global batches of one epoch.

    samples  number N of samples: those of the split, or those that `data.label_share` keeps; with
             `data.class_balance` some occur several times, and others do not
    lanes    number L of lanes
    steps    number of global batches; the last may be smaller
    """

    def __init__(
        self,
        settings: OrderSettings,
        epoch: int,
        shard_samples: Sequence[int],
        kept: EpochSamples,
        lengths: Lengths | None = None,
    ) -> None:
        """`lengths`: needed if `settings.stretch` is above 1."""
        self._settings, self._kept = settings, kept
        self._stretch = 1 if lengths is None else settings.stretch
        self._lengths, self._stretch_key = lengths, rng.key(settings.seed, "order", "stretch", epoch)
        self._sorted: dict[int, tuple[int, np.ndarray]] = {}  # the stretch of each lane that was used last
        self._sample_key = rng.key(settings.seed, "order", "sample", epoch)
        shards = np.arange(len(shard_samples), dtype=np.int64)
        self._shards = _permuted(rng.key(settings.seed, "order", "shard", epoch), shards)
        self._starts = np.concatenate(([0], np.cumsum(kept.counts[self._shards])))  # of the permuted shards
        self.samples = int(self._starts[-1])
        self.lanes = lane_count(settings, len(shard_samples))
        self.steps = steps_per_epoch(self.samples, settings.global_batch)
        self._window = max(1, settings.shuffle_shards // self.lanes)
        self._groups: dict[int, tuple[int, np.ndarray]] = {}  # the group of each lane that was used last

    def batch(self, number: int, share: slice | None = None) -> np.ndarray:
        """Sample numbers (in manifest order) of global batch `number`, int64 [<= G]; or of a `share` of it."""
        size = self._size(number)
        share = share or slice(0, size)
        parts = [np.empty(0, dtype=np.int64)]
        for lane, first, end in self._slots(size, share):
            start = self._lane_index(number, lane)
            taken = self._taken if self._stretch == 1 else self._taken_by_length
            parts += taken(lane, start + first, start + end)
        return np.concatenate(parts)

    def whole_lanes(self, number: int, share: slice) -> tuple[slice, np.ndarray]:
        """The smallest share of complete lanes around `share`, and for each of its samples the number of its lane."""
        size = self._size(number)
        bounds = {lane: self._bounds(lane, size) for lane, _, _ in self._slots(size, share)}
        if not bounds:
            return share, np.empty(0, dtype=np.int64)
        ends = list(bounds.values())
        return slice(ends[0][0], ends[-1][1]), np.repeat(list(bounds), [end - first for first, end in ends])

    def groups(self, number: int, rank: int, ranks: int) -> list[tuple[int, list[Piece]]]:
        """What a rank reads from global batch `number` on: (first batch that needs it, pieces), in that order.

        The pieces of a group are shuffled together. A rank that takes a part of a lane reads all groups of the lane.
        """
        first_use: dict[int, int] = {}  # the last global batch may have other slots
        for batch in dict.fromkeys((number, self.steps - 1)):
            size = self._size(batch)
            for lane, _, _ in self._slots(size, rank_share(size, rank, ranks)):
                first_use.setdefault(lane, batch)
        found: list[tuple[int, int, list[Piece]]] = []
        for lane, batch in first_use.items():
            each = self._lane_index(1, lane)
            for start, pieces in self._lane_groups(lane):
                last = start + sum(piece.end - piece.first for piece in pieces) - 1
                if last >= self._lane_index(self._stretch_start(batch), lane):
                    first = self._stretch_start(min(start // each, self.steps - 1))
                    found.append((max(batch, first), lane, pieces))
        return [(batch, pieces) for batch, _, pieces in sorted(found, key=lambda group: group[:2])]

    def _size(self, number: int) -> int:
        return min(self._settings.global_batch, self.samples - number * self._settings.global_batch)

    def _bounds(self, lane: int, size: int) -> tuple[int, int]:
        """The slots [first, end) of a global batch of `size` that a lane fills."""
        return _cut(size, lane, self.lanes), _cut(size, lane + 1, self.lanes)

    def _slots(self, size: int, share: slice) -> Iterator[tuple[int, int, int]]:
        """(lane, first, end): a share of a global batch takes samples [first, end) of those that the lane gives."""
        for lane in range(self.lanes):
            first, end = self._bounds(lane, size)
            low, high = max(first, share.start), min(end, share.stop)
            if low < high:
                yield lane, low - first, high - first

    def _lane_index(self, number: int, lane: int) -> int:
        """Samples of a lane before global batch `number`."""
        first, end = self._bounds(lane, self._settings.global_batch)
        return number * (end - first)

    def _lane_range(self, lane: int) -> tuple[int, int]:
        """The part [first, end) of the sequence of all samples that is a lane."""
        full, rest = divmod(self.samples, self._settings.global_batch)
        first, end = (
            full * whole + last
            for whole, last in zip(
                self._bounds(lane, self._settings.global_batch), self._bounds(lane, rest), strict=True
            )
        )
        return first, end

    def _shard_range(self, begin: int, end: int) -> tuple[int, int]:
        """The places [low, high) of the permuted shards with the samples [begin, end) of the sequence."""
        low = int(np.searchsorted(self._starts, begin, side="right")) - 1 if begin else 0
        return low, int(np.searchsorted(self._starts, end, side="left"))

    def _lane_groups(self, lane: int) -> Iterator[tuple[int, list[Piece]]]:
        """(first sample of the group, counted in the lane; the group's pieces) of a lane."""
        begin, end = self._lane_range(lane)
        if begin == end:
            return
        low, high = self._shard_range(begin, end)
        for first in range(low, high, self._window):
            pieces = [self._piece(at, begin, end) for at in range(first, min(first + self._window, high))]
            yield max(int(self._starts[first]), begin) - begin, [piece for piece in pieces if piece.end > piece.first]

    def _piece(self, at: int, begin: int, end: int) -> Piece:
        """The part of the shard at place `at` of the permuted shards that lies in [begin, end)."""
        start, stop = int(self._starts[at]), int(self._starts[at + 1])
        return Piece(int(self._shards[at]), max(begin, start) - start, min(end, stop) - start)

    def _taken(self, lane: int, first: int, end: int) -> Iterator[np.ndarray]:
        """Samples [first, end) of a lane, in parts."""
        while first < end:
            start, members = self._group(lane, first)
            part = members[first - start : end - start]
            yield part
            first += len(part)

    def _stretch_start(self, number: int) -> int:
        """The first global batch of a stretch."""
        return number - number % self._stretch

    def _taken_by_length(self, lane: int, first: int, end: int) -> Iterator[np.ndarray]:
        """As `_taken`, of the sequence in which each stretch is sorted by length."""
        size = self._lane_index(self._stretch, lane)
        while first < end:
            start = first - first % size
            known = self._sorted.get(lane)
            if known is None or known[0] != start:
                self._sorted[lane] = known = start, self._by_length(lane, start)
            part = known[1][first - start : end - start]
            yield part
            first += len(part)

    def _by_length(self, lane: int, start: int) -> np.ndarray:
        """The stretch of a lane that begins with its sample `start`. A smaller last global batch keeps its samples."""
        assert self._lengths is not None
        begin, end = self._lane_range(lane)
        each = self._lane_index(1, lane)
        last = min(start + each * self._stretch, end - begin)
        numbers = np.concatenate(list(self._taken(lane, start, last)))
        batches = min(self._stretch, self.samples // self._settings.global_batch - start // each)
        full, rest = numbers[: batches * each], numbers[batches * each :]
        by_length = full[np.argsort(self._lengths(full), kind="stable")].reshape(batches, each)
        number = np.arange(start // each, start // each + batches)
        return np.concatenate([by_length[_order(self._stretch_key, number)].ravel(), rest])

    def _group(self, lane: int, index: int) -> tuple[int, np.ndarray]:
        """The group with sample `index` of a lane: its first sample in the lane, and its permuted sample numbers."""
        found = self._groups.get(lane)
        if found is not None and 0 <= index - found[0] < len(found[1]):
            return found
        begin, end = self._lane_range(lane)
        low, high = self._shard_range(begin, end)
        at = int(np.searchsorted(self._starts, begin + index, side="right")) - 1
        first = low + (at - low) // self._window * self._window
        pieces = [self._piece(place, begin, end) for place in range(first, min(first + self._window, high))]
        numbers = np.concatenate([self._kept.part(*piece) for piece in pieces])
        found = max(int(self._starts[first]), begin) - begin, numbers[_spread(self._sample_key, numbers)]
        self._groups[lane] = found
        return found


def _permuted(key: int, numbers: np.ndarray) -> np.ndarray:
    return numbers[_order(key, numbers)]


def _order(key: int, numbers: np.ndarray) -> np.ndarray:
    """A random order of `numbers`, as places in it."""
    return np.argsort(rng.bits_np(key, numbers), kind="stable")


def _spread(key: int, numbers: np.ndarray) -> np.ndarray:
    """As `_order`. What occurs again, which is adjacent in `numbers`, goes elsewhere."""
    place = np.arange(len(numbers))
    new = np.concatenate(([True], numbers[1:] != numbers[:-1]))[: len(numbers)]
    if new.all():
        return _order(key, numbers)
    again = place - np.maximum.accumulate(np.where(new, place, 0))
    bits = np.where(new, rng.bits_np(key, numbers), rng.bits_np(key, numbers, again))
    return np.argsort(bits, kind="stable")


def steps_per_epoch(samples: int, global_batch: int) -> int:
    """Optimizer steps of one epoch; the last global batch may be smaller."""
    return -(-samples // global_batch)
