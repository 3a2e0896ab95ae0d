"""Dense attention: every token attends to every observed token of its sample."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from maestro_dist.model.attention.projections import AttentionProjections, has_observed
from maestro_dist.model.attention.variant import AttentionCall, AttentionMemory, AttentionShape, ContextVariant


class DenseAttention(ContextVariant):
    """Softmax attention of all queries. It cannot drop probabilities, so the [L, L] probabilities are never stored."""

    name = "dense"
    arrays = AttentionMemory(5.0, 9.0, 12.0)
    arrays_exchanged = AttentionMemory(5.0, 15.0, 12.0)

    def context(self, layer: AttentionProjections, packed: Tensor, call: AttentionCall) -> Tensor:
        """Projections [S, L, 3, h, d_h] -> context [S, L, h, d_h]."""
        layout = call.layout
        # Contiguous: otherwise torch uses a CPU kernel that stores all [L, L] probabilities.
        query, key, value = packed.permute(2, 0, 3, 1, 4).contiguous().unbind(0)
        mask = None if layout.bias is None else layout.bias[:, None, None].to(query.dtype)
        context = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        context = context * has_observed(layout, context.dtype) + layer.per_head(layer.value_bias).to(context.dtype)
        return context.transpose(1, 2)

    def operations(self, shape: AttentionShape, *, training: bool) -> float:
        """Projections, scores and sums. Never compared with others: dense attention gives another result."""
        times = 3 if training else 1
        return times * (8.0 * shape.width**2 + 4.0 * shape.length * shape.width)

    def attended_queries(self, shape: AttentionShape) -> int:
        """All queries."""
        return shape.length
