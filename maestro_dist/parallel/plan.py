"""The costs of a mesh before a run starts: bytes to collectives in a step, and memory, for each rank.

Arithmetic on configuration, modalities and mesh only: no process group and no model. Letters as in `traffic`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from maestro_dist.config.attention import usable_variants
from maestro_dist.config.model import ModelConfig
from maestro_dist.config.schema import Config
from maestro_dist.model.estimate import expert_hidden, expert_parameters
from maestro_dist.model.memory import STATES, MemoryEstimate, TrainingSetup, memory_estimate
from maestro_dist.parallel.mesh import Mesh
from maestro_dist.parallel.traffic import (
    FLOAT,
    Method,
    Movement,
    Traffic,
    engine_traffic,
    expert_tokens,
    expert_traffic,
    held_slices,
    sequence_traffic,
)
from maestro_dist.types import Modality

_LIVE = 10**9
"""Largest number of parameters that ZeRO 3 leaves gathered (DeepSpeed's default of `max_live_parameters`)."""


class ExpertMovement(NamedTuple):
    """What travels between the ranks of an expert group, and the bytes of both choices per layer and micro-batch.

    `forced`: the configuration sets it.
    """

    movement: Movement
    tokens: int
    weights: int
    forced: bool

    def __str__(self) -> str:
        why = ", as set" if self.forced else ""
        return (
            f"{self.movement} move{why}; a layer and micro-batch: tokens {_size(self.tokens)}, "
            f"weights {_size(self.weights)}"
        )


class ExpertLayerShape(NamedTuple):
    """Sizes of a layer of experts: E experts, k experts per token, width d, hidden width e, b bytes per number."""

    experts: int
    top_k: int
    width: int
    hidden: int
    element_bytes: int = FLOAT


def choose_expert_movement(
    tokens: int, layer: ExpertLayerShape, ranks: int, wanted: Literal["auto", "tokens", "weights"] = "auto"
) -> ExpertMovement:
    """Move tokens to their experts, or the experts' weights to the tokens: the smaller, unless `wanted` decides.

    The bytes are for forward and backward of one layer on one of `ranks` expert ranks with `tokens` tokens (L / P
    of all tokens if the ranks share a sequence). Tokens: 4 tokens k d b; they go and return, and so do their gradients.
    Weights: 6 E d e b; 2 E d e numbers are all-gathered, once more where layers are computed again, and their gradients
    are reduce-scattered. In both cases 1 / N of it stays on the rank. With one expert rank nothing moves: both are 0.
    If they are equal, tokens move.
    """
    moves = ranks > 1
    by_tokens = 4 * tokens * layer.top_k * layer.width * layer.element_bytes * moves
    by_weights = 6 * layer.experts * layer.width * layer.hidden * layer.element_bytes * moves
    least: Movement = "weights" if by_weights < by_tokens else "tokens"
    movement = least if wanted == "auto" else wanted
    return ExpertMovement(movement, by_tokens, by_weights, wanted != "auto")


def plan_expert_movement(config: Config, modalities: Sequence[Modality], mesh: Mesh) -> ExpertMovement:
    """One choice for all ranks and cross-modal layers of a run. Every rank of `mesh` gets the same result.

    It uses the tokens of a complete micro-batch (mean over the layers) on the rank with the most tokens. Tokens and
    weights count as float32, the type in which they enter the experts, also under bf16 autocast.
    """
    model = config.model
    held = max(sum(expert_tokens(model, slices)) for slices in held_slices(model, modalities, mesh.sequence))
    tokens = -(-held * _micro_batch(config, mesh) * _views(config) // max(1, model.fusion_layers))
    layer = ExpertLayerShape(model.moe.experts, model.moe.top_k, model.width, expert_hidden(model))
    return choose_expert_movement(tokens, layer, mesh.expert, config.mesh.expert_movement)


@dataclass(frozen=True)
class RankPlan:
    """An optimizer step on one rank.

    samples        samples of the global batch on this rank
    micro_batches  number of micro-batches (the same on all ranks)
    steps          steps of each modality's window on this rank
    traffic        bytes to collectives in a step, by kind
    attention      bytes of attention by each method of sequence parallelism that the model allows
    memory         bytes on the rank, without the libraries
    gathered       bytes of parameters that exist temporarily: gathered by ZeRO 3, or moved experts
    """

    rank: int
    samples: int
    micro_batches: int
    steps: dict[str, int]
    traffic: tuple[Traffic, ...]
    attention: dict[Method, float]
    memory: MemoryEstimate
    gathered: int

    @property
    def communicated_bytes(self) -> float:
        """Bytes given to collectives in a step."""
        return sum(item.communicated_bytes for item in self.traffic)

    @property
    def sent(self) -> float:
        """Bytes that leave the rank in a step."""
        return sum(item.sent for item in self.traffic)

    @property
    def total_memory(self) -> int:
        """The peak in bytes."""
        return self.memory.total + self.gathered


def plan_world(
    config: Config, modalities: Sequence[Modality], mesh: Mesh, *, parameters: int, label_steps: int = 1
) -> list[RankPlan]:
    """The step of every rank of the world of `mesh`, in rank order.

    `parameters`: number of parameters of the complete model, with all experts. `label_steps`: labels of a window.
    """
    movement = plan_expert_movement(config, modalities, mesh).movement
    slices = held_slices(config.model, modalities, mesh.sequence)
    by_shape: dict[tuple[int, int], RankPlan] = {}
    plans = []
    for rank in range(mesh.world):
        rank_mesh = replace(mesh, rank=rank)
        key = rank_mesh.sequence_rank, len(range(rank_mesh.data_rank, config.optim.global_batch, rank_mesh.data))
        if key not in by_shape:
            plan = _plan_rank(config, modalities, slices[key[0]], rank_mesh, key[1], movement, parameters, label_steps)
            by_shape[key] = plan
        plans.append(replace(by_shape[key], rank=rank))
    return plans


def _plan_rank(
    config: Config, modalities: Sequence[Modality], slices: Sequence[Modality], mesh: Mesh, samples: int,
    movement: Movement, parameters: int, label_steps: int,
) -> RankPlan:  # fmt: skip
    model = config.model
    micro, processed = _micro_batch(config, mesh), samples * _views(config)
    micro_batches = -(-config.optim.global_batch // (mesh.data * micro))
    experts = expert_parameters(model)
    engine = engine_traffic(
        parameters - experts,
        experts,
        world=mesh.world,
        expert_ranks=mesh.expert,
        zero_stage=config.engine.zero_stage,
        micro_batches=micro_batches,
    )
    methods: tuple[Method, ...] = ("sparse", "ulysses")
    shared = {
        method: sequence_traffic(config, modalities, slices, mesh.sequence, method, label_steps) for method in methods
    }
    expert_items = expert_traffic(model, slices, mesh.expert, movement)
    traffic = [
        *(item.times(processed) for item in shared[config.mesh.sequence_method]),
        *(item.times(processed if movement == "tokens" else micro_batches) for item in expert_items),
        *engine,
    ]
    setup = TrainingSetup(
        parameters=parameters,
        micro_batch=micro * _views(config),
        ranks=mesh.world,
        zero_stage=config.engine.zero_stage,
        expert_ranks=mesh.expert,
        exchanges_heads=mesh.sequence > 1 and config.mesh.sequence_method == "ulysses",
        states=STATES + (config.optim.ema is not None),
        pretrain=config.task.pretrain if config.task.kind == "pretrain" else None,
        label_steps=label_steps,
    )
    memory = memory_estimate(model, slices, setup)
    return RankPlan(
        rank=mesh.rank,
        samples=samples,
        micro_batches=micro_batches,
        steps={modality.name: modality.steps for modality in slices},
        traffic=tuple(item for item in traffic if item.communicated_bytes),
        attention={
            method: processed * sum(item.communicated_bytes for item in items if item.name == "attention")
            for method, items in shared.items()
            if _allows(model, mesh.sequence, method)
        },
        memory=memory,
        gathered=_gathered(config, mesh, movement, parameters),
    )


def _allows(model: ModelConfig, ranks: int, method: Method) -> bool:
    """Whether the model's attention can share the time axis by this method."""
    if method == "ulysses":
        return model.heads % ranks == 0
    return bool(usable_variants(model, sequence_ranks=max(2, ranks), exchanges_heads=False))


def _micro_batch(config: Config, mesh: Mesh) -> int:
    return config.engine.micro_batch or -(-config.optim.global_batch // mesh.data)


def _views(config: Config) -> int:
    """How often a step processes each sample: twice with the consistency loss."""
    return 2 if config.missing.consistency else 1


def _gathered(config: Config, mesh: Mesh, movement: Movement, parameters: int) -> int:
    """Bytes of parameters that exist temporarily on a rank, besides its own."""
    model = config.model
    experts = expert_parameters(model)
    held = 0
    if config.engine.zero_stage == 3 and mesh.world > 1:
        held += min(_LIVE, parameters - experts + experts // mesh.expert)
    if mesh.expert > 1 and movement == "weights":
        # weights of all layers, or of one if layers are computed again; and the gradient of one layer
        layer = experts // model.fusion_layers
        held += (layer if model.activation_checkpointing == "layers" else experts) + layer
    return held * FLOAT


def plan_text(mesh: Mesh, plans: Sequence[RankPlan]) -> str:
    """Bytes that the busiest rank gives to collectives in a step, by kind; its groups; the range of the other ranks."""
    busiest = max(plans, key=lambda plan: plan.communicated_bytes)
    own_mesh = replace(mesh, rank=busiest.rank)
    batches = f"{busiest.micro_batches} micro-batch{'es' if busiest.micro_batches > 1 else ''}"
    lines = [
        f"a step of rank {busiest.rank} ({busiest.samples} samples, {batches}), bytes given to collectives; bytes sent"
    ]
    rows = [
        (item.name, f"{item.operation}, {item.ranks:,} ranks", item.communicated_bytes, item.sent)
        for item in busiest.traffic
    ]
    least = min(plan.communicated_bytes for plan in plans)
    others = "as all ranks" if least == busiest.communicated_bytes else f"others from {_size(least)}"
    rows.append(("in all", others, busiest.communicated_bytes, busiest.sent))
    lines += [f"  {name:20} {how:24} {_size(given):>12} {_size(sent):>12}" for name, how, given, sent in rows]
    if mesh.sequence > 1:
        methods = ", ".join(f"{method} {_size(size)}" for method, size in busiest.attention.items())
        lines.append(f"  attention by mesh.sequence_method: {methods}")
    groups = {"time axis": own_mesh.sequence_group}
    if mesh.expert > 1:
        groups |= {"experts": own_mesh.expert_group, "same experts": own_mesh.expert_replicas}
    for name, group in groups.items():
        if len(group) > 1:
            step = f" in steps of {group.step}" if group.step > 1 else ""
            lines.append(f"  {name} shared by ranks {group[0]} to {group[-1]}{step}")
    return "\n".join(lines)


def _size(size: float) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if size >= factor:
            return f"{size / factor:,.2f} {unit}"
    return f"{size / 1e3:,.1f} kB"
