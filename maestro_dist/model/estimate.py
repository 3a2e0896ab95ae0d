"""Sizes that can be told before training: tokens a sample, parameters, bytes of memory.

Pure arithmetic on the configuration: no model is built and nothing is allocated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from maestro_dist.config.schema import ModelConfig
from maestro_dist.model.embedding import word_steps
from maestro_dist.model.sampling import cap
from maestro_dist.types import Modality

_FLOAT = 4
_STATES = 4
"""Copies of the parameters in training: weight, gradient, and AdamW's two moments."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one rank. `parameters` holds weights, gradients and moments; `activations` what the backward needs."""

    parameters: int
    activations: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.parameters + self.activations


def count_parameters(model: nn.Module) -> int:
    """Number of parameters, also when ZeRO 3 has partitioned them."""
    return sum(int(getattr(parameter, "ds_numel", parameter.numel())) for parameter in model.parameters())


def tokens_per_sample(config: ModelConfig, modalities: Sequence[Modality]) -> int:
    """Tokens of a complete sample that enter the first layers, summary tokens included."""
    return sum(length[0] for length in _lengths(config, modalities))


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
    Activations are counted as the arrays that autograd keeps: of a token in a layer about 12 d up to the first norm and
    9 d after distilling (with its unfolded inputs), and twice the hidden width; of the selected queries their scores
    and probabilities over all keys; of a step in the stem its unfolded inputs and what enters GELU.
    """
    d, hidden = config.width, round(config.feedforward * config.width)
    lengths = _lengths(config, modalities)
    floats = 0
    for depth in range(config.encoder_layers):
        for length in lengths:
            floats += _layer(config, length[depth], cap(config.beta, length[depth]), 2 * hidden)
    expert = config.moe.top_k * (2 * round(config.moe.hidden * d) + 2 * d) if config.moe.experts else 2 * hidden
    for depth in range(config.encoder_layers, config.encoder_layers + config.fusion_layers):
        entering = sum(length[depth] for length in lengths)
        floats += _layer(config, entering, cap(config.fusion_beta, entering), expert)
    for modality in modalities:
        inputs = 2 * modality.variates
        floats += 3 * modality.steps * inputs
        if config.stem is not None:
            first = config.stem.kernel * inputs
            rest = (config.stem.layers - 1) * config.stem.kernel * config.stem.channels
            floats += modality.steps * (first + rest + config.stem.layers * config.stem.channels)
    whole = {1: 2, 2: 1, 3: 0}[zero_stage]
    states = whole + (_STATES - whole) / ranks
    return MemoryEstimate(int(parameters * _FLOAT * states), micro_batch * floats * _FLOAT)


def _layer(config: ModelConfig, entering: int, selected: int, hidden: int) -> int:
    leaving = -(-entering // 2) if config.distil else entering
    attention = entering * 12 * config.width + 4 * config.heads * selected * entering
    return attention + leaving * (9 * config.width + hidden)


def _lengths(config: ModelConfig, modalities: Sequence[Modality]) -> list[list[int]]:
    """Tokens of each modality at each depth."""
    lead = int(config.summary != "none")
    lengths = []
    for modality in modalities:
        words = [-(-modality.steps // word_steps(config, modality.name))]
        for _ in range(config.encoder_layers + config.fusion_layers):
            words.append(-(-words[-1] // 2) if config.distil else words[-1])
        lengths.append([lead + count for count in words])
    return lengths
