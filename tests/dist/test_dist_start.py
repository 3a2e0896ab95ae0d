"""Weights that a run begins with where its experts are spread over ranks."""

from __future__ import annotations

from pathlib import Path

import torch
from ranks import run_ranks
from test_dist_engine import every_expert
from test_dist_maestro import MODALITIES, MODEL, make

from maestro_dist.config.learning import TaskConfig
from maestro_dist.config.schema import Config, MeshConfig
from maestro_dist.inference.exported_model import TaskDescription, export_model, read_weights
from maestro_dist.parallel.expert import spread_experts
from maestro_dist.parallel.mesh import build_mesh
from maestro_dist.training.pretrained_weights import HEADS, load_pretrained


def check_taken(rank: int, ranks: int, folder: str) -> tuple[int, int, list[str], list[str]]:
    """How many parameters are taken, how many there are, which experts' ones, and which differ from what was there."""
    from maestro_dist.data.storage import Storage

    config = Config(model=MODEL, mesh=MeshConfig(expert=ranks))
    experts, _ = spread_experts(build_mesh(config.mesh, world=ranks, rank=rank), "cpu", 60, "tokens")
    model, _ = make(config, None, experts)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    taken, of = load_pretrained(model, folder)
    there, spread, other = read_weights(Storage(folder)), [], []
    for name, parameter in model.named_parameters():
        if getattr(parameter, "expert_ranks", 1) > 1:
            spread.append(name)
        head = name.startswith(HEADS)
        expected = before[name] if head else there[name]
        if not torch.equal(parameter.detach() if head else every_expert(parameter, parameter.detach()), expected):
            other.append(name)
    return taken, of, spread, other


def test_each_rank_takes_its_own_experts_of_pretrained_weights(tmp_path: Path) -> None:
    model, _ = make(Config(model=MODEL, task=TaskConfig(kind="pretrain")))
    weights = {name: tensor + 1 for name, tensor in model.state_dict().items()}  # not what a seed makes
    export_model(
        str(tmp_path), config=MODEL, modalities=MODALITIES, task=TaskDescription(kind="pretrain"), weights=weights
    )
    heads = sum(name.startswith(HEADS) for name, _ in make(Config(model=MODEL))[0].named_parameters())
    for taken, of, spread, other in run_ranks(check_taken, 2, str(tmp_path)):
        assert taken == of - heads
        assert spread
        assert other == []
