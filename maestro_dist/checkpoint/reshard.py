"""Slices of flattened parameters: do they tile, and who holds what a rank needs. Range arithmetic only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from maestro_dist.errors import CheckpointError

Range = tuple[int, int]
"""(start, count) in a flattened parameter."""


@dataclass(frozen=True)
class Copy:
    """`count` elements from `source` in a written slice go to `target` in a wanted one, of the same parameter."""

    name: str
    source: int
    target: int
    count: int


def check_tiling(shapes: Mapping[str, Sequence[int]], parts: Sequence[Mapping[str, Range]]) -> None:
    """Check that the slices of all parts cover every element of every parameter exactly once.

    Raises `CheckpointError` naming the first parameter that has a gap, an overlap or unknown elements.
    """
    written: dict[str, list[Range]] = {name: [] for name in shapes}
    for part in parts:
        for name, (start, count) in part.items():
            if name not in written:
                raise CheckpointError(f"slices of a parameter {name} that the model does not have")
            written[name].append((start, count))
    for name, ranges in written.items():
        end = 0
        for start, count in sorted(ranges):
            if start != end:
                what = "are missing" if start > end else "are there twice"
                raise CheckpointError(f"elements {min(start, end)}..{max(start, end) - 1} of parameter {name} {what}")
            end = start + count
        size = math.prod(shapes[name])
        if end < size:
            raise CheckpointError(f"elements {end}..{size - 1} of parameter {name} are missing")
        if end > size:
            raise CheckpointError(f"parameter {name} has {size} elements, but {end} were written")


def plan_copies(wanted: Mapping[str, Range], parts: Sequence[Mapping[str, Range]]) -> dict[int, list[Copy]]:
    """What to copy from which part (by its index) so that every wanted range is filled. Parts not needed are left out.

    With slices that tile, every wanted element is copied exactly once.
    """
    copies: dict[int, list[Copy]] = {}
    for index, part in enumerate(parts):
        for name, (start, count) in part.items():
            if name not in wanted:
                continue
            first, length = wanted[name]
            begin, end = max(start, first), min(start + count, first + length)
            if begin < end:
                copies.setdefault(index, []).append(Copy(name, begin - start, begin - first, end - begin))
    return copies
