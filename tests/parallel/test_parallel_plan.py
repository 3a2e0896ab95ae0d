"""The plan of a mesh: its formulas, its choice of what experts move, and 1,024 ranks at once."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest

from maestro_dist.config.schema import Config
from maestro_dist.model import TrainingSetup, memory_estimate
from maestro_dist.model.attention import VARIANTS, AttentionShape
from maestro_dist.model.attention.sampling import cap
from maestro_dist.model.attention.variant import SequenceSharding
from maestro_dist.model.estimate import expert_parameters
from maestro_dist.parallel.mesh import build_mesh
from maestro_dist.parallel.plan import (
    ExpertLayerShape,
    RankPlan,
    choose_expert_movement,
    plan_expert_movement,
    plan_text,
    plan_world,
)
from maestro_dist.parallel.traffic import Traffic, attention_traffic, engine_traffic, held_slices
from maestro_dist.types import Modality

SENSORS = [Modality("ecg", 1, 500.0, 1_000_000), Modality("spo2", 1, 1.0, 2_000)]
PARAMETERS = 60_000_000


def make_config(**mesh: Any) -> Config:
    return Config.model_validate(
        {
            "mesh": mesh,
            "model": {"width": 256, "word": 4, "encoder_layers": 2, "moe": {"experts": 64, "top_k": 2}},
            "optim": {"global_batch": 300},
            "engine": {"micro_batch": 1, "zero_stage": 2},
        }
    )


def sparse_traffic(shape: AttentionShape, ranks: int, element_bytes: int = 4) -> list[Traffic]:
    sharding = SequenceSharding(ranks, element_bytes, forwards=1)
    found = [
        attention_traffic(VARIANTS[name], shape, sharding, shape.length // ranks)
        for name in ("plain", "rows", "absorbed")
    ]
    assert found[0] == found[1] == found[2]
    return found[0]


@pytest.mark.parametrize(("length", "measured"), [(65_536, 585e3), (262_144, 657e3)])
def test_sparse_attention_moves_no_token(length: int, measured: float) -> None:
    """d 512, H 8, fp32; the measured figures are those of one layer between two processes."""
    width, heads, selected = 512, 8, cap(5.0, length)
    shape = AttentionShape(length, width, heads, selected, selected)
    items = sparse_traffic(shape, 2)
    handed = sum(item.communicated_bytes for item in items)
    least = 5 * selected * width * 4 + 12 * heads * selected
    assert least < handed < least + 8 * heads * selected + 12 * width
    assert handed == pytest.approx(measured, rel=2e-3)
    half = sum(item.communicated_bytes for item in sparse_traffic(shape, 2, element_bytes=2))
    assert 0.6 * handed < half < 0.8 * handed  # what merges stays float32


def test_ulysses_exchanges_every_token() -> None:
    shape = AttentionShape(262_144, 512, 8, 63, 63)
    for ranks, expected in ((2, 2_147e6), (4, 1_074e6)):
        held, plain = 262_144 // ranks, VARIANTS["plain"]
        (item,) = attention_traffic(plain, shape, SequenceSharding(ranks, 4, 1), held, "ulysses")
        assert item.communicated_bytes == 8 * 262_144 / ranks * 512 * 4
        assert item.communicated_bytes == pytest.approx(expected, rel=1e-3)
        (again,) = attention_traffic(plain, shape, SequenceSharding(ranks, 4, 2), held, "ulysses")
        assert again.communicated_bytes == 1.5 * item.communicated_bytes
    assert sparse_traffic(AttentionShape(1000, 512, 8, 35, 35), 1) == []


def test_what_leaves_a_rank_depends_on_the_operation() -> None:
    sent = {
        operation: Traffic("x", operation, 4, 100.0).sent
        for operation in ("all-reduce", "all-gather", "reduce-scatter")
    }
    assert sent == {"all-reduce": 150.0, "all-gather": 300.0, "reduce-scatter": 75.0}
    assert Traffic("x", "all-to-all", 4, 100.0).sent == 75.0
    assert Traffic("x", "all-gather", 1, 100.0).sent == 0.0


def test_the_smaller_of_tokens_and_weights_moves() -> None:
    few, many = (choose_expert_movement(tokens, ExpertLayerShape(16, 2, 512, 512), 8) for tokens in (1_000, 1_000_000))
    assert (few.movement, few.tokens, few.weights) == ("tokens", 4 * 1_000 * 2 * 512 * 4, 6 * 16 * 512 * 512 * 4)
    assert (many.movement, many.tokens) == ("weights", 1_000 * few.tokens)
    assert str(many) == "weights move; a layer and micro-batch: tokens 16.38 GB, weights 100.66 MB"


def test_a_set_movement_is_kept_with_both_figures() -> None:
    few = choose_expert_movement(1_000, ExpertLayerShape(16, 2, 512, 512), 8, "weights")
    assert few.movement == "weights"
    assert few.tokens < few.weights
    assert "as set" in str(few)


def test_at_equal_cost_and_on_one_rank_tokens_move() -> None:
    # 4 n k d b = 6 E d e b for n k = 1.5 E e
    assert choose_expert_movement(96, ExpertLayerShape(4, 1, 8, 16), 2).movement == "tokens"
    assert choose_expert_movement(97, ExpertLayerShape(4, 1, 8, 16), 2).movement == "weights"
    alone = choose_expert_movement(10**6, ExpertLayerShape(4, 1, 8, 16), 1)
    assert (alone.movement, alone.tokens, alone.weights) == ("tokens", 0, 0)


def test_all_ranks_choose_alike() -> None:
    """One sequence rank holds more than another; a group that disagreed would hang."""
    config = make_config(sequence=3, expert=2)
    meshes = [build_mesh(config.mesh, world=6, rank=rank) for rank in range(6)]
    assert len({plan_expert_movement(config, SENSORS, mesh) for mesh in meshes}) == 1
    forced = make_config(sequence=3, expert=2, expert_movement="weights")
    assert plan_expert_movement(forced, SENSORS, meshes[0]).forced


def test_zero_reduces_and_gathers_by_stage() -> None:
    common: dict[str, Any] = {"world": 8, "expert_ranks": 2, "micro_batches": 3}
    found = {
        stage: {item.name: item for item in engine_traffic(1000, 400, zero_stage=stage, **common)}
        for stage in (1, 2, 3)
    }
    handed = {stage: {name: item.communicated_bytes for name, item in items.items()} for stage, items in found.items()}
    assert handed[1] == {
        "gradients: dense": 4000,
        "parameters: dense": 500,
        "gradients: experts": 800,  # half of the experts, over the four ranks that hold them
        "parameters: experts": 200,
    }
    assert handed[2]["gradients: dense"] == 3 * 4000
    assert handed[2]["parameters: dense"] == 500
    assert handed[3]["parameters: dense"] == 2 * 3 * 500
    assert [found[stage]["gradients: dense"].operation for stage in (1, 2, 3)] == [
        "all-reduce",
        "all-reduce",
        "reduce-scatter",
    ]
    assert {item.ranks for name, item in found[3].items() if "experts" in name} == {4}
    assert engine_traffic(1000, 400, world=1, expert_ranks=1, zero_stage=1, micro_batches=1) == []
    alone = engine_traffic(1000, 400, world=2, expert_ranks=2, zero_stage=1, micro_batches=1)
    assert {item.name for item in alone} == {"gradients: dense", "parameters: dense"}


def test_spread_experts_take_their_share_of_memory() -> None:
    model = make_config().model
    experts = expert_parameters(model)
    assert experts == 64 * 2 * 256 * 256
    sizes: dict[str, Any] = {"parameters": experts + 1000, "micro_batch": 1, "ranks": 16}
    for stage, whole in ((1, 2), (2, 1), (3, 0)):
        spread = memory_estimate(model, SENSORS, TrainingSetup(**sizes, zero_stage=stage, expert_ranks=8)).parameters
        # dense: shared by 16; an eighth of the experts: by the two ranks that hold them
        assert spread == int(4 * (1000 * (whole + (4 - whole) / 16) + experts / 8 * (whole + (4 - whole) / 2)))
        together = memory_estimate(model, SENSORS, TrainingSetup(**sizes, zero_stage=stage)).parameters
        assert spread < together or stage == 3  # there all is shared by 16 ranks either way
    assert together == pytest.approx(spread, rel=1e-3)


@pytest.mark.parametrize(("sequence", "expert"), [(1, 1), (4, 16), (8, 64), (1024, 8)])
def test_1024_ranks_are_planned_in_seconds(sequence: int, expert: int) -> None:
    config = make_config(sequence=sequence, expert=expert)
    config = config.model_copy(update={"optim": config.optim.model_copy(update={"global_batch": 1500})})
    mesh = build_mesh(config.mesh, world=1024)
    start = time.perf_counter()
    plans = plan_world(config, SENSORS, mesh, parameters=PARAMETERS)
    text = plan_text(mesh, plans)
    assert time.perf_counter() - start < 5
    assert [plan.rank for plan in plans] == list(range(1024))
    assert sum(plan.samples for plan in plans) == 1500 * sequence  # sequence ranks share theirs
    for name, steps in ((modality.name, modality.steps) for modality in SENSORS):
        assert {sum(plan.steps[name] for plan in plans[at : at + sequence]) for at in range(0, 1024, sequence)} == {
            steps
        }
    assert all(plan.total_memory > plan.memory.parameters > 0 and plan.communicated_bytes > 0 for plan in plans)
    assert "gradients: dense" in text
    assert ("attention" in text) == (sequence > 1)


def test_a_rank_with_more_samples_communicates_more() -> None:
    config = make_config(sequence=2, expert=2)
    plans = plan_world(config, SENSORS, build_mesh(config.mesh, world=64), parameters=PARAMETERS)
    assert (plans[0].samples, plans[-1].samples) == (10, 9)
    assert plans[0].micro_batches == plans[-1].micro_batches == 10
    attention = [
        sum(item.communicated_bytes for item in plan.traffic if item.name == "attention")
        for plan in (plans[0], plans[-1])
    ]
    assert attention[0] == pytest.approx(attention[1] * 10 / 9)
    assert "others from" in plan_text(build_mesh(config.mesh, world=64), plans)


def test_longer_windows_cost_ulysses_more_and_sparse_attention_no_more() -> None:
    config = make_config(sequence=8)
    mesh = build_mesh(config.mesh, world=8)
    short, long = (
        plan_world(config, [replace(m, steps=m.steps * times) for m in SENSORS], mesh, parameters=PARAMETERS)[0]
        for times in (1, 4)
    )
    assert long.attention["ulysses"] == pytest.approx(4 * short.attention["ulysses"], rel=0.01)
    assert long.attention["sparse"] < 1.15 * short.attention["sparse"]
    assert long.communicated_bytes < 1.15 * short.communicated_bytes


def test_the_method_in_use_is_the_one_that_is_counted() -> None:
    for method in ("sparse", "ulysses"):
        config = make_config(sequence=8, sequence_method=method)
        plan = plan_world(config, SENSORS, build_mesh(config.mesh, world=8), parameters=PARAMETERS)[0]
        counted = sum(item.communicated_bytes for item in plan.traffic if item.name == "attention")
        assert counted == pytest.approx(plan.attention[method])
    config = make_config(sequence=16)  # more than heads: Ulysses could not
    plan = plan_world(config, SENSORS, build_mesh(config.mesh, world=16), parameters=PARAMETERS)[0]
    assert list(plan.attention) == ["sparse"]


def test_moved_weights_and_gathered_parameters_take_memory() -> None:
    config = make_config(expert=8, expert_movement="weights")
    mesh = build_mesh(config.mesh, world=16)
    experts = expert_parameters(config.model)
    assert plan_world(config, SENSORS, mesh, parameters=PARAMETERS)[0].gathered == 2 * 4 * experts
    third = config.model_copy(update={"engine": config.engine.model_copy(update={"zero_stage": 3})})
    own = PARAMETERS - experts + experts // 8
    assert plan_world(third, SENSORS, mesh, parameters=PARAMETERS)[0].gathered == 4 * (2 * experts + own)


def test_an_average_and_two_views_are_counted() -> None:
    config = make_config(sequence=2)
    mesh = build_mesh(config.mesh, world=4)

    def planned(section: str, **changes: float) -> RankPlan:
        changed = config.model_copy(update={section: getattr(config, section).model_copy(update=changes)})
        return plan_world(changed, SENSORS, mesh, parameters=PARAMETERS)[0]

    plain, average, twice = planned("optim"), planned("optim", ema=0.99), planned("missing", consistency=1.0)
    assert average.memory.parameters == plain.memory.parameters + 4 * PARAMETERS // 4  # ranks share it
    assert average.memory.peak == plain.memory.peak
    assert twice.memory.inputs == 2 * plain.memory.inputs
    assert twice.memory.kept == pytest.approx(2 * plain.memory.kept)
    assert (twice.samples, twice.micro_batches) == (plain.samples, plain.micro_batches)
    attention = [sum(item.communicated_bytes for item in p.traffic if item.name == "attention") for p in (plain, twice)]
    assert attention[1] == 2 * attention[0]


def test_slices_cover_a_window() -> None:
    slices = held_slices(make_config().model, SENSORS, 7)
    assert [sum(part[at].steps for part in slices) for at in range(2)] == [m.steps for m in SENSORS]
    assert held_slices(make_config().model, SENSORS, 1) == [SENSORS]
