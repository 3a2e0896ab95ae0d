"""Sizes that can be told before training: tokens a sample, parameters, bytes of memory.

Pure arithmetic on the configuration: no model is built and nothing is allocated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn

from maestro_dist.config.learning import PretrainConfig
from maestro_dist.config.model import ModelConfig
from maestro_dist.config.words import hidden_word_of
from maestro_dist.model import cost
from maestro_dist.model.embedding import stem_steps, word_steps
from maestro_dist.model.sampling import cap
from maestro_dist.types import Modality

_FLOAT = 4
STATES = 4
"""Copies of the parameters in training: weight, gradient, and AdamW's two moments."""

_LARGE = 32 << 20
_GAPS, _GAPS_AGAIN, _GAPS_MAPPED = 1.55, 1.9, 1.1
"""Memory taken for each byte in use: small arrays that are not counted, and gaps between arrays.

Measured after several steps. The C library maps arrays of 32 MiB and more by themselves, so they leave no gaps. Smaller
ones lie on a heap that keeps the most it ever held, with gaps, most of them where layers are computed again. Freed
memory that is kept (`run.keep_memory: small`) and huge pages move the peak, from one process to the next, by up to a
fifth either way.
"""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one rank, beside the libraries.

    parameters  weights, gradients and the optimizer's moments
    inputs      the micro-batch itself
    kept        what the forward keeps for the backward, all of it
    live        most that lives at a time in forward or backward: what is kept then, and the work in hand
    peak        memory that this takes on a CPU, with the gaps between arrays
    """

    parameters: int
    inputs: int
    kept: int
    live: int
    peak: int

    @property
    def total(self) -> int:
        """The most at a time."""
        return self.parameters + self.inputs + self.peak


@dataclass(frozen=True)
class _Segment:
    """A part of the model that is computed, and with checkpoints computed again, as one. In floats.

    array   one array as wide as its tokens
    enters  its input, which lives on as long as its gradient is wanted
    kept    what it keeps besides, without checkpoints
    ahead   most that lives at a time in its forward besides its input
    back    most that lives at a time in its backward besides its input
    """

    array: float
    enters: float
    kept: float
    ahead: float
    back: float

    @property
    def mapped(self) -> bool:
        """Whether the C library maps each of its arrays by itself."""
        return self.array * _FLOAT >= _LARGE


def count_parameters(model: nn.Module) -> int:
    """Number of parameters, also when ZeRO 3 has partitioned them."""
    return sum(int(getattr(parameter, "ds_numel", parameter.numel())) for parameter in model.parameters())


def tokens_by_modality(config: ModelConfig, modalities: Sequence[Modality]) -> dict[str, int]:
    """Tokens that each modality of a complete sample enters the model with, its summary token included."""
    lead = int(config.summary != "none")
    return {m.name: -(-m.steps // word_steps(config, m.name)) + lead for m in modalities}


def tokens_per_sample(config: ModelConfig, modalities: Sequence[Modality]) -> int:
    """Tokens of a complete sample that enter the first layers, summary tokens included."""
    return sum(tokens_by_modality(config, modalities).values())


def expert_parameters(config: ModelConfig) -> int:
    """Number of parameters of all routed experts of all layers: those that `mesh.expert` spreads over ranks."""
    return config.fusion_layers * config.moe.experts * 2 * config.width * expert_hidden(config)


def forward_operations(config: ModelConfig, modalities: Sequence[Modality]) -> int:
    """Floating-point operations of matrix products in the forward of one complete sample."""
    width, total = config.width, 0.0
    depths = [tokens_by_depth(config, modality) for modality in modalities]
    for depth in range(config.encoder_layers + config.fusion_layers):
        fusion = depth >= config.encoder_layers
        hidden, times = round(config.feedforward * width), 1
        if fusion and config.moe.experts:
            hidden, times = expert_hidden(config), config.moe.top_k + config.moe.shared
        groups = [depths] if fusion else [[own] for own in depths]
        for group in groups:
            before, after = (sum(own[at] for own in group) for at in (depth, depth + 1))
            attended = before if config.attention == "dense" else cap(config.beta, before)
            total += before * width * (8 * width + 4 * attended + 2 * cap(config.sample_factor, before))
            total += after * width * (4 * hidden * times + 6 * width * config.distil)
    if config.stem is not None:
        channels, kernel = config.stem.channels, config.stem.kernel
        for modality in modalities:
            word = word_steps(config, modality.name)
            inputs = [2 * modality.variates] + [channels] * (config.stem.layers - 1)
            work = sum(size * steps / word for size, steps in zip(inputs, stem_steps(config.stem, word), strict=True))
            total += 2 * modality.steps * kernel * channels * work
    return max(1, int(total))


def expert_hidden(config: ModelConfig) -> int:
    """Hidden width e of an expert, in numbers."""
    return max(1, round(config.moe.hidden * config.width))


def memory_estimate(
    config: ModelConfig,
    modalities: Sequence[Modality],
    *,
    parameters: int,
    micro_batch: int,
    ranks: int = 1,
    zero_stage: int = 1,
    experts_ranks: int = 1,
    swaps: bool = False,
    states: int = STATES,
    pretrain: PretrainConfig | None = None,
) -> MemoryEstimate:
    """Bytes of a training step on one rank, complete samples, fp32.

    `parameters`: number of those of the whole model; `micro_batch`: samples a rank takes at a time; `ranks` share what
    `zero_stage` shards. `experts_ranks` (it divides `ranks`) hold a part of the experts each, and the ranks with the
    same part share what `zero_stage` shards of it. Tokens are taken to be spread evenly over the experts.
    `states`: copies of the parameters, five with an average of the weights.
    `swaps`: attention gets whole sequences for some of the heads, `modalities` being this rank's slices.
    `pretrain`: a decoder that is asked for hidden words stands in place of the heads (`task.kind: pretrain`).
    The model is taken as segments in their order (embeddings, then each layer's attention and what follows it): kept
    arrays pile up in the forward and go one by one in the backward, and to both comes the work inside the segment at
    hand. With checkpoints a segment keeps its input alone, and its backward starts with its forward.
    """
    again = config.checkpoint == "layers"
    segments = _segments(config, modalities, micro_batch, swaps)
    if pretrain is not None:
        segments = [_hidden(modalities, micro_batch), *segments, *_decoder(config, pretrain, modalities, micro_batch)]
    heap, mapped = ([part for part in segments if part.mapped == kind] for kind in (False, True))
    gaps = _GAPS_AGAIN if again else _GAPS
    kept, live = _most(segments, again)
    peak = gaps * _most(heap, again)[1] + _GAPS_MAPPED * _most(mapped, again)[1]
    whole = {1: 2, 2: 1, 3: 0}[zero_stage]
    spread = expert_parameters(config) if experts_ranks > 1 else 0
    held = 0.0
    for number, sharing in ((parameters - spread, ranks), (spread / experts_ranks, ranks / experts_ranks)):
        held += number * (whole + (states - whole) / sharing)
    inputs = micro_batch * sum(modality.steps * modality.variates for modality in modalities)
    sizes = (held, inputs, kept, live, peak)
    return MemoryEstimate(*(int(size * _FLOAT) for size in sizes))


def _most(segments: list[_Segment], again: bool) -> tuple[float, float]:
    """What `segments`, in their order, keep between forward and backward, and the most that lives of them at a time."""
    alive, peak = 0.0, 0.0
    for segment in segments:
        peak = max(peak, alive + segment.enters + segment.ahead)
        alive += segment.enters + (0.0 if again else segment.kept)
    kept, leaving = alive, 0.0
    for segment in reversed(segments):
        alive -= 0.0 if again else segment.kept
        peak = max(peak, alive + max(segment.back, leaving + segment.ahead if again else 0.0))
        alive -= segment.enters
        leaving = segment.enters
    return kept, peak


def _segments(config: ModelConfig, modalities: Sequence[Modality], samples: int, swaps: bool) -> list[_Segment]:
    embeddings, encoders, fusion, entering = [], [], [], []
    for modality in modalities:
        lengths = tokens_by_depth(config, modality)
        embeddings.append(_embedding(config, modality, samples, lengths[0]))
        for depth in range(config.encoder_layers):
            attention = attention_floats(config, lengths[depth], config.beta, swaps=swaps)
            encoders += _layer(config, samples, lengths[depth], lengths[depth + 1], attention, experts=False)
        entering.append(lengths[config.encoder_layers :])
    for depth in range(config.fusion_layers):
        before, after = (sum(lengths[at] for lengths in entering) for at in (depth, depth + 1))
        attention = attention_floats(config, before, config.fusion_beta, swaps=swaps)
        fusion += _layer(config, samples, before, after, attention, experts=bool(config.moe.experts))
    tokens = samples * config.width * float(sum(lengths[0] for lengths in entering))
    codes = tokens / samples
    # all modalities' tokens joined, their codes, and with these the pieces of the sum and the sum; the pools read them
    kept = tokens if config.head == "additive" else 0.0
    joined = _Segment(tokens, tokens, kept, tokens + codes + max(2 * codes, 2 * tokens), kept + 2.0 * tokens)
    return [*embeddings, *encoders, joined, *fusion]


def _embedding(config: ModelConfig, modality: Modality, samples: int, tokens: int) -> _Segment:
    """From raw windows: words' samples with their mask where they are wanted, the stem's inputs and values."""
    steps, variates, width = samples * modality.steps, modality.variates, config.width
    words = samples * tokens
    symbols = words * variates * (1.0 if config.embedding == "ordinal" else 2.0)
    kept, work = symbols, 0.0
    if config.embedding == "patch":
        kept += 2.0 * steps * variates
        work += 3.0 * steps * variates
    if config.stem is not None:
        channels, word = config.stem.channels, word_steps(config, modality.name)
        through = [part / word for part in stem_steps(config.stem, word)]  # of all steps, into each convolution
        kept += steps * (2 * variates + (sum(through) + sum(through[1:])) * channels) + words * channels
        work += 3.0 * steps * channels
    if config.summary != "none":
        work += (7.0 if config.summary_bands else 4.0) * steps * variates
    codes = tokens * width  # of the words' times, the same for all samples
    ahead = words * width + max(3.0 * codes, codes + words * width)
    return _Segment(words * width, 0.0, kept, kept + work + ahead, kept + work + words * width)


def _hidden(modalities: Sequence[Modality], samples: int) -> _Segment:
    """The raw windows with gaps where words are hidden, beside the whole ones."""
    values = float(samples * sum(modality.steps * modality.variates for modality in modalities))
    return _Segment(values, 0.0, values, 2 * values, 0.0)


def _decoder(
    config: ModelConfig, pretrain: PretrainConfig, modalities: Sequence[Modality], samples: int
) -> list[_Segment]:
    """Cross attention of the words asked for over the tokens that enter the cross-modal layers, and that leave them."""
    width, asked, symbols = config.width, 0, 0
    for modality in modalities:
        word = hidden_word_of(pretrain, modality.name, word_steps(config, modality.name))
        most = min(pretrain.predict, -(-modality.steps // word))
        asked, symbols = asked + most, symbols + most * modality.variates
    lengths = [tokens_by_depth(config, modality) for modality in modalities]
    depths = [config.encoder_layers, config.encoder_layers + config.fusion_layers]
    segments = []
    for depth in depths if config.fusion_layers else depths[:1]:
        tokens = sum(own[depth] for own in lengths)
        # keys and values, padded to samples, are kept; one is padded at a time, and all have gradients
        array = float(samples * tokens * width)
        keeps = cost.keeps_scores(config.keep_scores, width, config.heads, asked)
        kept = 2 * array + (samples * config.heads * asked * tokens if keeps else 0) + 3.0 * samples * asked * width
        segments.append(_Segment(array, 0.0, kept, kept + array, kept + 3 * array))
    queries, scores = float(samples * asked * width), float(samples * symbols * config.alphabet)
    kept = 8 * queries + 2 * scores  # norms and feed-forward; scores and the logarithms of their probabilities
    segments.append(_Segment(queries, 0.0, kept, kept + queries + scores, kept + 3 * queries + 2 * scores))
    return segments


def _layer(
    config: ModelConfig, samples: int, before: int, after: int, attention: AttentionFloats, *, experts: bool
) -> list[_Segment]:
    """Attention with residual, norm and downsampling of `before` tokens a sample; then what follows on `after`."""
    width, entering, leaving = float(config.width), float(samples * before), float(samples * after)
    small = 6.0  # of a token: statistics of the norm, keys of draws
    halves = after / before * width if config.distil and before else 0.0
    # the residual sum; for downsampling its norm too
    kept = attention.kept + small + width * (2 if config.distil else 1)
    normed = attention.kept + small + 3 * width  # branch, sum and norm
    attend = _Segment(
        entering * width,
        entering * width,
        entering * kept,
        entering * max(attention.ahead, normed + 3 * halves),
        entering * max(normed + 4 * halves, normed + width, width + attention.back),
    )
    hidden = round(config.feedforward * width)
    # besides what is kept, in the forward and in the backward
    tiles = _Segment(0.0, 0.0, 0.0, 0.0, 0.0)
    if experts:
        hidden = expert_hidden(config)
        rows = config.moe.top_k
        kept = leaving * (rows * (2 * width + 2 * hidden + 6) + config.moe.experts + config.moe.shared * hidden)
        ahead = back = leaving * rows * (2 * width + hidden)
    else:
        tile = min(leaving, config.tile or 0) * hidden
        kept = 0.0 if config.tile else leaving * hidden
        tiles = _Segment(tile, 0.0, 0.0, 2 * tile, 3 * tile)
        ahead = back = leaving * width
    kept += leaving * small
    feed = _Segment(
        leaving * width,
        leaving * width,
        kept + leaving * width,
        kept + max(ahead, 3 * leaving * width),
        kept + max(2 * leaving * width + back, 4 * leaving * width),
    )
    if tiles.mapped and not feed.mapped:
        return [attend, feed, tiles]
    return [attend, replace(feed, ahead=feed.ahead + tiles.ahead, back=feed.back + tiles.back)]


@dataclass(frozen=True)
class AttentionFloats:
    """Floats a token that attention keeps, and the most at a time, these included, in its forward and backward."""

    kept: float
    ahead: float
    back: float


def attention_floats(config: ModelConfig, length: int, factor: float, *, swaps: bool = False) -> AttentionFloats:
    """Floats of attention over `length` tokens; with `swaps` the slice of a rank, exchanged for some of the heads."""
    width, heads = config.width, config.heads
    sampled, selected = cap(config.sample_factor, length), cap(factor, length)
    form: str = "dense" if config.attention == "dense" else config.attention_form
    if form == "auto" and swaps:
        form = "plain"
    elif form == "auto":
        form = cost.choose(length, width, heads, sampled, selected, training=True).form
    keeps = form != "dense" and cost.keeps_scores(config.keep_scores, width, heads, selected)
    scores = heads * (selected + 1.0) if keeps else 0.0
    kept, ahead, back = (arrays * width + scores + heads for arrays in (_SWAPPED if swaps else _FORMS)[form])
    return AttentionFloats(kept, ahead, back)


_FORMS = {"dense": (5.0, 9.0, 12.0), "plain": (4.0, 5.0, 7.0), "rows": (2.0, 3.0, 4.0), "absorbed": (0.0, 1.0, 3.0)}
_SWAPPED = {"dense": (5.0, 15.0, 12.0), "plain": (4.0, 12.0, 8.0)}
"""Of each form of attention: arrays as wide as the tokens that are kept, and that are there at a time."""


def tokens_by_depth(config: ModelConfig, modality: Modality) -> list[int]:
    """Tokens of a modality that enter each layer, and that leave the last; the summary token included."""
    lead = int(config.summary != "none")
    words = [-(-modality.steps // word_steps(config, modality.name))]
    for _ in range(config.encoder_layers + config.fusion_layers):
        words.append(-(-words[-1] // 2) if config.distil else words[-1])
    return [lead + count for count in words]
