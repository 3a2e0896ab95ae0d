from __future__ import annotations

import subprocess
import sys

import pytest

from maestro_dist.config.schema import MeshConfig
from maestro_dist.errors import MeshError
from maestro_dist.parallel.mesh import Mesh, build_mesh


def test_ranks_cover_the_grid_once_with_sequence_ranks_as_neighbours() -> None:
    for world, sequence in ((1, 1), (6, 1), (6, 2), (6, 3), (8, 8)):
        meshes = [build_mesh(MeshConfig(sequence=sequence), world=world, rank=rank) for rank in range(world)]
        cells = [(mesh.data_rank, mesh.sequence_rank) for mesh in meshes]
        assert cells == [(data, part) for data in range(world // sequence) for part in range(sequence)]


def test_data_is_what_the_world_leaves() -> None:
    assert build_mesh(MeshConfig(sequence=2, expert=4), world=8, rank=5) == Mesh(5, 8, 4, 2, 4)
    assert build_mesh(MeshConfig(data=4, sequence=2), world=8).data == 4


@pytest.mark.parametrize(
    ("config", "world", "words"),
    [
        (MeshConfig(sequence=4), 6, ["mesh.sequence = 4", "6 ranks", "1, 2, 3, 6", "multiple of 4"]),
        (MeshConfig(data=2, sequence=2), 6, ["2 x 2 = 4", "6 workers", "mesh.data = 3", "run.workers = 4"]),
        (MeshConfig(data=2), 1, ["2 x 1 = 2", "1 workers", "mesh.data = 1", "run.workers = 2"]),
        (MeshConfig(expert=4), 6, ["mesh.expert = 4", "6 ranks", "1, 2, 3, 6"]),
    ],
)
def test_what_does_not_fit_is_refused_with_the_numbers(config: MeshConfig, world: int, words: list[str]) -> None:
    with pytest.raises(MeshError) as error:
        build_mesh(config, world=world)
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)


def test_table_shows_every_rank_in_its_row() -> None:
    lines = build_mesh(MeshConfig(sequence=3), world=6, rank=4).table().splitlines()
    assert lines[0] == "6 ranks = 2 data x 3 sequence; experts over 1"
    assert lines[1].split() == ["data", "0:", "ranks", "0", "1", "2"]
    assert lines[2].split()[:6] == ["data", "1:", "ranks", "3", "4", "5"]
    assert "this is rank 4" in lines[2]
    assert len(build_mesh(MeshConfig(), world=1000).table().splitlines()) == 18


def test_mesh_and_checkpoint_lists_need_no_torch() -> None:
    code = "import sys, maestro_dist.parallel.mesh, maestro_dist.engine.engine, maestro_dist.checkpoint;"
    code += "sys.exit(any(name in sys.modules for name in ('torch', 'deepspeed')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
