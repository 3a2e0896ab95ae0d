"""MAESTRO itself on 2 ranks at every ZeRO stage against plain torch on the whole batch in one process."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from ranks import run_ranks
from test_dist_engine import full, worst
from torch import Tensor, nn
from toy import micro_batches

from maestro_dist.config.learning import OptimConfig, TaskConfig
from maestro_dist.config.model import ModelConfig
from maestro_dist.config.schema import Config, EngineConfig, MeshConfig
from maestro_dist.engine.engine import Engine
from maestro_dist.model import Maestro, Pretraining, Trunk
from maestro_dist.model.context import ExpertsFactory
from maestro_dist.optim import build_optimizer
from maestro_dist.parallel.expert import spread_experts
from maestro_dist.parallel.group import sequence_group
from maestro_dist.parallel.mesh import build_mesh
from maestro_dist.parallel.sequence import SequenceRanks, model_cuts
from maestro_dist.parallel.ulysses import UlyssesRanks
from maestro_dist.task import Labels, Task, make_task
from maestro_dist.types import Batch, Modality, Output

pytestmark = pytest.mark.slow

MODALITIES = [
    Modality("acc", 3, 16.0, 64, mean=(0.0,) * 3, std=(1.0,) * 3),
    Modality("bvp", 1, 32.0, 128, mean=(0.0,), std=(1.0,)),
    Modality("eda", 1, 4.0, 16, mean=(0.0,), std=(1.0,)),
]
# feed-forward and experts are sharded at ZeRO 3
MODEL = ModelConfig(width=160, heads=4, word=4, summary="level", summary_bands=2, head_hidden=1)
CLASSES = ["rest", "stress", "other"]


def make_batch(present: Tensor, seed: int, step: int, modalities: Sequence[Modality] = MODALITIES) -> Batch:
    """A global batch with this presence [B, M]; a tenth of the steps are gaps."""
    generator = torch.Generator().manual_seed(seed)
    values, rows, samples = {}, {}, present.shape[0]
    for index, modality in enumerate(modalities):
        whole = torch.randn(samples, modality.steps, modality.variates, generator=generator)
        whole[torch.rand(samples, modality.steps, generator=generator) < 0.1] = math.nan
        rows[modality.name] = present[:, index].nonzero().flatten()
        values[modality.name] = whole[rows[modality.name]]
    target = torch.randint(0, len(CLASSES), (samples,), generator=generator)
    sample = torch.arange(samples) + 100 * seed
    return Batch(values, rows, present, sample, target, global_samples=samples, step=step)


def stream(seed: int, steps: int) -> list[tuple[Batch, int]]:
    """Global batches with their accumulation: missing on one rank, on all, ragged, uneven, nearly empty, and again."""
    full = torch.ones(8, 3, dtype=torch.bool)
    odd_lacks, none, ragged = full.clone(), full.clone(), full.clone()
    odd_lacks[1::2, 2] = False
    none[:, 0] = False
    for sample, modality in ((0, 0), (3, 1), (4, 0), (5, 1), (5, 2), (6, 2)):
        ragged[sample, modality] = False
    kinds = [(odd_lacks, 1), (none, 1), (ragged, 2), (full[:3], 1), (ragged[:1], 2)]
    return [(make_batch(kinds[i % 5][0], seed + i, i), kinds[i % 5][1]) for i in range(steps)]


def make(
    config: Config,
    sequence: SequenceRanks | None = None,
    experts: ExpertsFactory | None = None,
    modalities: Sequence[Modality] = MODALITIES,
) -> tuple[Trunk, Task]:
    task = make_task(config.task, Labels("classification", classes=CLASSES, class_counts=[3, 2, 1]))
    if task.kind == "pretrain":
        given = (config.model, modalities, config.task.pretrain)
        return Pretraining(*given, seed=7, sequence=sequence, experts=experts), task
    return Maestro(config.model, modalities, task.outputs, seed=7, sequence=sequence, experts=experts), task


class Trace:
    """What a training run did: losses, gradients (the first five steps), tokens sent to each expert, final weights."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.gradients: list[dict[str, Tensor]] = []
        self.loads: list[Tensor] = []
        self.weights: dict[str, Tensor] = {}


def load_of(output: Output) -> Tensor:
    return output["expert_load"].to(torch.float64)


def plain(config: Config, batches: list[tuple[Batch, int]], modalities: Sequence[Modality] = MODALITIES) -> Trace:
    model, task = make(config, modalities=modalities)
    optimizer, trace = build_optimizer(model, config.optim), Trace()
    for batch, _ in batches:
        optimizer.zero_grad()
        output = model(batch, batch.step)
        loss = task.loss(output, batch).mean()
        loss.backward()
        grads = {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
        trace.gradients = [*trace.gradients, grads][:5]
        nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip)
        optimizer.step()
        trace.losses.append(float(loss.detach()))
        trace.loads.append(load_of(output))
    trace.weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    return trace


def sharded(
    config: Config,
    batches: list[tuple[Batch, int]],
    rank: int,
    ranks: int,
    modalities: Sequence[Modality] = MODALITIES,
) -> Trace:
    """`config.mesh.sequence` neighbours share their samples' time axis."""
    mesh = build_mesh(config.mesh, world=ranks, rank=rank)
    cuts = model_cuts(config.model, modalities, mesh.sequence)
    experts = None
    if mesh.expert > 1:
        movement = "tokens" if config.mesh.expert_movement == "auto" else config.mesh.expert_movement
        experts, _ = spread_experts(mesh, "cpu", 60, movement)
    method = UlyssesRanks if config.mesh.sequence_method == "ulysses" else SequenceRanks
    sequence = method(sequence_group(mesh, 60), cuts) if mesh.sequence > 1 else None
    model, task = make(config, sequence, experts, modalities)
    engine, trace = Engine(model, build_optimizer(model, config.optim), config, mesh), Trace()
    for batch, accumulation in batches:
        total, load = torch.zeros((), dtype=torch.float64), torch.zeros(())
        for whole in micro_batches(batch, mesh.data_rank, mesh.data, accumulation):
            at = {name: slice(*ends[mesh.sequence_rank :][:2]) for name, ends in cuts.items()}
            micro = replace(whole, values={name: x[:, at[name]] for name, x in whole.values.items()})
            output = engine(micro, micro.step)
            loss = engine.scale_loss(task.loss(output, micro), micro)
            engine.backward(loss, micro.last)
            total += loss.detach() / ranks
            load = load + load_of(output)
        torch.distributed.all_reduce(total)
        torch.distributed.all_reduce(load)
        if len(trace.gradients) < 5:
            trace.gradients.append(full(engine, "gradients"))
        assert engine.step(config.optim.lr).applied
        trace.losses.append(float(total))
        trace.loads.append(load)
    trace.weights = full(engine, "weights")
    engine.close()
    return trace


def check_maestro(rank: int, ranks: int) -> dict[str, float]:
    """Largest differences from plain torch, and the number of (step, layer, modality, expert) counts that differ."""
    found = {}
    for optimizer, lr, steps in (("sgd", 0.1, 5), ("adamw", 1e-3, 20)):
        batches = stream(10, steps)
        optim = OptimConfig(optimizer=optimizer, lr=lr)
        expected = plain(Config(model=MODEL, optim=optim), batches)
        assert all(load.sum() > 0 for load in expected.loads)
        for stage in (1, 2, 3):
            config = Config(model=MODEL, optim=optim, engine=EngineConfig(zero_stage=stage))
            trace = sharded(config, batches, rank, ranks)
            found |= differences(f"{optimizer} ZeRO {stage}", trace, expected, exact=optimizer == "sgd")
    return found


def differences(name: str, trace: Trace, expected: Trace, *, exact: bool) -> dict[str, float]:
    """Largest ones; `exact`: gradients and weights as well."""
    found = {}
    pairs = zip(trace.loads, expected.loads, strict=True)
    found[f"{name} flips"] = float(sum((one != other).sum() for one, other in pairs))
    losses = zip(trace.losses, expected.losses, strict=True)
    found[f"{name} loss"] = max(abs(one - other) for one, other in losses)
    if exact:
        gradients = zip(trace.gradients, expected.gradients, strict=True)
        found[f"{name} gradient"] = max(worst(one, other) for one, other in gradients)
        found[f"{name} weight"] = worst(trace.weights, expected.weights)
    return found


LIMITS = {"flips": 0.0, "loss": 1e-4, "gradient": 1e-5, "weight": 1e-5}


def within_limits(results: list[dict[str, float]]) -> None:
    for result in results:
        print(result)
        for name, value in result.items():
            assert value <= LIMITS[name.rsplit(" ", 1)[-1]], (name, value)


def test_maestro_on_two_ranks_equals_one_process() -> None:
    within_limits(run_ranks(check_maestro, 2))


GRIDS = {2: (2,), 4: (2, 4)}
"""Sequence ranks, by world."""
VARIANTS: list[dict[str, Any]] = [
    {},
    {"heads": 2, "encoder_layers": 2, "budget": "reallocate", "stem": {"channels": 8}, "moe": {"top_k": 2}},
]


def check_grid(rank: int, ranks: int) -> dict[str, float]:
    """The same for every grid of data and sequence ranks in a world, at each ZeRO stage, in fp32, five SGD steps."""
    found = {}
    batches, optim = stream(30, 5), OptimConfig(optimizer="sgd", lr=0.1)
    for number, variant in enumerate(VARIANTS):
        model = ModelConfig.model_validate(MODEL.model_dump() | variant)
        expected = plain(Config(model=model, optim=optim), batches)
        for sequence, stage in itertools.product(GRIDS[ranks], (1, 2, 3)):
            mesh, engine = MeshConfig(sequence=sequence), EngineConfig(zero_stage=stage)
            trace = sharded(Config(model=model, optim=optim, mesh=mesh, engine=engine), batches, rank, ranks)
            found |= differences(f"{number}, sequence {sequence}, ZeRO {stage}", trace, expected, exact=True)
    return found


@pytest.mark.parametrize("world", GRIDS)
def test_grids_of_data_and_sequence_ranks_equal_one_process(world: int) -> None:
    within_limits(run_ranks(check_grid, world))


PRETRAINING: list[tuple[dict[str, Any], int]] = [
    ({}, 2),
    ({}, 3),
    ({"sequence": 2}, 3),
    ({"sequence": 2, "sequence_method": "ulysses"}, 2),
    ({"expert": 2}, 2),
]


def check_pretraining(rank: int, ranks: int) -> dict[str, float]:
    """Hidden words on data, sequence and expert ranks, in micro-batches, in fp32, five SGD steps."""
    optim, task = OptimConfig(optimizer="sgd", lr=0.1), TaskConfig.model_validate({"kind": "pretrain"})
    model = ModelConfig.model_validate({**MODEL.model_dump(), "summary": "none", "stem": {"channels": 8}})
    batches, found = stream(50, 5), {}
    expected = plain(Config(model=model, optim=optim, task=task), batches)
    assert all(any(step[name].any() for step in expected.gradients) for name in expected.weights)
    for ways, stage in PRETRAINING:
        mesh, engine = MeshConfig.model_validate(ways), EngineConfig(zero_stage=stage)
        config = Config(model=model, optim=optim, task=task, mesh=mesh, engine=engine)
        trace = sharded(config, batches, rank, ranks)
        found |= differences(f"{ways}, ZeRO {stage}", trace, expected, exact=True)
    return found


def test_pretraining_on_two_ranks_equals_one_process() -> None:
    within_limits(run_ranks(check_pretraining, 2))
