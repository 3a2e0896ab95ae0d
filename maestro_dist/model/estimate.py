"""Sizes that can be told before training: tokens a sample, parameters, bytes of memory.

Pure arithmetic on the configuration: no model is built and nothing is allocated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from maestro_dist.config.schema import ModelConfig
from maestro_dist.model import cost
from maestro_dist.model.embedding import word_steps
from maestro_dist.model.sampling import cap
from maestro_dist.types import Modality

_FLOAT = 4
_STATES = 4
"""Copies of the parameters in training: weight, gradient, and AdamW's two moments."""

_LARGE = 32 << 20
_GAPS, _GAPS_OF_LARGE = 1.45, 1.1
"""Memory taken for each byte in use: small arrays that are not counted, and gaps between arrays.

Measured after several steps; the C library maps arrays of 32 MiB and more by themselves, so they leave no gaps. Freed
memory that is kept (`run.keep_memory: small`) and huge pages move the peak, from one process to the next, by up to a
fifth either way.
"""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one rank, beside the libraries.

    parameters  weights, gradients and the optimizer's moments
    inputs      the micro-batch itself
    kept        what the forward keeps for the backward, all of it
    peak        most that lives at a time in forward or backward: what is kept then, and the work in hand
    """

    parameters: int
    inputs: int
    kept: int
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
    ahead   most that lives during its forward besides these
    back    most that lives during its backward besides these
    """

    array: float
    enters: float
    kept: float
    ahead: float
    back: float

    def with_gaps(self) -> _Segment:
        """With the memory that arrays of its size leave unused between them."""
        gaps = _GAPS_OF_LARGE if self.array * _FLOAT >= _LARGE else _GAPS
        return _Segment(self.array, *(gaps * size for size in (self.enters, self.kept, self.ahead, self.back)))


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


def memory_estimate(
    config: ModelConfig,
    modalities: Sequence[Modality],
    *,
    parameters: int,
    micro_batch: int,
    ranks: int = 1,
    zero_stage: int = 1,
) -> MemoryEstimate:
    """Bytes of a training step on one rank, complete samples, fp32.

    `parameters`: their number; `micro_batch`: samples a rank takes at a time; `ranks` share what `zero_stage` shards.
    The model is taken as segments in their order (embeddings, then each layer's attention and what follows it): kept
    arrays pile up in the forward and go one by one in the backward, and to both comes the work inside the segment at
    hand. With checkpoints a segment keeps its input alone, and has its arrays while its own backward runs (the second
    forward leaves gaps half as large as what it worked with).
    """
    segments = [segment.with_gaps() for segment in _segments(config, modalities, micro_batch)]
    again = config.checkpoint == "layers"
    alive, peak = 0.0, 0.0
    for segment in segments:
        peak = max(peak, alive + segment.enters + segment.kept + segment.ahead)
        alive += segment.enters + (0.0 if again else segment.kept)
    kept = alive
    for segment in reversed(segments):
        peak = max(peak, alive + segment.back + (segment.kept + segment.ahead / 2 if again else 0.0))
        alive -= segment.enters + (0.0 if again else segment.kept)
    whole = {1: 2, 2: 1, 3: 0}[zero_stage]
    states = whole + (_STATES - whole) / ranks
    inputs = micro_batch * sum(modality.steps * modality.variates for modality in modalities)
    sizes = (parameters * states, inputs, kept, peak)
    return MemoryEstimate(*(int(size * _FLOAT) for size in sizes))


def _segments(config: ModelConfig, modalities: Sequence[Modality], samples: int) -> list[_Segment]:
    embeddings, encoders, fusion, entering = [], [], [], []
    for modality in modalities:
        lengths = _lengths(config, modality)
        embeddings.append(_embedding(config, modality, samples, lengths[0]))
        for depth in range(config.encoder_layers):
            encoders += _layer(config, samples, lengths[depth], lengths[depth + 1], config.beta, experts=False)
        entering.append(lengths[config.encoder_layers :])
    for depth in range(config.fusion_layers):
        before, after = (sum(lengths[at] for lengths in entering) for at in (depth, depth + 1))
        fusion += _layer(config, samples, before, after, config.fusion_beta, experts=bool(config.moe.experts))
    tokens = samples * config.width * sum(lengths[0] for lengths in entering)
    # all modalities' tokens joined; with time and modality they enter the cross-modal layers; the pools read them
    pools = (2.0 if config.head == "additive" else 0.0) * tokens
    joined = _Segment(tokens, tokens, pools, tokens, 2.0 * tokens)
    return [*embeddings, *encoders, joined, *fusion]


def _embedding(config: ModelConfig, modality: Modality, samples: int, tokens: int) -> _Segment:
    """From raw windows: words' samples with their mask where they are wanted, the stem's inputs and values."""
    steps, variates, width = samples * modality.steps, modality.variates, config.width
    words = samples * tokens
    symbols = words * variates * (1.0 if config.embedding == "ordinal" else 2.0)
    kept, work = symbols, 2.0 * words * width
    if config.embedding == "patch":
        kept += 2.0 * steps * variates
        work += 3.0 * steps * variates
    if config.stem is not None:
        channels = config.stem.channels
        kept += steps * (2 * variates + (2 * config.stem.layers - 1) * channels) + words * channels
        work += 3.0 * steps * channels
    if config.summary != "none":
        work += 4.0 * steps * variates
    return _Segment(words * width, 0.0, kept, work, work)


def _layer(
    config: ModelConfig, samples: int, before: int, after: int, factor: float, *, experts: bool
) -> list[_Segment]:
    """Attention with residual, norm and distilling of `before` tokens a sample; then what follows on `after`."""
    width, entering, leaving = config.width, float(samples * before), float(samples * after)
    kept, ahead, back = attention_floats(config, before, factor)
    norm = 2.0 * width + 6  # the residual sum and, for distilling, its norm; statistics and keys of draws
    attend = _Segment(
        entering * width,
        entering * width,
        entering * (kept + norm),
        entering * ahead,
        entering * (back + 2.0 * width),
    )
    hidden, tiled = round(config.feedforward * width), config.tile is not None
    if experts:
        hidden = round(config.moe.hidden * width)
        rows = config.moe.top_k
        kept = rows * (2.0 * width + 2 * hidden + 6) + config.moe.experts + config.moe.shared * hidden
        work = rows * (2.0 * width + hidden)
    else:
        kept, work = (0.0 if tiled else float(hidden)), 0.0
    feed = _Segment(
        leaving * width,
        leaving * width,
        leaving * (kept + width + 6),
        leaving * (2.0 * width + work),
        leaving * (4.0 * width + work),
    )
    return [attend, feed]


def attention_floats(config: ModelConfig, length: int, factor: float) -> tuple[float, float, float]:
    """Floats a token that attention over `length` tokens keeps, and that live besides in its forward and backward."""
    width, heads = config.width, config.heads
    if config.attention == "dense":
        return 5.0 * width + heads, 6.0 * width, 9.0 * width
    sampled, selected = cap(config.sample_factor, length), cap(factor, length)
    form: str = config.attention_form
    if form == "auto":
        form = cost.choose(length, width, heads, sampled, selected, training=True).form
    keeps = cost.keeps_scores(config.keep_scores, width, heads, selected)
    scores = heads * (selected + 1.0) if keeps else 0.0
    kept, ahead, back = _FORMS[form]
    return kept * width + scores, ahead * width + heads, back * width + heads


_FORMS = {"plain": (4.0, 6.0, 9.0), "rows": (2.0, 4.0, 6.0), "absorbed": (1.0, 3.0, 6.0)}
"""Of each form of sparse attention: arrays as wide as the tokens that are kept, and that come and go besides."""


def _lengths(config: ModelConfig, modality: Modality) -> list[int]:
    """Tokens of a modality at each depth, the summary token included."""
    lead = int(config.summary != "none")
    words = [-(-modality.steps // word_steps(config, modality.name))]
    for _ in range(config.encoder_layers + config.fusion_layers):
        words.append(-(-words[-1] // 2) if config.distil else words[-1])
    return [lead + count for count in words]
