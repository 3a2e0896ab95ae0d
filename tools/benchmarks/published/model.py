"""The whole model in the published formulation.

Letters: B samples, M modalities, T steps, D variates, L tokens, d width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.published.attention import SparseAttention
from benchmarks.published.experts import MaskedExperts
from benchmarks.published.symbols import symbols
from maestro_dist.config.model import ModelConfig
from maestro_dist.types import Modality


class Distil(nn.Module):
    """Convolution plus maximum over three tokens, every second one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(width, width, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [B, L, d] -> [B, ceil(L / 2), d]."""
        x = x.transpose(1, 2)
        return (self.convolution(x) + F.max_pool1d(x, 3, stride=2, padding=1)).transpose(1, 2)


class Layer(nn.Module):
    """Attention, residual and norm, distil, feed-forward or experts, residual and norm."""

    def __init__(self, config: ModelConfig, feed: nn.Module) -> None:
        super().__init__()
        self.attention = SparseAttention(config.width, config.heads, config.sample_factor)
        self.attention_norm = nn.LayerNorm(config.width)
        self.distil = Distil(config.width)
        self.feed, self.dropout = feed, nn.Dropout(config.dropout)
        self.feed_norm = nn.LayerNorm(config.width)

    def forward(self, x: Tensor, factor: float) -> Tensor:
        """Tokens [B, L, d] -> [B, ceil(L / 2), d]."""
        x = self.distil(self.attention_norm(x + self.attention(x, factor)))
        branch = self.feed(x.flatten(0, 1)).view(x.shape)
        out: Tensor = self.feed_norm(x + self.dropout(branch))
        return out


class Published(nn.Module):
    """The whole model: symbols, encoders with rounded budgets, cross-modal layers, pooling, head.

    Sizes come from the configuration of the model that it is compared with: word, width, heads, layers, factors,
    experts and dropout. All windows have the steps of `modalities`.
    """

    def __init__(self, config: ModelConfig, modalities: Sequence[Modality], outputs: int) -> None:
        super().__init__()
        if not isinstance(config.word, int):
            raise ValueError("the published formulation has one word length for all modalities")
        modalities = sorted(modalities, key=lambda modality: modality.name)
        self.config, self.word = config, config.word
        self.names = [modality.name for modality in modalities]
        width, count = config.width, len(modalities)
        self.embeddings = nn.ModuleDict({modality.name: nn.Linear(modality.variates, width) for modality in modalities})
        self.absent = nn.Parameter(0.02 * torch.randn(count))
        self.gate = nn.Sequential(nn.Linear(count, count), nn.ReLU(), nn.Linear(count, count))
        self.encoders = nn.ModuleDict(
            {
                name: nn.ModuleList(Layer(config, self._feed_forward()) for _ in range(config.encoder_layers))
                for name in self.names
            }
        )
        self.modality_embedding = nn.Parameter(0.02 * torch.randn(count, width))
        lengths = [
            math.ceil(modality.steps // self.word / 2**config.encoder_layers)  # the layers halve the words
            for modality in modalities
        ]
        self.position = nn.Parameter(0.02 * torch.randn(max(lengths), width))
        hidden = max(1, round(config.moe.hidden * width))
        self.fusion = nn.ModuleList(
            Layer(config, MaskedExperts(width, hidden, config.moe.experts, config.moe.top_k))
            for _ in range(config.fusion_layers)
        )
        self.head = nn.Linear(width, outputs)

    def _feed_forward(self) -> nn.Module:
        width, hidden = self.config.width, round(self.config.feedforward * self.config.width)
        return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, values: Mapping[str, Tensor], present: Tensor) -> Tensor:
        """Windows values[j] [B, T_j, D_j] of all modalities, present bool [B, M] -> logits [B, C].

        Missing modalities are encoded too, from symbol 0. There is one budget a modality for the whole batch, from the
        share of its samples that have the modality.
        """
        presence = present.float().mean(0)
        shares = self.gate(presence + self.absent * (1 - presence)).sigmoid() * self.config.beta
        budgets = shares.ceil().tolist()
        encoded = []
        for j, name in enumerate(self.names):
            words = symbols(values[name], self.word, self.config.alphabet) * present[:, j, None, None]
            x = self.embeddings[name](words.to(self.position.dtype))
            x = x + sinusoid(x.shape[1], x.shape[2], x.device)
            for layer in self.encoders[name].children():
                x = layer(x, budgets[j])
            encoded.append(x + self.modality_embedding[j] + self.position[: x.shape[1]])
        x = torch.cat(encoded, 1)
        for layer in self.fusion:
            x = layer(x, self.config.fusion_beta)
        logits: Tensor = self.head(x.mean(1))
        return logits


def sinusoid(length: int, width: int, device: torch.device) -> Tensor:
    """Sines and cosines of the index with periods up to a base of 10,000: [L, d]."""
    position = torch.arange(length, device=device)[:, None]
    angle = position * torch.exp(torch.arange(0, width, 2, device=device) * (-math.log(10_000) / width))
    return torch.stack((angle.sin(), angle.cos()), -1).flatten(1)[:, :width]
