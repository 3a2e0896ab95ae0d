"""Sparse attention with absorbed projections: no keys or values are computed.

The selected queries go through the key projection and are compared with the tokens themselves. The weighted sums of
tokens go through the value projection.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from maestro_dist.model.attention import sampling
from maestro_dist.model.attention.kernel import AttendOptions, attend
from maestro_dist.model.attention.projections import AttentionProjections
from maestro_dist.model.attention.rows import SHORT, HeadWeights, Keys, RowVariant, project_heads
from maestro_dist.model.attention.sampling import SelectedQueries
from maestro_dist.model.attention.selection import gather_tokens, sampled_keys, select_queries
from maestro_dist.model.attention.tiles import largest_product
from maestro_dist.model.attention.variant import MOVED, AttentionCall, AttentionMemory, AttentionShape


class AbsorbedAttention(RowVariant):
    """Cheaper than keys and values if the selected queries of all heads are fewer than the width."""

    name = "absorbed"
    arrays = AttentionMemory(0.0, 1.0, 3.0)

    def keys(self, layer: AttentionProjections, tokens: Tensor) -> Keys:
        """The tokens themselves."""
        return Keys(tokens, None, None)

    def select(
        self, layer: AttentionProjections, x: Tensor, call: AttentionCall, weights: HeadWeights, keys: Keys
    ) -> SelectedQueries:
        """See `RowVariant`. The sampled keys go through the query projection and are compared with the tokens."""
        rank, sizes = sampled_keys(layer, call)
        column, held = sampling.locate_tokens(rank, sizes, call.layout)
        sampled = project_heads(gather_tokens(x, column, held, call.layout), weights.key)
        sampled = sampling.centred(layer.sequence.all_reduce_sum(sampled), sizes)
        offset = (sampled * layer.per_head(layer.query_bias).to(weights.query.dtype)).sum(3)
        through = torch.einsum("shuc,hcd->shud", sampled, weights.query)
        scores = largest_product(
            keys.tokens[:, None],
            through.flatten(1, 2)[:, None],
            offset.flatten(1)[:, None],
            layer.heads,
            call.layout.ragged,
        )
        return select_queries(layer, call, scores)

    def attend(
        self, best: Tensor, keys: Keys, weights: HeadWeights, options: AttendOptions
    ) -> tuple[Tensor, Tensor | None]:
        """See `RowVariant`. The rows of all heads attend together, like the rows of one head."""
        heads = len(weights.key)
        through = torch.einsum("shuc,hcd->shud", best, weights.key).flatten(1, 2)
        through = F.pad(through, (0, 0, 0, 1))[:, None]
        sums, total = attend(through, keys.tokens[:, None], None, options)
        sums = sums[:, 0].to(weights.value.dtype)
        by_head = sums[:, :-1].unflatten(1, (heads, -1))
        by_head = torch.cat((by_head, sums[:, None, -1:].expand(-1, heads, -1, -1)), 2)
        if total is not None:
            by_head_total = total[:, 0, :-1].unflatten(1, (heads, -1))
            total = torch.cat((by_head_total, total[:, :, -1:].expand(-1, heads, -1)), 2)
        return project_heads(by_head, weights.value), total

    def operations(self, shape: AttentionShape, *, training: bool) -> float:
        """Metric, scores and sums over the full width, and the selected rows."""
        square, times = 2.0 * shape.width * shape.width, 3 if training else 1
        products = 2 * shape.sampled + (12 if training else 4) * shape.selected
        row_projection = 2 * shape.selected * square * times * (1.0 / max(1, shape.length))
        computed = products * shape.heads * shape.width + 2 * SHORT * row_projection
        return computed + MOVED * (shape.width * (2 if training else 1) + shape.gathered)
