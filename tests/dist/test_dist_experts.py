"""MAESTRO with experts spread over ranks, and with its state in the host's memory, against one process."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from ranks import run_ranks
from test_dist_maestro import MODEL, differences, plain, sharded, stream, within_limits

from maestro_dist.config.learning import OptimConfig
from maestro_dist.config.model import ModelConfig
from maestro_dist.config.schema import Config, EngineConfig, MeshConfig

pytestmark = pytest.mark.slow

EXPERT_GRIDS: dict[int, list[tuple[int, int, str]]] = {
    2: [(1, 2, "tokens"), (1, 2, "weights"), (2, 2, "tokens")],
    4: [(1, 2, "tokens"), (2, 4, "tokens"), (2, 2, "weights"), (4, 4, "weights")],
}
"""(sequence ranks, expert ranks, what moves), by world."""
EXPERT_VARIANTS: list[dict[str, Any]] = [
    {"moe": {"experts": 4}},
    # many more experts than some micro-batches have tokens; k = 2; shared; computed again in the backward
    {
        "moe": {"experts": 64, "top_k": 2, "shared": 1, "balance": "bias"},
        "activation_checkpointing": "layers",
        "fusion_layers": 2,
    },
]


OFFLOADS = [(1, "optimizer"), (2, "optimizer"), (3, "optimizer"), (3, "parameters")]


def check_offload(rank: int, ranks: int) -> dict[str, float]:
    """State in the host's memory, with and without experts spread over the ranks."""
    found = {}
    batches, optim = stream(70, 5), OptimConfig(optimizer="sgd", lr=0.1)
    expected = plain(Config(model=MODEL, optim=optim), batches)
    for (stage, offload), expert in itertools.product(OFFLOADS, (1, 2)):
        engine = EngineConfig.model_validate({"zero_stage": stage, "offload": offload})
        config = Config(model=MODEL, optim=optim, mesh=MeshConfig(expert=expert), engine=engine)
        trace = sharded(config, batches, rank, ranks)
        found |= differences(f"offload {offload}, ZeRO {stage}, expert {expert}", trace, expected, exact=True)
    return found


def test_offloaded_state_equals_one_process() -> None:
    within_limits(run_ranks(check_offload, 2))


def check_experts(rank: int, ranks: int) -> dict[str, float]:
    """The same with experts spread over ranks; some of them never get a token."""
    found = {}
    batches, optim = stream(50, 5), OptimConfig(optimizer="sgd", lr=0.1, clip=0.5)
    for number, variant in enumerate(EXPERT_VARIANTS):
        model = ModelConfig.model_validate(MODEL.model_dump() | variant)
        expected = plain(Config(model=model, optim=optim), batches)
        assert number == 0 or any(bool((load.sum(1) == 0).any()) for load in expected.loads)
        stages = (3, 1) if number == 0 else (2,)
        for (sequence, expert, movement), stage in itertools.product(EXPERT_GRIDS[ranks], stages):
            mesh = MeshConfig.model_validate({"sequence": sequence, "expert": expert, "expert_movement": movement})
            config = Config(model=model, optim=optim, mesh=mesh, engine=EngineConfig(zero_stage=stage))
            trace = sharded(config, batches, rank, ranks)
            name = f"{number}, sequence {sequence}, expert {expert} ({movement}), ZeRO {stage}"
            found |= differences(name, trace, expected, exact=True)
    return found


@pytest.mark.parametrize("world", EXPERT_GRIDS)
def test_grids_with_expert_ranks_equal_one_process(world: int) -> None:
    within_limits(run_ranks(check_experts, world))


def check_bf16(rank: int, ranks: int) -> dict[str, float]:
    """Autocast on a grid against fp32 in one process: losses of five steps."""
    batches, optim = stream(90, 5), OptimConfig(optimizer="sgd", lr=0.01)
    expected = plain(Config(model=MODEL, optim=optim), batches)
    found = {}
    for method, stage in (("sparse", 1), ("sparse", 3), ("ulysses", 2)):
        mesh = MeshConfig.model_validate({"sequence": 2, "sequence_method": method, "expert": 2})
        engine = EngineConfig(zero_stage=stage, precision="bf16")
        trace = sharded(Config(model=MODEL, optim=optim, mesh=mesh, engine=engine), batches, rank, ranks)
        pairs = zip(trace.losses, expected.losses, strict=True)
        found[f"{method}, ZeRO {stage}"] = max(abs(one - other) for one, other in pairs)
    return found


def test_bf16_on_a_grid_is_close_to_fp32() -> None:
    for found in run_ranks(check_bf16, 2):
        print(found)
        for name, difference in found.items():
            assert 1e-6 < difference < 2e-2, name  # it is bf16, and no more than that is lost
