"""The engine on 1 and 2 ranks at every ZeRO stage against plain torch on the whole batch in one process."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from ranks import run_ranks
from torch import Tensor, nn
from toy import Toy, losses, make_batch, micro_batches, stream

from maestro_dist.config.learning import OptimConfig
from maestro_dist.config.schema import Config, EngineConfig, MeshConfig
from maestro_dist.engine.engine import Engine
from maestro_dist.engine.partition import owned_slices
from maestro_dist.optim import build_optimizer
from maestro_dist.parallel.mesh import build_mesh
from maestro_dist.types import Batch


def make_config(stage: int, *, overlap: bool = False, **optim: Any) -> Config:
    return Config(engine=EngineConfig(zero_stage=stage, overlap_comm=overlap), optim=OptimConfig(**optim))


def make_engine(config: Config, rank: int, ranks: int) -> Engine:
    model = Toy()
    return Engine(model, build_optimizer(model, config.optim), config, build_mesh(MeshConfig(), world=ranks, rank=rank))


def full(engine: Engine, what: str) -> dict[str, Tensor]:
    """Full gradients or master weights by DeepSpeed's own debugging functions."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_grad

    get = safe_get_full_grad if what == "gradients" else safe_get_full_fp32_param
    return {name: every_expert(parameter, get(parameter)) for name, parameter in engine.module.named_parameters()}


def every_expert(parameter: nn.Parameter, own: Tensor) -> Tensor:
    """The experts of all ranks where `parameter` holds this rank's; a copy of `own` elsewhere."""
    ranks, rank = getattr(parameter, "expert_ranks", 1), torch.distributed.get_rank()
    pieces: list[Any] = [None] * torch.distributed.get_world_size()
    if ranks > 1:
        torch.distributed.all_gather_object(pieces, own)
    else:
        return own.clone()
    first = rank - getattr(parameter, "expert_rank", 0)
    # ranks with the same experts agree
    assert all(torch.equal(piece, pieces[at % ranks]) for at, piece in enumerate(pieces))
    return torch.cat(pieces[first : first + ranks])


def accumulate(engine: Engine, batch: Batch, accumulation: int) -> float:
    """Forward and backward of a global batch; this rank's share of its mean loss."""
    total = 0.0
    for micro in micro_batches(batch, engine.mesh.rank, engine.mesh.world, accumulation):
        loss = engine.scale_loss(losses(engine(micro, micro.step), micro), micro)
        engine.backward(loss, micro.last)
        total += float(loss.detach()) / engine.mesh.world
    return total


class Oracle:
    """Plain torch: the whole global batch at once, `mean` over it, torch's clipping."""

    def __init__(self, config: Config) -> None:
        self.model = Toy()
        self.optimizer = build_optimizer(self.model, config.optim)
        self.clip = config.optim.clip or math.inf

    def step(self, batch: Batch, lr: float) -> tuple[float, dict[str, Tensor], float]:
        self.optimizer.zero_grad()
        loss = losses(self.model(batch), batch).mean()
        loss.backward()
        gradients = {
            name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in self.model.named_parameters()
        }
        norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), self.clip))
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        return float(loss.detach()), gradients, norm


def worst(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Largest norm of a parameter's difference."""
    assert found.keys() == expected.keys()
    return max(float((found[name] - expected[name]).norm()) for name in expected)


def check_exact(rank: int, ranks: int, stage: int) -> dict[str, float]:
    """SGD with momentum over the five batches of `stream`: gradients, norms and weights."""
    config = make_config(stage, optimizer="sgd", momentum=0.9, lr=0.9, clip=0.3)
    engine, oracle = make_engine(config, rank, ranks), Oracle(config)
    gradient = norms = 0.0
    for index, (batch, accumulation) in enumerate(stream(seed=10)):
        accumulate(engine, batch, accumulation)
        found = full(engine, "gradients")
        lr = 0.5 / (index + 1)
        result = engine.step(lr)
        _, expected, norm = oracle.step(batch, lr)
        assert result.applied
        gradient = max(gradient, worst(found, expected))
        norms = max(norms, abs(result.norm - norm))
    weights = worst(full(engine, "weights"), {k: p.detach() for k, p in oracle.model.named_parameters()})
    engine.close()
    return {"gradient": gradient, "norm": norms, "weight": weights}


def check_losses(rank: int, ranks: int, stage: int) -> dict[str, float]:
    """AdamW for 20 steps, reduction overlapped with the backward pass: the mean loss of each step."""
    config = make_config(stage, overlap=True, lr=1e-3)
    engine, oracle = make_engine(config, rank, ranks), Oracle(config)
    difference = 0.0
    for batch, accumulation in stream(20) + stream(30) + stream(40) + stream(50):
        total = torch.tensor(accumulate(engine, batch, accumulation), dtype=torch.float64)
        torch.distributed.all_reduce(total)
        engine.step(1e-3)
        difference = max(difference, abs(float(total) - oracle.step(batch, 1e-3)[0]))
    engine.close()
    return {"loss": difference}


def check_skip(rank: int, ranks: int, stage: int) -> dict[str, float]:
    """NaN on the last rank, then infinity in an accumulated micro-batch: skipped everywhere, bitwise, as if never."""
    config = make_config(stage, lr=1e-3)
    engine, oracle = make_engine(config, rank, ranks), Oracle(config)
    batches = stream(60)
    for batch, accumulation in batches[:2]:
        accumulate(engine, batch, accumulation)
        engine.step(1e-3)
        oracle.step(batch, 1e-3)
    before = {(s.name, k): t.clone() for s in owned_slices(engine) for k, t in s.tensors.items()}
    model_before = full(engine, "weights")
    for poison, accumulation in ((math.nan, 1), (math.inf, 2)):
        bad = copy.deepcopy(batches[2][0])
        bad.values["acc"][-1] = poison  # the last sample: it is the last rank's
        accumulate(engine, bad, accumulation)
        result = engine.step(1e-3)
        assert not result.applied
        assert result.norm == math.inf
    after = {(s.name, k): t for s in owned_slices(engine) for k, t in s.tensors.items()}
    assert after.keys() == before.keys()
    assert len({key for _, key in before}) == 3  # master and two moments
    assert all(torch.equal(after[key], before[key]) for key in before)
    model_after = full(engine, "weights")
    assert all(torch.equal(model_after[key], model_before[key]) for key in model_before)
    for batch, accumulation in batches[2:]:
        accumulate(engine, batch, accumulation)
        assert engine.step(1e-3).applied
        oracle.step(batch, 1e-3)
    weights = worst(full(engine, "weights"), {k: p.detach() for k, p in oracle.model.named_parameters()})
    engine.close()
    return {"weight after skips": weights}


def check_bf16(rank: int, ranks: int, stage: int) -> dict[str, float]:
    """Autocast inside the engine: gradients are fp32 and equal those under torch's autocast."""
    config = Config(engine=EngineConfig(zero_stage=stage, precision="bf16"))
    engine = make_engine(config, rank, ranks)
    batch = make_batch(torch.ones(8, 2, dtype=torch.bool), seed=70)
    output = engine(batch, 0)
    assert output["logits"].dtype == torch.float32
    exact = Toy()
    assert not torch.equal(output["logits"], exact(batch)["logits"])  # it does compute in bf16
    # the same samples on every rank: micro-batches are whole batches, so no sum is split
    engine.backward(losses(output, batch).mean(), True)
    found = full(engine, "gradients")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = exact(batch)["logits"].float()
    nn.functional.cross_entropy(logits, batch.target).backward()
    engine.close()
    assert all(gradient.dtype == torch.float32 for gradient in found.values())
    return {"bf16 gradient": worst(found, {k: p.grad for k, p in exact.named_parameters()})}


def check_all(rank: int, ranks: int) -> dict[int, dict[str, float]]:
    return {
        stage: {
            key: value
            for check in (check_exact, check_losses, check_skip, check_bf16)
            for key, value in check(rank, ranks, stage).items()
        }
        for stage in (1, 2, 3)
    }


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_engine_equals_plain_torch(ranks: int) -> None:
    results = run_ranks(check_all, ranks)
    print(results[0])
    for result in results:
        for stage, difference in result.items():
            for name, value in difference.items():
                assert value < (1e-4 if name == "loss" else 1e-5), (stage, name, value)
