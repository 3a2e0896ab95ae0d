"""1,024 ranks in one process: their process groups, on torch's group that does no communication, are the mesh's."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from maestro_dist.config.schema import MeshConfig
from maestro_dist.parallel.group import neighbours, sequence_group
from maestro_dist.parallel.mesh import Mesh, build_mesh

WORLD = 1024
GRIDS = [MeshConfig(sequence=8, expert=16), MeshConfig(sequence=2, expert=64), MeshConfig(sequence=16, expert=4)]


@contextmanager
def fake_world(rank: int, world: int = WORLD) -> Iterator[None]:
    """This process as one rank of a world whose collectives do nothing."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
    try:
        yield
    finally:
        dist.destroy_process_group()


def group_of(mesh: Mesh, make: Callable[[Mesh], dist.ProcessGroup]) -> list[int]:
    with fake_world(mesh.rank):
        group = make(mesh)
        ranks = dist.get_process_group_ranks(group)
        assert ranks[dist.get_rank(group)] == mesh.rank
        return ranks


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"{grid.sequence}x{grid.expert}")
def test_groups_of_1024_ranks_are_those_of_the_mesh(grid: MeshConfig) -> None:
    start = time.perf_counter()
    for rank in (0, 1, 517, WORLD - 1):
        mesh = build_mesh(grid, world=WORLD, rank=rank)
        made = group_of(mesh, lambda mesh: sequence_group(mesh, 30))
        assert made == list(mesh.sequence_group)
        assert made.index(rank) == mesh.sequence_rank
        made = group_of(mesh, lambda mesh: neighbours(mesh, mesh.expert, 30))
        assert made == list(mesh.expert_group)
        assert made.index(rank) == mesh.expert_rank
    assert time.perf_counter() - start < 30


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"{grid.sequence}x{grid.expert}")
def test_groups_part_the_world(grid: MeshConfig) -> None:
    meshes = [build_mesh(grid, world=WORLD, rank=rank) for rank in range(WORLD)]
    for name in ("sequence_group", "expert_group", "expert_replicas"):
        groups = {tuple(getattr(mesh, name)) for mesh in meshes}
        assert sorted(rank for group in groups for rank in group) == list(range(WORLD)), name
        assert all(mesh.rank in getattr(mesh, name) for mesh in meshes)
    # same data rank in a sequence group; each expert rank once in an expert group; one expert rank among replicas
    for mesh in meshes:
        assert {meshes[rank].data_rank for rank in mesh.sequence_group} == {mesh.data_rank}
        assert [meshes[rank].expert_rank for rank in mesh.expert_group] == list(range(mesh.expert))
        assert {meshes[rank].expert_rank for rank in mesh.expert_replicas} == {mesh.expert_rank}


DEEPSPEED = """
    import os
    os.environ["LOCAL_RANK"] = "0"
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore
    from maestro_dist.config.schema import MeshConfig
    from maestro_dist.parallel.mesh import build_mesh
    from maestro_dist.parallel.load_deepspeed import load_deepspeed

    rank, world = 517, 1024
    deepspeed = load_deepspeed("cpu")
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
    deepspeed.init_distributed(dist_backend="gloo", dist_init_required=False, verbose=False)
    from deepspeed.utils import groups

    groups._create_expert_and_data_parallel(16)
    mesh = build_mesh(MeshConfig(expert=16), world=world, rank=rank)
    found = groups._get_expert_parallel_group("ep_size_16"), groups._get_expert_data_parallel_group("ep_size_16")
    expected = list(mesh.expert_group), list(mesh.expert_replicas)
    assert tuple(dist.get_process_group_ranks(group) for group in found) == expected, found
"""


def test_deepspeeds_expert_groups_are_those_of_the_mesh() -> None:
    """In a process of its own: DeepSpeed keeps what it makes."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(DEEPSPEED)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
