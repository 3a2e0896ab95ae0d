"""The benchmark of ranks: its ways agree with one process, its bytes are counted, and what fails is named."""

from __future__ import annotations

import math

import pytest
import torch
import torch.distributed as dist
from benchmarks import parallel
from benchmarks.common import Options
from benchmarks.ranks import run_ranks
from benchmarks.ways import GATHERED, NATIVE, ULYSSES, WAYS, Handed, Shape

pytestmark = pytest.mark.slow


def test_it_runs_and_its_rows_say_what_they_should() -> None:
    rows = parallel.run(Options(quick=True))
    named = {row.name: row for row in rows}
    assert len(named) == len(rows)
    for row in rows:
        assert row.name.startswith("parallel/")
        assert math.isfinite(row.value)
        assert (row.reach is None) == (row.holds is None) == (row.sense is None)
    agreement = [row for row in rows if "off one process by" in row.name]
    assert len(agreement) == len(WAYS)
    assert all(row.holds for row in agreement)
    off = [row for row in rows if "off the formula by" in row.name]
    assert len(off) == 2 * 3
    assert all(row.value < 10 for row in off)


def test_three_ways_equal_one_process_on_four_ranks() -> None:
    for result in run_ranks("sharded:agree", 4, {"length": 512, "width": 32, "heads": 8}):
        assert set(result) == set(WAYS)
        assert all(worst < 1e-9 for worst in result.values())


def test_formulas_are_those_of_a_layer() -> None:
    shape = Shape(262144, 512, 8)
    assert shape.formula(ULYSSES, 2) == 8 * 131072 * 512 * 4
    assert shape.formula(NATIVE, 2) == 5 * 63 * 512 * 4 + 12 * 8 * 63
    assert shape.formula(GATHERED, 4) == 2 * 65536 * 512 * 4 + 2 * 262144 * 512 * 4 + 8 * 8 * 63


def test_what_is_handed_to_collectives_is_counted() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        x, out = torch.ones(4), torch.empty(4)
        with Handed() as handed:
            dist.all_reduce(x)
            dist.all_to_all_single(out, x)
            dist.all_gather_into_tensor(out, x)
            dist.reduce_scatter_tensor(out, x)
            dist.barrier()
        assert handed.bytes == 4 * x.nbytes
        with Handed(), pytest.raises(RuntimeError, match="broadcast_"):
            dist.broadcast(x, 0)
    finally:
        dist.destroy_process_group()


def test_a_rank_that_fails_is_named_with_its_reason() -> None:
    with pytest.raises(RuntimeError, match=r"sharded:agree on 2 ranks failed: rank \d: .*model\.heads = 3"):
        run_ranks("sharded:agree", 2, {"length": 64, "width": 24, "heads": 3})


def test_gpus_are_refused() -> None:
    with pytest.raises(RuntimeError, match="on the CPU"):
        parallel.run(Options(device="cuda"))
