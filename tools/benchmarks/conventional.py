"""The usual fast implementation of sparse attention in plain torch, and dense attention.

Letters: B samples, H heads, L tokens, U sampled keys, u selected queries, d_h head width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.published.attention import budget


def sparse_attention(query: Tensor, key: Tensor, value: Tensor, sampled: int, selected: int) -> Tensor:
    """[B, H, L, d_h] each -> [B, H, L, d_h]: one key sample for all queries, so the metric is one matrix product.

    The u best queries attend with `scaled_dot_product_attention`; all other positions get the mean of the values.
    """
    with torch.no_grad():
        keys = key[:, :, torch.randperm(key.shape[2], device=key.device)[:sampled]]
        products = query @ keys.transpose(-2, -1)
        score = products.amax(-1) - products.mean(-1)
        top = score.topk(selected).indices[..., None].expand(-1, -1, -1, query.shape[3])
    attended = F.scaled_dot_product_attention(query.gather(2, top), key, value)
    mean = value.mean(2, keepdim=True)
    return mean.expand(query.shape).scatter(2, top, attended)


def dense_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """[B, H, L, d_h] each -> [B, H, L, d_h]: all queries attend to all keys."""
    return F.scaled_dot_product_attention(query, key, value)


class SparseAttention(nn.Module):
    """The attention of one layer with its projections: queries, keys and values from one product."""

    def __init__(self, width: int, heads: int, sample_factor: float) -> None:
        super().__init__()
        self.heads, self.sample_factor = heads, sample_factor
        self.project, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, factor: float) -> Tensor:
        """Tokens [B, L, d] -> [B, L, d]; ceil(factor ln L) queries attend."""
        samples, length, width = x.shape
        packed = self.project(x).view(samples, length, 3, self.heads, width // self.heads)
        query, key, value = packed.permute(2, 0, 3, 1, 4).contiguous().unbind(0)
        sampled, selected = budget(self.sample_factor, length), budget(factor, length)
        context = sparse_attention(query, key, value, sampled, selected)
        out: Tensor = self.out(context.transpose(1, 2).reshape(x.shape))
        return out
