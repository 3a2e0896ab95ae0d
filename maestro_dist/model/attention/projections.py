"""The parameters and settings of a layer of attention, and its linear projections."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maestro_dist import rng
from maestro_dist.config.model import ModelConfig
from maestro_dist.model.attention.tiles import NARROW
from maestro_dist.model.context import OneProcess, SequenceContext
from maestro_dist.model.layers import Key
from maestro_dist.model.layout import TokenLayout


class AttentionProjections(nn.Module):
    """Query, key, value and output projections of a layer.

    The key projection has no bias: it would change neither the softmax nor the sparsity metric. The value bias is added
    after the probabilities are dropped.
    """

    def __init__(self, name: str, config: ModelConfig, factor: float, seed: int, sequence: SequenceContext) -> None:
        """`name` keys the draws. `factor` is the largest budget: a sample has at most factor ln L queries."""
        super().__init__()
        width = config.width
        self.name, self.seed, self.head_exchange = name, seed, sequence.head_exchange
        # With an exchange of heads, attention sees whole sequences for `local_heads`, as in one process.
        self.sequence = sequence if self.head_exchange is None else OneProcess()
        self.heads = config.heads
        self.local_heads = (
            range(config.heads) if self.head_exchange is None else self.head_exchange.local_heads(config.heads)
        )
        self.kernel, self.keep_attention_weights = config.attention_kernel, config.keep_attention_weights
        self.sample_factor, self.factor, self.band = config.sample_factor, factor, config.budget_band
        self.dropout = config.dropout if config.attention_dropout is None else config.attention_dropout
        self.query_weight = nn.Parameter(torch.empty(width, width))
        self.query_bias = nn.Parameter(torch.empty(width))
        self.key_weight = nn.Parameter(torch.empty(width, width))
        self.value_weight = nn.Parameter(torch.empty(width, width))
        self.value_bias = nn.Parameter(torch.empty(width))
        self.output_weight = nn.Parameter(torch.empty(width, width))
        self.output_bias = nn.Parameter(torch.empty(width))

    @property
    def width(self) -> int:
        """Model width d."""
        return len(self.query_bias)

    def fill(self, key: Key) -> None:
        """U(-1/sqrt(d), 1/sqrt(d)) for weights and biases."""
        for name, parameter in self.named_parameters():
            rng.fill_linear_(parameter, self.query_weight.shape[1], key(name))

    def project(self, x: Tensor) -> Tensor:
        """Queries, keys and values of tokens [S, L, d] in one array [S, L, 3, H, d_h]; values without their bias."""
        weight = torch.cat((self.query_weight, self.key_weight, self.value_weight))
        bias = torch.cat((self.query_bias, self.query_bias.new_zeros(2 * len(self.query_bias))))
        return self.packed(x, weight, bias, 3)

    def packed(self, x: Tensor, weight: Tensor, bias: Tensor | None, count: int) -> Tensor:
        """`count` projections of tokens [S, L, d] as [S, L, count, H, d_h].

        Narrow heads are stored with the tokens innermost, which makes matrix products faster.
        """
        samples, length, width = x.shape
        head_width = width // self.heads
        if head_width > NARROW:
            packed = F.linear(x, weight, bias)
        else:
            flat = x.view(-1, width).t()
            packed = torch.mm(weight, flat) if bias is None else torch.addmm(bias[:, None], weight, flat)
            packed = packed.t()
        return packed.view(samples, length, count, self.heads, head_width)

    def per_head(self, vector: Tensor) -> Tensor:
        """[d] -> [h, 1, d_h] of this rank's heads."""
        return vector.view(self.heads, 1, -1)[self.local_heads.start : self.local_heads.stop]

    def output(self, context: Tensor) -> Tensor:
        """Output projection of [N, H, d_h] -> [N, d]."""
        return F.linear(context.flatten(1), self.output_weight, self.output_bias)


def has_observed(layout: TokenLayout, dtype: torch.dtype) -> Tensor:
    """[S, 1, 1, 1]: 1 for a sample with any observed token, else 0."""
    return (layout.observed > 0).to(dtype)[:, None, None, None]
