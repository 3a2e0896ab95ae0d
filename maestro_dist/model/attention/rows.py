"""Sparse attention by rows: the output projection, and the gradient of the query projection, of selected rows only.

The layer's output is one constant row per sample, plus at most H u other rows.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from maestro_dist.model.attention import sampling
from maestro_dist.model.attention.kernel import AttendOptions, attend
from maestro_dist.model.attention.projections import AttentionProjections
from maestro_dist.model.attention.row_functions import FillRows, SplitProjections
from maestro_dist.model.attention.sampling import SelectedQueries
from maestro_dist.model.attention.selection import (
    SparseVariant,
    attend_options,
    flat_numbers,
    gather_tokens,
    mean_and_difference,
    sampled_keys,
    select_queries,
)
from maestro_dist.model.attention.tiles import largest_product
from maestro_dist.model.attention.variant import MOVED, AttentionCall, AttentionMemory, AttentionShape

SHORT = 4.0
"""How much longer an operation takes in matrix products with one head's part of a projection."""


class HeadWeights(NamedTuple):
    """The projections by head: query, key and value [H, d_h, d] (input last), output [H, d_h, d] (output last)."""

    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor

    @classmethod
    def of(cls, layer: AttentionProjections, dtype: torch.dtype) -> HeadWeights:
        """The weights of a layer, converted to `dtype`."""
        weights = (layer.query_weight, layer.key_weight, layer.value_weight, layer.output_weight.t())
        return cls(*(weight.to(dtype).view(layer.heads, -1, weight.shape[1]) for weight in weights))


class Keys(NamedTuple):
    """Padded tokens [S, L, d] that the queries attend to; keys and values [S, H, L, d_h] if they are computed."""

    tokens: Tensor
    key: Tensor | None
    value: Tensor | None


class RowVariant(SparseVariant):
    """The output is one row per sample, equal for all its tokens, plus the rows of the selected queries."""

    def forward(self, layer: AttentionProjections, x: Tensor, call: AttentionCall) -> Tensor:
        """Tokens x [N, d] -> [N, d]."""
        layout, sequence, device = call.layout, layer.sequence, x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        weights = HeadWeights.of(layer, dtype)
        keys = self.keys(layer, layout.padded(x))
        with torch.no_grad():
            selected = self.select(layer, x, call, weights, keys)
        best = project_heads(gather_tokens(x, selected.column, selected.held, layout), weights.query)
        best = best + layer.per_head(layer.query_bias).to(dtype)
        best = sequence.all_reduce_sum(best if selected.held is None else best * selected.held[..., None])
        best = best * best.shape[3] ** -0.5
        out, total = self.attend(best, keys, weights, attend_options(layer, call, selected))
        if total is not None:
            out = sequence.merge_attention(out, total)
        mean, delta = mean_and_difference(layer, call, out.to(dtype), selected)
        constant = F.linear(mean.flatten(1), layer.output_weight, layer.output_bias)
        rows = torch.einsum("shuc,hcd->shud", delta, weights.output)
        rows = rows.flatten(0, 2)
        # A rank without tokens computes with the selected rows too: the other ranks do, and gradients need one order.
        if layout.slot is None:
            length = layout.mask.shape[1]
            row = flat_numbers(selected.column, layout)
            out = FillRows.apply(constant, rows.to(constant.dtype), row, length)
            return out if length else out + 0 * rows.sum()
        output = constant.index_select(0, layout.row())
        if not len(x):
            return output + 0 * rows.sum()
        return output.index_add_(0, flat_numbers(selected.column, layout), rows.to(output.dtype))

    @abstractmethod
    def keys(self, layer: AttentionProjections, tokens: Tensor) -> Keys:
        """The keys that the queries attend to, from padded tokens [S, L, d]."""

    @abstractmethod
    def select(
        self, layer: AttentionProjections, x: Tensor, call: AttentionCall, weights: HeadWeights, keys: Keys
    ) -> SelectedQueries:
        """The best queries by the sparsity metric; x: flat tokens [N, d]."""

    @abstractmethod
    def attend(
        self, best: Tensor, keys: Keys, weights: HeadWeights, options: AttendOptions
    ) -> tuple[Tensor, Tensor | None]:
        """Scaled queries [S, H, u, d_h] -> [S, H, u + 1, d_h], last the mean, and the log-sum-exp of their scores."""


class RowsAttention(RowVariant):
    """Keys and values of all tokens are computed."""

    name = "rows"
    arrays = AttentionMemory(2.0, 3.0, 4.0)

    def keys(self, layer: AttentionProjections, tokens: Tensor) -> Keys:
        """See `RowVariant`."""
        packed = layer.packed(tokens, torch.cat((layer.key_weight, layer.value_weight)), None, 2)
        key, value = SplitProjections.apply(packed, None)
        return Keys(tokens, key, value)

    def select(
        self, layer: AttentionProjections, x: Tensor, call: AttentionCall, weights: HeadWeights, keys: Keys
    ) -> SelectedQueries:
        """See `RowVariant`."""
        assert keys.key is not None
        rank, sizes = sampled_keys(layer, call)
        column, held = sampling.locate_tokens(rank, sizes, call.layout)
        sampled = layer.sequence.all_reduce_sum(sampling.gather_rows(keys.key, column, held))
        query = layer.packed(keys.tokens, layer.query_weight, layer.query_bias, 1)[:, :, 0].transpose(1, 2)
        scores = largest_product(query, sampling.centred(sampled, sizes), None, 1, call.layout.ragged)
        del query
        return select_queries(layer, call, scores)

    def attend(
        self, best: Tensor, keys: Keys, weights: HeadWeights, options: AttendOptions
    ) -> tuple[Tensor, Tensor | None]:
        """See `RowVariant`."""
        assert keys.key is not None
        return attend(F.pad(best, (0, 0, 0, 1)), keys.key, keys.value, options)

    def operations(self, shape: AttentionShape, *, training: bool) -> float:
        """Queries once, keys and values with their gradients, and the selected rows."""
        square, times = 2.0 * shape.width * shape.width, 3 if training else 1
        products = 2 * shape.sampled + (12 if training else 4) * shape.selected
        row_projection = 2 * shape.selected * square * times * (1.0 / max(1, shape.length))
        computed = square * (1 + 2 * times) + products * shape.width + SHORT * row_projection
        return computed + MOVED * (shape.width * (8 if training else 4) + shape.gathered)


def project_heads(x: Tensor, weight: Tensor) -> Tensor:
    """x [S, H, n, d] through each head's part of a projection, weight [H, d_h, d] -> [S, H, n, d_h]."""
    return torch.einsum("shud,hcd->shuc", x.to(weight.dtype), weight)
