"""Sizes that are known before training: tokens of a sample, parameters, floating-point operations.

Arithmetic on the configuration only: no model is built and no memory is allocated.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from maestro_dist.config.model import ModelConfig
from maestro_dist.model.attention import AttentionShape, planned_variant
from maestro_dist.model.embedding import word_steps
from maestro_dist.model.stem import stem_steps
from maestro_dist.types import Modality


def count_parameters(model: nn.Module) -> int:
    """Number of parameters, also when ZeRO 3 has partitioned them."""
    return sum(int(getattr(parameter, "ds_numel", parameter.numel())) for parameter in model.parameters())


def tokens_by_modality(config: ModelConfig, modalities: Sequence[Modality]) -> dict[str, int]:
    """Input tokens of each modality of a complete sample, with its summary token."""
    lead = int(config.summary != "none")
    return {m.name: -(-m.steps // word_steps(config, m.name)) + lead for m in modalities}


def tokens_per_sample(config: ModelConfig, modalities: Sequence[Modality]) -> int:
    """Tokens of a complete sample that enter the first layers, summary tokens included."""
    return sum(tokens_by_modality(config, modalities).values())


def expert_parameters(config: ModelConfig) -> int:
    """Number of parameters of all routed experts of all layers, which `mesh.expert` spreads over ranks."""
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
        groups = [depths] if fusion else [[counts] for counts in depths]
        for group in groups:
            before, after = (sum(counts[level] for counts in group) for level in (depth, depth + 1))
            shape = AttentionShape.of(config, before, config.fusion_beta if fusion else config.beta)
            variant = planned_variant(config, shape)
            sampled = shape.sampled if variant.abilities.selects_queries else 0
            total += before * width * (8 * width + 4 * variant.attended_queries(shape) + 2 * sampled)
            total += after * width * (4 * hidden * times + 6 * width * config.downsample)
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


def tokens_by_depth(config: ModelConfig, modality: Modality) -> list[int]:
    """Tokens of a modality that enter each layer, and that leave the last, with the summary token."""
    lead = int(config.summary != "none")
    words = [-(-modality.steps // word_steps(config, modality.name))]
    for _ in range(config.encoder_layers + config.fusion_layers):
        words.append(-(-words[-1] // 2) if config.downsample else words[-1])
    return [lead + count for count in words]
