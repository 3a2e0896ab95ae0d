"""ProbSparse attention with real-valued budgets over observed tokens only, and its dense counterpart.

Letters: S samples, L columns (padded tokens held here), N tokens (flat), H heads, d_h head width, u selected queries.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maestro_dist import rng
from maestro_dist.config.schema import ModelConfig
from maestro_dist.model import sampling
from maestro_dist.model.context import SequenceContext
from maestro_dist.model.layers import Key, dropout
from maestro_dist.model.layout import Layout, pack


def query_weights(queries: Tensor, limit: int, band: float) -> Tensor:
    """w_r = clamp(n - r, 0, 1) for ranks r < limit: real-valued n [S] -> [S, limit].

    The gradient of n flows through the boundary query alone; with a band it is spread evenly over the last `band`
    selected ones (straight through: the value is unchanged).
    """
    rank = torch.arange(limit, dtype=queries.dtype, device=queries.device)
    weights = (queries[:, None] - rank).clamp(0, 1)
    if band > 0:
        soft = ((queries[:, None] - rank) / band).clamp(0, 1)
        weights = weights.detach() + (soft - soft.detach())
    return weights


class Attention(nn.Module):
    """Multi-head self-attention of one layer.

    For each head the best queries by the sparsity metric attend fully; every other position gets the mean of the
    values. The key projection has no bias: it would change neither softmax nor metric. Probabilities are dropped only
    on the selected rows; dense attention drops none, so that its [L, L] probabilities are never kept.
    """

    def __init__(self, name: str, config: ModelConfig, factor: float, seed: int, sequence: SequenceContext) -> None:
        """`name` keys the draws; `factor` is the largest budget: at most factor ln L queries."""
        super().__init__()
        width = config.width
        self.name, self.seed, self.sequence = name, seed, sequence
        self.heads, self.dense = config.heads, config.attention == "dense"
        self.sample_factor, self.factor, self.band = config.sample_factor, factor, config.budget_band
        self.dropout = config.dropout
        self.query_weight = nn.Parameter(torch.empty(width, width))
        self.query_bias = nn.Parameter(torch.empty(width))
        self.key_weight = nn.Parameter(torch.empty(width, width))
        self.value_weight = nn.Parameter(torch.empty(width, width))
        self.value_bias = nn.Parameter(torch.empty(width))
        self.output_weight = nn.Parameter(torch.empty(width, width))
        self.output_bias = nn.Parameter(torch.empty(width))

    def fill(self, key: Key) -> None:
        """The usual start of linear layers."""
        for name, parameter in self.named_parameters():
            rng.fill_linear_(parameter, self.query_weight.shape[1], key(name))

    def forward(self, x: Tensor, layout: Layout, queries: Tensor, step: int) -> Tensor:
        """Tokens x [N, d] -> [N, d]. `queries` [S]: real-valued number of queries n <= L of each sample."""
        context = self._dense(x, layout) if self.dense else self._sparse(x, layout, queries, step)
        out = F.linear(context, self.output_weight, self.output_bias)
        if self.training and self.dropout > 0:
            out = dropout(out, self.dropout, layout.draw_keys(rng.key(self.seed, "dropout", self.name, step)))
        return out

    def _project(self, x: Tensor, layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each [S, H, L, d_h]; zeros where a modality is absent."""
        weight = torch.cat((self.query_weight, self.key_weight, self.value_weight))
        bias = torch.cat((self.query_bias, torch.zeros_like(self.query_bias), self.value_bias))
        packed = F.linear(x, weight, bias)
        samples, length = layout.mask.shape
        if layout.slot is not None:
            packed = packed.new_zeros(samples * length, packed.shape[1]).index_copy(0, layout.slot, packed)
        packed = packed.view(samples, length, 3, self.heads, x.shape[1] // self.heads)
        query, key, value = packed.permute(2, 0, 3, 1, 4).contiguous().unbind(0)
        return query, key, value

    def _flat(self, context: Tensor, layout: Layout) -> Tensor:
        """[S, H, L, d_h] -> [N, d]."""
        rows = context.transpose(1, 2).reshape(layout.mask.numel(), context.shape[1] * context.shape[3])
        return rows if layout.slot is None else rows.index_select(0, layout.slot)

    def _dense(self, x: Tensor, layout: Layout) -> Tensor:
        query, key, value = self._project(x, layout)
        mask = torch.zeros(layout.mask.shape, dtype=query.dtype, device=x.device)
        mask = mask.masked_fill(~layout.mask, torch.finfo(query.dtype).min)[:, None, None]
        context = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self._flat(torch.where(layout.observed[:, None, None, None] > 0, context, 0), layout)

    def _sparse(self, x: Tensor, layout: Layout, queries: Tensor, step: int) -> Tensor:
        query, key, value = self._project(x, layout)
        samples, heads, length, width = query.shape
        limit = sampling.cap(self.factor, layout.capacity)
        with torch.no_grad():
            chosen = self._select(query, key, layout, limit, step)
            column, held = sampling.locate(chosen, layout, self.sequence)
            row = (column + torch.arange(samples * heads, device=x.device).view(samples, heads, 1) * length).flatten()
        best = _rows(query, row, held, (samples, heads, limit, width))
        best = self.sequence.sum(best)

        scores = best @ key.transpose(-1, -2) * width**-0.5
        scores = scores.masked_fill(~layout.mask[:, None, None], torch.finfo(scores.dtype).min)
        probabilities = scores.softmax(-1).to(value.dtype)
        if self.training and self.dropout > 0:
            draws = rng.key(self.seed, "dropout", f"{self.name}.probabilities", step)
            head = torch.arange(heads, device=x.device)[:, None]
            keys = rng.bits(draws, pack(layout.sample[:, None, None], chosen * heads + head))
            probabilities = dropout(probabilities, self.dropout, keys)
        attended = self.sequence.merge(probabilities @ value, scores)

        observed = layout.mask[:, None, None].to(value.dtype)
        mean = self.sequence.sum(observed @ value) / layout.observed.clamp_min(1)[:, None, None, None].to(value.dtype)
        weights = query_weights(queries, limit, self.band).to(value.dtype)
        delta = weights[:, None, :, None] * (attended - mean)
        if held is not None:
            delta = delta * held[..., None]
        context = mean.expand(query.shape).reshape(samples * heads * length, width)
        # Without a token here `delta` still takes part: the backward must meet that of the other ranks.
        delta = delta.reshape(len(row), width)
        context = context.index_add(0, row, delta) if length else context + 0 * delta.sum()
        return self._flat(context.view(query.shape), layout)

    def _select(self, query: Tensor, key: Tensor, layout: Layout, limit: int, step: int) -> Tensor:
        """Global token numbers [S, H, limit] of the best queries."""
        count = sampling.cap(self.sample_factor, layout.capacity) or min(1, layout.capacity)
        sizes = sampling.sample_sizes(self.sample_factor, layout.observed)
        if self.training:
            draws = rng.key(self.seed, "keys", self.name, step)
            column, held = sampling.drawn_keys(sizes, count, layout, draws, self.heads, self.sequence)
        else:
            column, held = sampling.strided_keys(sizes, count, layout)
        samples, heads, length, width = query.shape
        column = column.expand(-1, heads, -1)
        row = (column + torch.arange(samples * heads, device=query.device).view(samples, heads, 1) * length).flatten()
        keys = _rows(key, row, held if self.sequence.size > 1 else None, (samples, heads, count, width))
        keys = self.sequence.sum(keys)
        valid = (torch.arange(count, device=query.device) < sizes[:, None])[:, None]
        return sampling.best_queries(sampling.metric(query, keys, valid, sizes), layout, limit, self.sequence)


def _rows(x: Tensor, row: Tensor, held: Tensor | None, shape: tuple[int, int, int, int]) -> Tensor:
    """Rows of x [S, H, L, d_h] by flat number -> `shape`; zeros where not held here."""
    if x.shape[2] == 0:
        return x.new_zeros(shape) + 0 * x.sum()
    rows = x.reshape(-1, x.shape[3]).index_select(0, row).view(shape)
    return rows if held is None else rows * held[..., None]
