"""Plain sparse attention: queries, keys, values and a context of all tokens, and their output projection."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from maestro_dist.model.attention import sampling
from maestro_dist.model.attention.kernel import attend
from maestro_dist.model.attention.projections import AttentionProjections
from maestro_dist.model.attention.row_functions import FillRows, SplitProjections
from maestro_dist.model.attention.selection import (
    SparseVariant,
    attend_options,
    mean_and_difference,
    sampled_keys,
    select_queries,
)
from maestro_dist.model.attention.tiles import largest_product
from maestro_dist.model.attention.variant import (
    MOVED,
    AttentionCall,
    AttentionMemory,
    AttentionShape,
    ContextVariant,
)


class PlainAttention(SparseVariant, ContextVariant):
    """The straightforward form."""

    name = "plain"
    arrays = AttentionMemory(4.0, 5.0, 7.0)
    arrays_exchanged = AttentionMemory(4.0, 12.0, 8.0)

    def context(self, layer: AttentionProjections, packed: Tensor, call: AttentionCall) -> Tensor:
        """Projections [S, L, 3, h, d_h] -> context [S, L, h, d_h]."""
        layout, sequence = call.layout, layer.sequence
        with torch.no_grad():
            query, key, _ = packed.permute(2, 0, 3, 1, 4).unbind(0)
            rank, sizes = sampled_keys(layer, call)
            column, held = sampling.locate_tokens(rank, sizes, layout)
            sampled = sequence.all_reduce_sum(sampling.gather_rows(key, column, held))
            scores = largest_product(query, sampling.centred(sampled, sizes), None, 1, layout.ragged)
            selected = select_queries(layer, call, scores)
        key, value, best = SplitProjections.apply(packed, selected.column)
        best = sequence.all_reduce_sum(best if selected.held is None else best * selected.held[..., None])
        best = best * best.shape[3] ** -0.5
        best = F.pad(best, (0, 0, 0, 1))
        out, total = attend(best, key, value, attend_options(layer, call, selected))
        if total is not None:
            out = sequence.merge_attention(out, total)
        mean, delta = mean_and_difference(layer, call, out.to(value.dtype), selected)
        samples, heads, length, width = value.shape
        sample = torch.arange(samples, device=value.device)[:, None, None]
        head = torch.arange(heads, device=value.device)[:, None]
        row = ((sample * length + selected.column) * heads + head).flatten()
        context: Tensor = FillRows.apply(mean.flatten(1), delta.flatten(0, 2), row, length)
        # A rank without tokens computes with the selected rows too: the other ranks do, and gradients need one order.
        context = context if length else context + 0 * delta.sum()
        return context.view(samples, length, heads, width)

    def operations(self, shape: AttentionShape, *, training: bool) -> float:
        """Four projections of all tokens, the metric, and scores and sums with their gradients."""
        square, times = 2.0 * shape.width * shape.width, 3 if training else 1
        products = 2 * shape.sampled + (12 if training else 4) * shape.selected
        return 4 * square * times + products * shape.width + MOVED * (shape.width * (14 if training else 6))
