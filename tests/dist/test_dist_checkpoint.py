"""Checkpoints between processes: bitwise continuation on the same ranks, exact copies on others."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from ranks import run_ranks
from test_dist_engine import accumulate, make_config, make_engine
from test_dist_maestro import MODALITIES, make
from test_dist_maestro import stream as maestro_stream
from toy import Toy, losses, micro_batches, stream

from maestro_dist.checkpoint import Saver, find, full_weights, newest, restore
from maestro_dist.config.learning import OptimConfig
from maestro_dist.config.model import ModelConfig
from maestro_dist.config.schema import Config, EngineConfig, MeshConfig
from maestro_dist.engine.engine import Engine
from maestro_dist.engine.partition import buffers, optimizer_state, owned_slices
from maestro_dist.model import Maestro
from maestro_dist.optim import build_optimizer
from maestro_dist.parallel.expert import spread_experts
from maestro_dist.parallel.mesh import build_mesh

pytestmark = pytest.mark.slow

Slices = dict[tuple[str, str], list[tuple[int, np.ndarray]]]
Route = tuple[str, int, str]  # source, ZeRO stage, target
KINDS = {"master", "exp_avg", "exp_avg_sq"}


class Converted(NamedTuple):
    state: Slices
    optimizer_steps: int
    forward_error: float


def owned(engine: Engine) -> Slices:
    """Copies of all that this rank owns."""
    return {
        (one.name, kind): [(one.start, tensor.numpy().copy())]
        for one in owned_slices(engine)
        for kind, tensor in one.tensors.items()
    }


def whole(ranks: list[Slices]) -> dict[tuple[str, str], np.ndarray]:
    """The slices of all ranks put together; they must not leave a gap."""
    pieces: Slices = {}
    for rank in ranks:
        for key, found in rank.items():
            pieces.setdefault(key, []).extend(found)
    joined = {}
    for key, found in pieces.items():
        found.sort(key=lambda piece: piece[0])
        joined[key] = np.concatenate([piece for _, piece in found])
        assert [start for start, _ in found] == np.cumsum([0] + [len(piece) for _, piece in found[:-1]]).tolist()
    assert {kind for _, kind in joined} == KINDS
    return joined


def assert_same(found: dict[Any, np.ndarray], expected: dict[Any, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for key in expected:
        np.testing.assert_array_equal(found[key], expected[key], err_msg=str(key))


def train(engine: Engine, seed: int) -> None:
    for batch, accumulation in stream(seed):
        accumulate(engine, batch, accumulation)
        assert engine.step(1e-3).applied


def train_save_go_on(rank: int, ranks: int, folder: str) -> dict[int, tuple[Slices, Slices]]:
    """For each stage: five steps, save in the background, five more steps meanwhile; state at the save, at the end."""
    states = {}
    for stage in (1, 2, 3):
        engine = make_engine(make_config(stage), rank, ranks)
        saver = Saver(f"{folder}/zero{stage}", engine.mesh, attempt=1, keep_last=2)
        train(engine, seed=100)
        buffers(engine)["selection_bias"].add_(0.5)
        saved = owned(engine)
        saver.save(engine, step=5, position=28, epoch=0, metadata={"stage": stage})
        train(engine, seed=200)
        buffers(engine)["selection_bias"].add_(0.5)
        saver.wait()
        states[stage] = (saved, owned(engine))
        engine.close()
    return states


def load_and_go_on(
    rank: int, ranks: int, folder: str, routes: list[Route]
) -> tuple[dict[int, tuple[Slices, Slices]], list[Converted]]:
    """The same in new processes: state as restored, and after the five steps that followed the save; then `convert`."""
    states = {}
    for stage in (1, 2, 3):
        engine = make_engine(make_config(stage), rank, ranks)
        info = newest(f"{folder}/zero{stage}")
        assert info is not None
        restore(engine, info)
        restored = owned(engine)
        assert buffers(engine)["selection_bias"].tolist() == [0.5, 1.5, 2.5, 3.5]
        train(engine, seed=200)
        states[stage] = (restored, owned(engine))
        restore(engine, info)  # into an engine that has trained on
        for key, ((_, found),) in owned(engine).items():
            np.testing.assert_array_equal(found, restored[key][0][1])
        assert forward_error(engine, folder, f"zero{stage}") == 0.0
        engine.close()
    return states, convert(rank, ranks, folder, routes)


def convert(rank: int, ranks: int, folder: str, routes: list[Route]) -> list[Converted]:
    """Load each source at a stage on these ranks and save it as the target."""
    states = []
    for source, stage, target in routes:
        engine = make_engine(make_config(stage), rank, ranks)
        restore(engine, find(f"{folder}/{source}", 5))
        saver = Saver(f"{folder}/{target}", engine.mesh, attempt=1, keep_last=2)
        saver.save(engine, step=5, position=28, epoch=0, metadata={})
        saver.wait()
        states.append(Converted(owned(engine), optimizer_state(engine)[1], forward_error(engine, folder, source)))
        engine.close()
        torch.distributed.barrier()  # the next route may read what rank 0 has just completed
    return states


def forward_error(engine: Engine, folder: str, source: str) -> float:
    """The model as the engine runs it against plain torch with the checkpoint's full weights."""
    plain = Toy(seed=1)
    plain.load_state_dict(full_weights(find(f"{folder}/{source}", 5)))
    batch = stream(300)[2][0]
    with torch.no_grad():
        return float((engine(batch)["logits"] - plain(batch)["logits"]).abs().max())


def test_same_ranks_bitwise_other_ranks_exact(tmp_path: Path) -> None:
    folder = str(tmp_path)
    first = run_ranks(train_save_go_on, 2, folder)
    saved = {stage: whole([rank[stage][0] for rank in first]) for stage in (1, 2, 3)}

    alone = run_ranks(convert, 1, folder, [("zero2", 3, "a"), ("zero3", 1, "b"), ("zero1", 2, "c")])
    again = run_ranks(load_and_go_on, 2, folder, [("a", 2, "d"), ("c", 3, "e")])
    three = run_ranks(convert, 3, folder, [("b", 3, "f"), ("e", 1, "g")])

    for stage in (1, 2, 3):
        for moment in (0, 1):  # as saved, and five steps later
            continued = whole([states[stage][moment] for states, _ in again])
            assert_same(continued, whole([rank[stage][moment] for rank in first]))
    for results, origins in ((alone, (2, 3, 1)), ([converted for _, converted in again], (2, 1)), (three, (3, 1))):
        for index, origin in enumerate(origins):
            assert_same(whole([rank[index].state for rank in results]), saved[origin])
            assert all(rank[index].optimizer_steps == 5 for rank in results)
            assert max(rank[index].forward_error for rank in results) == 0.0

    weights = full_weights(find(f"{folder}/zero2", 5))
    assert weights.pop("selection_bias").tolist() == [0.5, 1.5, 2.5, 3.5]
    masters = {name: array for (name, kind), array in saved[2].items() if kind == "master"}
    assert_same({name: weight.flatten().numpy() for name, weight in weights.items()}, masters)


MODEL = ModelConfig.model_validate(
    {"width": 160, "heads": 4, "word": 4, "moe": {"experts": 4, "balance": "bias"}, "encoder_layers": 1}
)


def maestro_engine(rank: int, ranks: int, stage: int, expert: int, offload: str = "none") -> Engine:
    optim, mesh_config = OptimConfig(), MeshConfig(expert=expert)
    config = Config(
        model=MODEL,
        optim=optim,
        mesh=mesh_config,
        engine=EngineConfig.model_validate({"zero_stage": stage, "offload": offload}),
    )
    mesh = build_mesh(mesh_config, world=ranks, rank=rank)
    experts = spread_experts(mesh, "cpu", 60)[0] if expert > 1 else None
    model, _ = make(config, experts=experts)
    return Engine(model, build_optimizer(model, optim), config, mesh)


def experts_saved(rank: int, ranks: int, folder: str) -> list[Slices]:
    """With four expert ranks: a step, and the state saved."""
    states = []
    for stage in (1, 3):
        engine = maestro_engine(rank, ranks, stage, 4)
        batch, _ = maestro_stream(20, 1)[0]
        for micro in micro_batches(batch, rank, ranks, 1):
            engine.backward(engine.scale_loss(losses(engine(micro), micro), micro), micro.last)
        assert engine.step(1e-3).applied
        saver = Saver(f"{folder}/experts{stage}", engine.mesh, attempt=1, keep_last=2)
        saver.save(engine, step=1, position=8, epoch=0, metadata={})
        saver.wait()
        states.append(owned(engine))
        engine.close()
    return states


LOADED = [
    (1, 2, 2, "none"), (3, 1, 2, "optimizer"), (1, 3, 2, "parameters"), (3, 3, 1, "none"), (1, 1, 1, "none"),
    (3, 3, 1, "optimizer"),
]  # fmt: skip
"""Source, ZeRO stage, expert ranks, what is offloaded."""


def experts_loaded(rank: int, ranks: int, folder: str) -> list[Slices]:
    """On two expert ranks, and with all experts on each, at other stages, in this memory or that."""
    states = []
    batch = maestro_stream(30, 1)[0][0]
    for source, stage, expert, offload in LOADED:
        engine = maestro_engine(rank, ranks, stage, expert, offload)
        restore(engine, find(f"{folder}/experts{source}", 1))
        states.append(owned(engine))
        plain = Maestro(MODEL, MODALITIES, 3, seed=1).eval()
        plain.load_state_dict(full_weights(find(f"{folder}/experts{source}", 1)))
        engine.eval()
        with torch.no_grad():
            assert (engine(batch)["logits"] - plain(batch)["logits"]).abs().max() < 1e-6
        engine.close()
    return states


def test_experts_move_between_meshes(tmp_path: Path) -> None:
    saved = [whole(list(rank)) for rank in zip(*run_ranks(experts_saved, 4, str(tmp_path)), strict=True)]
    name = next(name for name, _ in saved[0] if name.endswith("experts.expand"))
    assert saved[0][name, "master"].size == 4 * 160 * 160
    weights = full_weights(find(f"{tmp_path}/experts3", 1))
    Maestro(MODEL, MODALITIES, 3, seed=1).load_state_dict(weights)
    assert_same({key: weights[key[0]].flatten().numpy() for key in saved[1] if key[1] == "master"},
                {key: array for key, array in saved[1].items() if key[1] == "master"})  # fmt: skip
    loaded = [whole(list(rank)) for rank in zip(*run_ranks(experts_loaded, 2, str(tmp_path)), strict=True)]
    for found, (source, *_) in zip(loaded, LOADED, strict=True):
        assert_same(found, saved[source // 2])
