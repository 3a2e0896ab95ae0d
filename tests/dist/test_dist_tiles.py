"""Activation checkpointing and tiles under DeepSpeed: 2 ranks at every ZeRO stage against plain torch without them."""

from __future__ import annotations

import pytest
from ranks import run_ranks
from test_dist_engine import worst
from test_dist_maestro import MODEL, plain, sharded, stream

from maestro_dist.config.learning import OptimConfig
from maestro_dist.config.schema import Config, EngineConfig

pytestmark = pytest.mark.slow


def check_stage(rank: int, ranks: int, stage: int) -> dict[str, float]:
    """Largest differences of losses, gradients and weights after three steps, one with accumulation."""
    optim, batches = OptimConfig(optimizer="sgd", lr=0.1), stream(10, 3)
    expected = plain(Config(model=MODEL, optim=optim), batches)
    model = MODEL.model_copy(update={"activation_checkpointing": "layers", "tile": 24})
    trace = sharded(Config(model=model, optim=optim, engine=EngineConfig(zero_stage=stage)), batches, rank, ranks)
    steps = zip(trace.gradients, expected.gradients, strict=True)
    return {
        "loss": max(abs(one - other) for one, other in zip(trace.losses, expected.losses, strict=True)),
        "gradient": max(worst(one, other) for one, other in steps),
        "weight": worst(trace.weights, expected.weights),
    }


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_checkpoints_and_tiles_give_the_same_training(stage: int) -> None:
    for result in run_ranks(check_stage, 2, stage):
        print(result)
        assert all(value < 1e-5 for value in result.values())
