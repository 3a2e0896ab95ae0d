"""Memory of a training step, known before training. Arithmetic on the configuration only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from maestro_dist.config.learning import PretrainConfig
from maestro_dist.config.model import ModelConfig
from maestro_dist.config.word_length import hidden_word_length
from maestro_dist.model.attention import AttentionShape, planned_variant
from maestro_dist.model.attention.variant import AttentionMemory, stores_probabilities
from maestro_dist.model.embedding import word_steps
from maestro_dist.model.estimate import expert_hidden, expert_parameters, tokens_by_depth
from maestro_dist.model.stem import stem_steps
from maestro_dist.types import Modality

_FLOAT = 4
STATES = 4
"""Copies of the parameters in training: weight, gradient, and AdamW's two moments."""

_LARGE = 32 << 20
_GAPS, _GAPS_AGAIN, _GAPS_MAPPED = 1.55, 1.9, 1.1
"""Memory for each byte in use: it includes small arrays that are not counted, and gaps between arrays.

The C library maps arrays of 32 MiB and more separately, without gaps. Smaller arrays are on a heap that never shrinks
and has gaps, more of them where layers are computed again. `run.allocator_cache: small` and huge pages change the peak
of a process by up to a fifth.
"""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one rank, without the libraries.

    parameters  weights, gradients and the optimizer's moments
    inputs      the micro-batch
    kept        everything that the forward stores for the backward
    live        largest sum of arrays at any time in forward or backward
    peak        memory that these arrays take on a CPU, with the gaps between them
    """

    parameters: int
    inputs: int
    kept: int
    live: int
    peak: int

    @property
    def total(self) -> int:
        """Parameters, inputs and peak together."""
        return self.parameters + self.inputs + self.peak


@dataclass(frozen=True)
class _MemorySegment:
    """A part of the model that is computed together, and with checkpoints recomputed together. Sizes in floats.

    array          one array as wide as its tokens
    enters         its input, which is needed until its gradient is computed
    kept           bytes that it stores besides the input, without checkpoints
    forward_peak   peak in its forward, without the input
    backward_peak  peak in its backward, without the input
    """

    array: float
    enters: float
    kept: float
    forward_peak: float
    backward_peak: float

    @property
    def mapped(self) -> bool:
        """Whether the C library maps each of its arrays separately."""
        return self.array * _FLOAT >= _LARGE


@dataclass(frozen=True)
class TrainingSetup:
    """Settings that decide the memory of a training step, besides the model and its inputs.

    parameters       number of parameters of the complete model, with all experts
    micro_batch      samples that a rank processes at a time
    ranks            ranks over which ZeRO shards
    zero_stage       1, 2 or 3
    expert_ranks     ranks (a divisor of `ranks`) that each hold a part of the experts; the ranks with the same part
                     share what ZeRO shards of it
    exchanges_heads  attention gets whole sequences for some of the heads (Ulysses); the modalities are then the slices
                     of this rank
    states           copies of the parameters: five with an average of the weights
    pretrain         given for pre-training: a decoder of masked words replaces the heads
    label_steps      parts of a window that are predicted one by one
    """

    parameters: int
    micro_batch: int
    ranks: int = 1
    zero_stage: int = 1
    expert_ranks: int = 1
    exchanges_heads: bool = False
    states: int = STATES
    pretrain: PretrainConfig | None = None
    label_steps: int = 1


def memory_estimate(config: ModelConfig, modalities: Sequence[Modality], setup: TrainingSetup) -> MemoryEstimate:
    """Bytes of a training step on one rank, for complete samples in fp32.

    The model is a list of segments in their order: embeddings, then for each layer its attention and the rest. Arrays
    that are kept accumulate in the forward and are freed one by one in the backward. The work inside the current
    segment is added to both. With checkpoints a segment keeps only its input, and its backward starts with its forward.
    Tokens are assumed to be spread evenly over the experts.
    """
    micro_batch, pretrain = setup.micro_batch, setup.pretrain
    recompute = config.activation_checkpointing == "layers"
    segments = _segments(config, modalities, micro_batch, setup.exchanges_heads)
    if pretrain is not None:
        segments = [_hidden(modalities, micro_batch), *segments, *_decoder(config, pretrain, modalities, micro_batch)]
    elif setup.label_steps > 1:
        segments.append(_over_time(config, modalities, micro_batch, setup.label_steps))
    heap, mapped = ([part for part in segments if part.mapped == kind] for kind in (False, True))
    gaps = _GAPS_AGAIN if recompute else _GAPS
    kept, live = _kept_and_peak(segments, recompute)
    peak = gaps * _kept_and_peak(heap, recompute)[1] + _GAPS_MAPPED * _kept_and_peak(mapped, recompute)[1]
    unsharded = {1: 2, 2: 1, 3: 0}[setup.zero_stage]
    expert_share = expert_parameters(config) if setup.expert_ranks > 1 else 0
    held = 0.0
    for number, sharing in (
        (setup.parameters - expert_share, setup.ranks),
        (expert_share / setup.expert_ranks, setup.ranks / setup.expert_ranks),
    ):
        held += number * (unsharded + (setup.states - unsharded) / sharing)
    inputs = micro_batch * sum(modality.steps * modality.variates for modality in modalities)
    sizes = (held, inputs, kept, live, peak)
    return MemoryEstimate(*(int(size * _FLOAT) for size in sizes))


def _kept_and_peak(segments: list[_MemorySegment], recompute: bool) -> tuple[float, float]:
    """Floats that `segments`, in their order, store between forward and backward, and their peak."""
    alive, peak = 0.0, 0.0
    for segment in segments:
        peak = max(peak, alive + segment.enters + segment.forward_peak)
        alive += segment.enters + (0.0 if recompute else segment.kept)
    kept, leaving = alive, 0.0
    for segment in reversed(segments):
        alive -= 0.0 if recompute else segment.kept
        peak = max(peak, alive + max(segment.backward_peak, leaving + segment.forward_peak if recompute else 0.0))
        alive -= segment.enters
        leaving = segment.enters
    return kept, peak


def _segments(
    config: ModelConfig, modalities: Sequence[Modality], samples: int, exchanges_heads: bool
) -> list[_MemorySegment]:
    embeddings, encoders, fusion, entering = [], [], [], []
    for modality in modalities:
        lengths = tokens_by_depth(config, modality)
        embeddings.append(_embedding(config, modality, samples, lengths[0]))
        for depth in range(config.encoder_layers):
            attention = _attention(config, lengths[depth], config.beta, exchanges_heads)
            encoders += _layer(config, samples, lengths[depth], lengths[depth + 1], attention, experts=False)
        entering.append(lengths[config.encoder_layers :])
    for depth in range(config.fusion_layers):
        before, after = (sum(lengths[level] for lengths in entering) for level in (depth, depth + 1))
        attention = _attention(config, before, config.fusion_beta, exchanges_heads)
        fusion += _layer(config, samples, before, after, attention, experts=bool(config.moe.experts))
    tokens = samples * config.width * float(sum(lengths[0] for lengths in entering))
    codes = tokens / samples
    # all modalities' tokens concatenated, their codes, and the sum of both; the pools read them
    kept = tokens if config.head == "additive" else 0.0
    joined = _MemorySegment(tokens, tokens, kept, tokens + codes + max(2 * codes, 2 * tokens), kept + 2.0 * tokens)
    return [*embeddings, *encoders, joined, *fusion]


def _embedding(config: ModelConfig, modality: Modality, samples: int, tokens: int) -> _MemorySegment:
    """Samples of the words with their mask if they are needed, and the inputs and values of the stem."""
    steps, variates, width = samples * modality.steps, modality.variates, config.width
    words = samples * tokens
    symbols = words * variates * (1.0 if config.embedding == "ordinal" else 2.0)
    kept, work = symbols, 0.0
    if config.embedding == "patch":
        kept += 2.0 * steps * variates
        work += 3.0 * steps * variates
    if config.stem is not None:
        channels, word = config.stem.channels, word_steps(config, modality.name)
        step_shares = [part / word for part in stem_steps(config.stem, word)]  # of all steps, into each convolution
        kept += steps * (2 * variates + (sum(step_shares) + sum(step_shares[1:])) * channels) + words * channels
        work += 3.0 * steps * channels
    if config.summary != "none":
        work += (7.0 if config.summary_bands else 4.0) * steps * variates
    codes = tokens * width  # of the words' times, the same for all samples
    forward_peak = words * width + max(3.0 * codes, codes + words * width)
    return _MemorySegment(words * width, 0.0, kept, kept + work + forward_peak, kept + work + words * width)


def _hidden(modalities: Sequence[Modality], samples: int) -> _MemorySegment:
    """A copy of the raw windows with gaps where words are hidden."""
    values = float(samples * sum(modality.steps * modality.variates for modality in modalities))
    return _MemorySegment(values, 0.0, values, 2 * values, 0.0)


def _decoder(
    config: ModelConfig, pretrain: PretrainConfig, modalities: Sequence[Modality], samples: int
) -> list[_MemorySegment]:
    """Cross attention of the words to predict over the inputs and the outputs of the cross-modal layers."""
    width, predicted, symbols = config.width, 0, 0
    for modality in modalities:
        word = hidden_word_length(pretrain, modality.name, word_steps(config, modality.name))
        count = min(pretrain.predict, -(-modality.steps // word))
        predicted, symbols = predicted + count, symbols + count * modality.variates
    lengths = [tokens_by_depth(config, modality) for modality in modalities]
    depths = [config.encoder_layers, config.encoder_layers + config.fusion_layers]
    segments = []
    for depth in depths if config.fusion_layers else depths[:1]:
        tokens = sum(counts[depth] for counts in lengths)
        # keys and values, padded to samples, are stored; one is padded at a time, and all have gradients
        array = float(samples * tokens * width)
        stores = stores_probabilities(
            config.keep_attention_weights, AttentionShape(tokens, width, config.heads, 0, predicted)
        )
        kept = (
            2 * array
            + (samples * config.heads * predicted * tokens if stores else 0)
            + 3.0 * samples * predicted * width
        )
        segments.append(_MemorySegment(array, 0.0, kept, kept + array, kept + 3 * array))
    queries, scores = float(samples * predicted * width), float(samples * symbols * config.alphabet)
    kept = 8 * queries + 2 * scores  # norms and feed-forward; scores and the logarithms of their probabilities
    segments.append(_MemorySegment(queries, 0.0, kept, kept + queries + scores, kept + 3 * queries + 2 * scores))
    return segments


def _over_time(config: ModelConfig, modalities: Sequence[Modality], samples: int, steps: int) -> _MemorySegment:
    """Tokens of all parts of the windows at two or three depths, and what the heads see of each part."""
    lengths = [tokens_by_depth(config, modality) for modality in modalities]
    additive = config.head == "additive"
    depths = [0, *([config.encoder_layers] if additive else []), config.encoder_layers + config.fusion_layers]
    pairs = float(sum(counts[depth] + steps for depth in depths for counts in lengths))
    seen = 3.0 * steps + (2.0 * steps * len(lengths) if additive else 0.0)
    width = samples * config.width
    embedded, largest = sum(counts[0] for counts in lengths), sum(counts[0] + steps for counts in lengths)
    kept = width * (embedded + pairs + seen)
    return _MemorySegment(width * largest, 0.0, kept, kept + 2.0 * width * largest, kept + 3.0 * width * largest)


def _layer(
    config: ModelConfig, samples: int, before: int, after: int, attention: AttentionMemory, *, experts: bool
) -> list[_MemorySegment]:
    """Attention, residual, norm and downsampling of `before` tokens per sample; then the rest on `after` tokens."""
    width, entering, leaving = float(config.width), float(samples * before), float(samples * after)
    small = 6.0  # per token: statistics of the norm, keys of draws
    halves = after / before * width if config.downsample and before else 0.0
    # the residual sum; for downsampling its norm too
    kept = attention.kept + small + width * (2 if config.downsample else 1)
    normed = attention.kept + small + 3 * width  # branch, sum and norm
    attend = _MemorySegment(
        entering * width,
        entering * width,
        entering * kept,
        entering * max(attention.forward_peak, normed + 3 * halves),
        entering * max(normed + 4 * halves, normed + width, width + attention.backward_peak),
    )
    hidden = round(config.feedforward * width)
    # in the forward and in the backward, without the kept floats
    tiles = _MemorySegment(0.0, 0.0, 0.0, 0.0, 0.0)
    if experts:
        hidden = expert_hidden(config)
        rows = config.moe.top_k
        kept = leaving * (rows * (2 * width + 2 * hidden + 6) + config.moe.experts + config.moe.shared * hidden)
        forward_peak = backward_peak = leaving * rows * (2 * width + hidden)
    else:
        tile = min(leaving, config.tile or 0) * hidden
        kept = 0.0 if config.tile else leaving * hidden
        tiles = _MemorySegment(tile, 0.0, 0.0, 2 * tile, 3 * tile)
        forward_peak = backward_peak = leaving * width
    kept += leaving * small
    feed = _MemorySegment(
        leaving * width,
        leaving * width,
        kept + leaving * width,
        kept + max(forward_peak, 3 * leaving * width),
        kept + max(2 * leaving * width + backward_peak, 4 * leaving * width),
    )
    if tiles.mapped and not feed.mapped:
        return [attend, feed, tiles]
    return [
        attend,
        replace(
            feed,
            forward_peak=feed.forward_peak + tiles.forward_peak,
            backward_peak=feed.backward_peak + tiles.backward_peak,
        ),
    ]


def _attention(config: ModelConfig, length: int, factor: float, exchanges_heads: bool) -> AttentionMemory:
    """Floats of attention over `length` tokens, or over the slice of a rank that exchanges heads."""
    shape = AttentionShape.of(config, length, factor)
    variant = planned_variant(config, shape, exchanges_heads=exchanges_heads)
    return variant.memory(shape, keep_attention_weights=config.keep_attention_weights, exchanges_heads=exchanges_heads)
