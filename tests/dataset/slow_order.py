"""The order of an epoch as it is specified, without shortcuts: all samples at once, sample by sample."""

from __future__ import annotations

from math import ceil

import numpy as np

from maestro_dist import rng
from maestro_dist.data.order import OrderSettings, lane_count


def slow_order(
    settings: OrderSettings,
    epoch: int,
    sizes: list[int],
    chosen: np.ndarray | None = None,
    members: list[np.ndarray] | None = None,
) -> list[list[tuple[int, int]]]:
    """The global batches of an epoch: for each sample its number and that of its lane. `chosen`: the kept samples.

    members  the samples of each shard, if some come several times
    """
    lanes, size = lane_count(settings, len(sizes)), settings.global_batch
    numbers = np.arange(sum(sizes))
    members = members or np.split(numbers, np.cumsum(sizes)[:-1])
    if chosen is not None:
        members = [part[np.isin(part, chosen)] for part in members]
    hashes = rng.bits_np(rng.key(settings.seed, "order", "shard", epoch), np.arange(len(sizes)))
    shards = np.argsort(hashes, kind="stable").tolist()
    sequence = [(place, int(n)) for place, shard in enumerate(shards) for n in members[shard]]
    # the slots of each global batch are cut into lanes as evenly as possible; a lane is as long as its slots
    batches = [min(size, len(sequence) - first) for first in range(0, len(sequence), size)]
    quotas = [[ceil((lane + 1) * n / lanes) - ceil(lane * n / lanes) for lane in range(lanes)] for n in batches]
    slots = [[lane for lane in range(lanes) for _ in range(quota[lane])] for quota in quotas]
    lengths = [sum(each.count(lane) for each in slots) for lane in range(lanes)]
    ends = np.cumsum([0, *lengths]).tolist()
    window = max(1, settings.shuffle_shards // lanes)
    key = rng.key(settings.seed, "order", "sample", epoch)
    walks = []
    for lane in range(lanes):
        part = sequence[ends[lane] : ends[lane + 1]]
        first = 0 if lane == 0 else part[0][0] if part else 0
        grouped: dict[int, list[int]] = {}
        for place, number in part:
            grouped.setdefault((place - first) // window, []).append(number)
        walk = []
        for group in grouped.values():
            again = [group[:at].count(n) for at, n in enumerate(group)]
            hashes = [rng.bits_np(key, n, k) if k else rng.bits_np(key, n) for n, k in zip(group, again, strict=True)]
            walk += [group[at] for at in np.argsort(np.array(hashes, dtype=np.uint64), kind="stable").tolist()]
        walks.append(iter(walk))
    return [[(next(walks[lane]), lane) for lane in each] for each in slots]


def slow_numbers(settings: OrderSettings, epoch: int, sizes: list[int], chosen: np.ndarray | None = None) -> list[int]:
    """The sample numbers of an epoch in their order."""
    return [number for batch in slow_order(settings, epoch, sizes, chosen) for number, _ in batch]
