"""Downloads ahead of need, for one data set or for several."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from maestro_dist.data.mixture.source import MixedSource
from maestro_dist.data.reader import SplitSource
from maestro_dist.data.shard_read_ahead import NeededShard, ShardReadAhead


class MixedReadAhead:
    """The downloads of several data sets; see `ShardReadAhead`."""

    def __init__(self, source: MixedSource, needed: Callable[[], Iterator[NeededShard]], *, processes: bool) -> None:
        """`needed` makes the sequence of what is needed; each data set goes through one of its own."""
        self._downloads = list[ShardReadAhead]()
        first = 0
        for own in source.sources:
            split = own.manifest.splits.get(own.split)
            if split is None or not split.shards:  # an archive may have training samples only
                continue
            end = first + len(split.shards)
            self._downloads.append(ShardReadAhead(own, _of_source(needed(), first, end), processes=processes))
            first = end

    def reached(self, step: int) -> None:
        """See `ShardReadAhead.reached`."""
        for downloads in self._downloads:
            downloads.reached(step)

    def close(self) -> None:
        """See `ShardReadAhead.close`."""
        for downloads in self._downloads:
            downloads.close()


Downloads = ShardReadAhead | MixedReadAhead
"""Of one data set or of several."""


def _of_source(needed: Iterator[NeededShard], first: int, end: int) -> Iterator[NeededShard]:
    """The shards [first, end), numbered from 0, each when it is first needed; again after all of them were."""
    seen: set[int] = set()
    for shard in needed:
        if first <= shard.shard < end and shard.shard not in seen:
            if len(seen) == end - first - 1:
                seen.clear()
            seen.add(shard.shard)
            yield NeededShard(shard.step, shard.shard - first)


def read_ahead_of(
    source: SplitSource, needed: Callable[[], Iterator[NeededShard]], *, processes: bool = False
) -> Downloads:
    """The downloads of a split, of one data set or of several."""
    if isinstance(source, MixedSource):
        return MixedReadAhead(source, needed, processes=processes)
    return ShardReadAhead(source, needed(), processes=processes)
