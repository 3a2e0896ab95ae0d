"""Bytes that a rank gives to collectives, from configuration and modalities only.

They are upper limits: samples are assumed to be complete, and budgets to have their largest value.

Letters: P sequence ranks, N expert ranks, W ranks of the world; L tokens of a sample (over all P), U sampled keys, u
selected queries, d width, H heads, d_h = d / H, A = H u d_h, E experts, e their hidden width, k experts per token, b
bytes per number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from maestro_dist.config.model import ModelConfig
from maestro_dist.config.schema import Config
from maestro_dist.config.word_length import word_length
from maestro_dist.model.attention import AttentionShape, AttentionVariant, planned_variant
from maestro_dist.model.attention.variant import SequenceSharding
from maestro_dist.model.estimate import expert_parameters, tokens_by_depth
from maestro_dist.model.summary import EXTREMES, SUMS, spectral_bands
from maestro_dist.parallel.sequence import model_cuts
from maestro_dist.types import Modality

Operation = Literal["all-reduce", "all-gather", "reduce-scatter", "all-to-all"]
Method = Literal["sparse", "ulysses"]
Movement = Literal["tokens", "weights"]

FLOAT = 4


@dataclass(frozen=True)
class Traffic:
    """Bytes of one kind of collective on one rank.

    ranks               ranks of its group
    communicated_bytes  bytes that the rank gives to it, as `collectives.Group` counts them
    """

    name: str
    operation: Operation
    ranks: int
    communicated_bytes: float

    @property
    def sent(self) -> float:
        """Bytes that leave the rank with the usual algorithms (rings, direct exchange)."""
        others = self.ranks - 1
        share = {
            "all-reduce": 2 / self.ranks,
            "all-gather": 1.0,
            "reduce-scatter": 1 / self.ranks,
            "all-to-all": 1 / self.ranks,
        }
        return self.communicated_bytes * others * share[self.operation]

    def times(self, number: float) -> Traffic:
        """The same kind of traffic, `number` times."""
        return replace(self, communicated_bytes=self.communicated_bytes * number)


def attention_traffic(
    variant: AttentionVariant, shape: AttentionShape, sharding: SequenceSharding, held: int, method: Method = "sparse"
) -> list[Traffic]:
    """One attention layer on one sample, forward and backward. This rank holds `held` tokens of the sample.

    sparse: computed by the variant; it does not grow with the length. ulysses: 8 held d b bytes. Queries, keys, values
    and outputs are exchanged, and so are their gradients (a rank with fewer tokens than another pads them).
    """
    ranks = sharding.ranks
    if ranks == 1 or shape.length == 0:
        return []
    if method == "ulysses":
        size = 4 * (sharding.forwards + 1) * held * shape.width * sharding.element_bytes
        return [Traffic("attention", "all-to-all", ranks, size)]
    if not variant.abilities.shares_sequence:
        return []
    collective_bytes = variant.communication(shape, sharding)
    return [
        Traffic("attention", "all-reduce", ranks, collective_bytes.all_reduce),
        Traffic("attention", "all-gather", ranks, collective_bytes.all_gather),
    ]


def sequence_traffic(
    config: Config,
    modalities: Sequence[Modality],
    slices: Sequence[Modality],
    ranks: int,
    method: Method = "sparse",
    label_steps: int = 1,
) -> list[Traffic]:
    """Bytes that the rank with `slices` exchanges for one complete sample, if `ranks` ranks share the time axis.

    attention         all layers; see `attention_traffic`
    neighbour tokens  downsampling takes one token from each side: 8 d bytes forward and 8 d P backward per layer and
                      modality; the stem takes half its kernel
    sums              pooled tokens, 8 (d + 1) bytes per pool, also of each of `label_steps` parts; counts and moments
    """
    model, count = config.model, len(modalities)
    if ranks == 1:
        return []
    forwards = 2 if model.activation_checkpointing == "layers" else 1
    sharding = SequenceSharding(ranks, 2 if config.engine.precision == "bf16" else FLOAT, forwards)
    items: list[Traffic] = []
    for length, local_tokens, factor in _attention_layers(model, modalities, slices):
        shape = AttentionShape.of(model, length, factor)
        items += attention_traffic(planned_variant(model, shape), shape, sharding, local_tokens, method)

    layers = model.encoder_layers + model.fusion_layers
    forward_bytes = backward_bytes = 0.0
    if model.downsample:
        ends = 2 * model.width * FLOAT * layers * count
        masks = 2 * FLOAT * layers * count
        forward_bytes, backward_bytes = forwards * (ends + masks) + masks, ends * ranks
    if model.stem is not None:
        reach = 2 * (model.stem.kernel // 2) * FLOAT
        inner = (model.stem.layers - 1) * model.stem.channels * count
        forward_bytes += forwards * reach * (inner + sum(2 * modality.variates for modality in modalities))
        backward_bytes += reach * inner * ranks
    items += [
        Traffic("neighbour tokens", "all-gather", ranks, forward_bytes),
        Traffic("neighbour tokens", "reduce-scatter", ranks, backward_bytes),
    ]

    gated = model.budget != "fixed" and model.encoder_layers > 0
    pools = 1 + count * ((model.head == "additive") + (gated and model.budget_inputs == "content"))
    if label_steps > 1:
        pools += label_steps * (2 + count * (model.head == "additive"))
    moments = sum(modality.variates * _moments(model, modality) for modality in modalities)
    sums = 2 * pools * (model.width + 1) * FLOAT + 16 * count * (layers + 1) + forwards * moments
    return _merged([*items, Traffic("sums", "all-reduce", ranks, sums)])


def _moments(model: ModelConfig, modality: Modality) -> int:
    """Bytes of a window's count, mean and squares, and of the features of its summary token, for each variate."""
    if model.summary == "none":
        return 24 if model.normalize == "window" else 0
    bands = len(spectral_bands(word_length(model.word, modality.name), model.summary_bands))
    if model.summary != "statistics" and not bands:
        return 24
    return 24 + 8 * (EXTREMES + SUMS + bands)


def expert_traffic(model: ModelConfig, slices: Sequence[Modality], ranks: int, movement: Movement) -> list[Traffic]:
    """Bytes that one of the `ranks` ranks of an expert group exchanges, with `slices` of its samples.

    tokens: for one sample. weights: for one micro-batch, independent of its samples. With checkpoints the bytes of the
    forward counts twice.
    """
    if ranks == 1:
        return []
    forwards = 2 if model.activation_checkpointing == "layers" else 1
    if movement == "tokens":
        tokens = sum(expert_tokens(model, slices))
        communicated_bytes = 2 * (forwards + 1) * tokens * model.moe.top_k * model.width * FLOAT
        return [Traffic("experts: tokens", "all-to-all", ranks, communicated_bytes)]
    weights = expert_parameters(model) * FLOAT
    return [
        Traffic("experts: weights", "all-gather", ranks, forwards * weights / ranks),
        Traffic("experts: weights", "reduce-scatter", ranks, weights),
    ]


def engine_traffic(
    dense: int, experts: int, *, world: int, expert_ranks: int, zero_stage: int, micro_batches: int
) -> list[Traffic]:
    """Bytes that DeepSpeed communicates in one optimizer step, in float32. `dense`, `experts`: numbers of parameters.

    gradients   ZeRO 1: all-reduced once per step, 4 bytes per parameter; ZeRO 2: the same for each micro-batch; ZeRO 3:
                reduce-scattered for each micro-batch
    parameters  ZeRO 1 and 2: each rank's slice, 4 / W bytes per parameter, is gathered after the step; ZeRO 3: for each
                micro-batch in the forward and again in the backward (an upper limit: parameters that stay gathered in
                between count once)

    Dense parameters are shared by all W ranks; a rank's experts, 1 / N of all, by the W / N ranks with the same ones.
    """
    items = []
    times = 1 if zero_stage == 1 else micro_batches
    for name, number, ranks in (
        ("dense", dense, world),
        ("experts", experts // expert_ranks, world // expert_ranks),
    ):
        if not number or ranks == 1:
            continue
        size = number * FLOAT
        operation: Operation = "reduce-scatter" if zero_stage == 3 else "all-reduce"
        gathered = size / ranks * (2 * micro_batches if zero_stage == 3 else 1)
        items.append(Traffic(f"gradients: {name}", operation, ranks, size * times))
        items.append(Traffic(f"parameters: {name}", "all-gather", ranks, gathered))
    return items


def held_slices(config: ModelConfig, modalities: Sequence[Modality], ranks: int) -> list[list[Modality]]:
    """For each sequence rank the modalities with the steps of its slices."""
    if ranks == 1:
        return [list(modalities)]
    cuts = model_cuts(config, modalities, ranks)
    return [
        [replace(modality, steps=cuts[modality.name][rank + 1] - cuts[modality.name][rank]) for modality in modalities]
        for rank in range(ranks)
    ]


def _attention_layers(
    model: ModelConfig, modalities: Sequence[Modality], slices: Sequence[Modality]
) -> Iterator[tuple[int, int, float]]:
    """For each attention layer: tokens of a sample over all ranks, tokens on this rank, factor of the budget."""
    all_tokens = [tokens_by_depth(model, modality) for modality in modalities]
    local_tokens = [tokens_by_depth(model, modality) for modality in slices]
    factor = model.beta * (len(modalities) if model.budget == "reallocate" else 1)
    for depth in range(model.encoder_layers):
        yield from ((total[depth], local[depth], factor) for total, local in zip(all_tokens, local_tokens, strict=True))
    for depth in range(model.encoder_layers, model.encoder_layers + model.fusion_layers):
        yield sum(total[depth] for total in all_tokens), sum(local[depth] for local in local_tokens), model.fusion_beta


def expert_tokens(model: ModelConfig, slices: Sequence[Modality]) -> list[int]:
    """Tokens of a sample in the experts of each cross-modal layer, on a rank with these slices."""
    by_depth = [tokens_by_depth(model, modality) for modality in slices]
    depths = range(model.encoder_layers + 1, model.encoder_layers + model.fusion_layers + 1)
    return [sum(counts[depth] for counts in by_depth) for depth in depths] if model.moe.experts else []


def _merged(items: Sequence[Traffic]) -> list[Traffic]:
    """One item for each (name, operation), in the order of first appearance."""
    sums: dict[tuple[str, str], Traffic] = {}
    for item in items:
        key = item.name, item.operation
        sums[key] = (
            replace(item, communicated_bytes=item.communicated_bytes + sums[key].communicated_bytes)
            if key in sums
            else item
        )
    return list(sums.values())
