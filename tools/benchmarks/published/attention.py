"""Sparse attention in which each query samples its own keys.

Letters: B samples, H heads, L tokens, U sampled keys, u selected queries, d_h head width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def budget(factor: float, length: int) -> int:
    """ceil(factor ln L), at least 1 and at most L."""
    return max(1, min(length, math.ceil(factor * math.log(length))))


def sparse_attention(query: Tensor, key: Tensor, value: Tensor, sampled: int, selected: int) -> Tensor:
    """Queries, keys and values [B, H, L, d_h] -> [B, H, L, d_h].

    Each query is scored by max - mean of its products with its own `sampled` keys; the best `selected` queries get
    softmax attention over all keys, the others the mean of the values. With sampled >= L each query uses all keys.
    """
    samples, heads, length, width = query.shape
    if sampled < length:
        index = torch.randint(length, (length, sampled), device=query.device)
    else:
        index = torch.arange(length, device=query.device).expand(length, length)
    keys = key[:, :, index]  # [B, H, L, U, d_h]
    products = (query.unsqueeze(-2) @ keys.transpose(-2, -1)).squeeze(-2)
    del keys  # the backward needs the indices only
    score = products.amax(-1) - products.mean(-1)
    top = score.topk(selected, sorted=False).indices
    sample = torch.arange(samples, device=query.device)[:, None, None]
    head = torch.arange(heads, device=query.device)[:, None]
    rows = query[sample, head, top]
    attended = (rows @ key.transpose(-2, -1) * width**-0.5).softmax(-1) @ value
    context = value.mean(-2, keepdim=True).expand(query.shape).clone()
    context[sample, head, top] = attended
    return context


class SparseAttention(nn.Module):
    """The attention of one layer with its projections."""

    def __init__(self, width: int, heads: int, sample_factor: float) -> None:
        super().__init__()
        self.heads, self.sample_factor = heads, sample_factor
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, factor: float) -> Tensor:
        """Tokens [B, L, d] -> [B, L, d]; ceil(factor ln L) queries attend."""
        samples, length, width = x.shape
        shape = (samples, length, self.heads, width // self.heads)
        query, key, value = (
            projection(x).view(shape).transpose(1, 2) for projection in (self.query, self.key, self.value)
        )
        sampled, selected = budget(self.sample_factor, length), budget(factor, length)
        context = sparse_attention(query, key, value, sampled, selected)
        out: Tensor = self.out(context.transpose(1, 2).reshape(x.shape))
        return out
