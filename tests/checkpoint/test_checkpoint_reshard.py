from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maestro_dist.checkpoint.reshard import Range, check_tiling, plan_copies
from maestro_dist.errors import CheckpointError

Parts = list[dict[str, Range]]


@st.composite
def tilings(draw: st.DrawFn, sizes: dict[str, int]) -> Parts:
    """Each parameter cut at random places, its pieces dealt to ranks (at most one piece a rank, as ZeRO does)."""
    ranks = draw(st.integers(1, 5))
    parts: Parts = [{} for _ in range(ranks)]
    for name, size in sizes.items():
        pieces = draw(st.integers(1, min(ranks, size)))
        cuts = sorted(
            draw(st.sets(st.integers(1, size - 1), min_size=pieces - 1, max_size=pieces - 1)) if size > 1 else []
        )
        edges = [0, *cuts, size]
        owners = draw(st.permutations(range(ranks)))
        for owner, start, end in zip(owners, edges, edges[1:], strict=False):
            parts[owner][name] = (start, end - start)
    return parts


SIZES = {"encoder.weight": 24, "encoder.bias": 4, "scale": 1}
SHAPES = {"encoder.weight": (4, 6), "encoder.bias": (4,), "scale": ()}


@given(written=tilings(SIZES), wanted=tilings(SIZES))
def test_any_tiling_is_put_together_from_any_other(written: Parts, wanted: Parts) -> None:
    whole = {name: np.arange(size) + 100 * index for index, (name, size) in enumerate(SIZES.items())}
    check_tiling(SHAPES, written)
    stored = [{name: whole[name][start : start + count] for name, (start, count) in part.items()} for part in written]
    for rank in wanted:
        filled = {name: np.full(count, -1) for name, (_, count) in rank.items()}
        for index, copies in plan_copies(rank, written).items():
            for copy in copies:
                target = filled[copy.name][copy.target : copy.target + copy.count]
                assert (target == -1).all()  # nothing is copied twice
                target[:] = stored[index][copy.name][copy.source : copy.source + copy.count]
        for name, (start, count) in rank.items():
            np.testing.assert_array_equal(filled[name], whole[name][start : start + count])


def test_the_same_tiling_needs_one_part_only() -> None:
    parts: Parts = [{"scale": (0, 1), "encoder.weight": (0, 12)}, {"encoder.weight": (12, 12)}]
    assert list(plan_copies(parts[1], parts)) == [1]


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([{"w": (0, 4)}, {"w": (6, 6)}], "elements 4..5 of parameter w are missing"),
        ([{"w": (0, 4)}, {"w": (4, 6)}], "elements 10..11 of parameter w are missing"),
        ([{"w": (2, 10)}], "elements 0..1 of parameter w are missing"),
        ([{}], "elements 0..11 of parameter w are missing"),
        ([{"w": (0, 8)}, {"w": (6, 6)}], "elements 6..7 of parameter w were written twice"),
        ([{"w": (0, 12)}, {"w": (0, 12)}], "elements 0..11 of parameter w were written twice"),
        ([{"w": (0, 13)}], "parameter w has 12 elements, but 13 were written"),
        ([{"w": (0, 12), "v": (0, 1)}], "slices of parameter v, which the model does not have"),
    ],
)
def test_what_does_not_tile_is_named(parts: Parts, words: str) -> None:
    with pytest.raises(CheckpointError) as error:
        check_tiling({"w": (3, 4)}, parts)
    assert words in str(error.value)
