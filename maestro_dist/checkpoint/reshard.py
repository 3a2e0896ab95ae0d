"""Resharding as range arithmetic: check that slices cover a parameter, and find the slices that a rank needs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from maestro_dist.errors import CheckpointError

Range = tuple[int, int]
"""(start, count) in a flattened parameter."""


@dataclass(frozen=True)
class Copy:
    """Copy `count` elements from offset `source` of a written slice to offset `target` of a wanted slice."""

    name: str
    source: int
    target: int
    count: int


def check_tiling(shapes: Mapping[str, Sequence[int]], parts: Sequence[Mapping[str, Range]]) -> None:
    """Check that the slices of all parts cover every element of every parameter exactly once.

    Raises `CheckpointError`, which names the first parameter with a gap, an overlap or unknown elements.
    """
    written: dict[str, list[Range]] = {name: [] for name in shapes}
    for part in parts:
        for name, (start, count) in part.items():
            if name not in written:
                raise CheckpointError(f"slices of parameter {name}, which the model does not have")
            written[name].append((start, count))
    for name, ranges in written.items():
        end = 0
        for start, count in sorted(ranges):
            if start != end:
                what = "are missing" if start > end else "were written twice"
                raise CheckpointError(f"elements {min(start, end)}..{max(start, end) - 1} of parameter {name} {what}")
            end = start + count
        size = math.prod(shapes[name])
        if end < size:
            raise CheckpointError(f"elements {end}..{size - 1} of parameter {name} are missing")
        if end > size:
            raise CheckpointError(f"parameter {name} has {size} elements, but {end} were written")


def plan_copies(wanted: Mapping[str, Range], parts: Sequence[Mapping[str, Range]]) -> dict[int, list[Copy]]:
    """The copies that fill every wanted range, by index of the part to read. Parts that are not needed are left out.

    If the slices pass `check_tiling`, every wanted element is copied exactly once.
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
