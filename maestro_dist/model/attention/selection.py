"""ProbSparse attention: the steps that its variants share.

For each head the best queries by the sparsity metric attend to all observed tokens. Every other position gets the mean
of the values. That mean is computed as the attention of a query of zeros, in one more row. Probabilities are dropped
only in the selected rows.

Letters: S samples, L columns (padded tokens on this rank), N tokens (flat), H heads, d_h head width, U sampled keys, u
selected queries.
"""

from __future__ import annotations

import torch
from torch import Tensor

from maestro_dist import rng
from maestro_dist.model.attention import sampling
from maestro_dist.model.attention.kernel import AttendOptions, uses_fused
from maestro_dist.model.attention.projections import AttentionProjections, has_observed
from maestro_dist.model.attention.sampling import SelectedQueries
from maestro_dist.model.attention.tiles import DropFactors, ScoreTile
from maestro_dist.model.attention.variant import (
    AttentionCall,
    AttentionShape,
    AttentionVariant,
    CollectiveBytes,
    SequenceSharding,
    stores_probabilities,
)
from maestro_dist.model.layout import TokenLayout, pack_numbers

_FLOAT = 4


def query_weights(queries: Tensor, limit: int, band: float) -> Tensor:
    """w_r = clamp(n - r, 0, 1) for ranks r < limit: real-valued n [S] -> [S, limit].

    The gradient of n flows through the boundary query alone. With a band it is spread evenly over the last `band`
    selected queries (straight-through estimator: the value is unchanged).
    """
    rank = torch.arange(limit, dtype=queries.dtype, device=queries.device)
    weights = (queries[:, None] - rank).clamp(0, 1)
    if band > 0:
        soft = ((queries[:, None] - rank) / band).clamp(0, 1)
        weights = weights.detach() + (soft - soft.detach())
    return weights


class SparseVariant(AttentionVariant):
    """A variant that attends with the selected queries only. All of them give the same result."""

    def attended_queries(self, shape: AttentionShape) -> int:
        """The selected queries."""
        return shape.selected

    def communication(self, shape: AttentionShape, sharding: SequenceSharding) -> CollectiveBytes:
        """With A = H u d_h and b bytes per number: 5 A b + 16 H u + O(d), independent of the length.

        8 of the 16 are the candidates for the best queries, 4 the rows' largest scores and 4 their weights. The merged
        results are float32 also where b is 2. Arguments as in `AttentionVariant`; `shape.length` is over all ranks.
        """
        sampled, rows = shape.sampled or min(1, shape.length), shape.selected + 1  # one more row: the mean
        selected_bytes = shape.selected * shape.width * sharding.element_bytes
        merged = _FLOAT * (shape.heads * rows + rows * (shape.width + shape.heads))
        forward = sampled * shape.width * sharding.element_bytes + selected_bytes + merged
        backward = _FLOAT * rows * shape.width + selected_bytes
        return CollectiveBytes(
            all_reduce=sharding.forwards * forward + backward,
            all_gather=sharding.forwards * 8 * shape.heads * shape.selected,
        )


def sampled_keys(layer: AttentionProjections, call: AttentionCall) -> tuple[Tensor, Tensor]:
    """Ranks [S, h, U] of the sampled keys among a sample's observed tokens, and their number [S]."""
    layout = call.layout
    count = sampling.cap(layer.sample_factor, layout.capacity) or min(1, layout.capacity)
    sizes = sampling.sample_sizes(layer.sample_factor, layout.observed)
    if not layer.training:
        return sampling.strided_keys(sizes, count, layout).expand(-1, len(layer.local_heads), -1), sizes
    draws = rng.key(layer.seed, "keys", layer.name, call.step)
    return sampling.drawn_keys(sizes, count, layout, draws, layer.heads, layer.local_heads), sizes


def select_queries(layer: AttentionProjections, call: AttentionCall, scores: Tensor) -> SelectedQueries:
    """The best queries by the sparsity metric, float32 [S, h, L]."""
    limit = sampling.cap(layer.factor, call.layout.capacity)
    if call.queries.device.type == "cpu" and len(call.queries):
        # A CPU knows the largest budget without waiting: rows beyond it are not computed.
        limit = min(limit, int(call.queries.detach().max().nan_to_num(limit).ceil()))
    return sampling.best_queries(scores, call.layout, limit, layer.sequence)


def attend_options(layer: AttentionProjections, call: AttentionCall, selected: SelectedQueries) -> AttendOptions:
    """How the selected queries attend."""
    drops = layer.training and layer.dropout > 0
    count = selected.number.shape[2]
    shape = AttentionShape(call.layout.capacity, layer.width, layer.heads, 0, count)
    return AttendOptions(
        bias=call.layout.bias,
        drop=_drop_factors(layer, call, selected) if drops else None,
        store=stores_probabilities(layer.keep_attention_weights, shape),
        fused=uses_fused(layer.kernel, selected.number.device, drops=drops, shares_sequence=layer.sequence.size > 1),
        lengths=call.layout.ragged,
    )


def _drop_factors(layer: AttentionProjections, call: AttentionCall, selected: SelectedQueries) -> DropFactors:
    """Draws keyed by sample, head, number of the query and number of the key."""
    layout = call.layout
    draws = rng.key(layer.seed, "dropout", f"{layer.name}.probabilities", call.step)
    head = torch.arange(layer.local_heads.start, layer.local_heads.stop, device=selected.number.device)[:, None]
    keys = rng.bits(draws, pack_numbers(layout.sample[:, None, None], selected.number * layer.heads + head))
    lanes = rng.lanes(layout.token).expand(layout.mask.shape)
    scale = 1.0 / (1.0 - layer.dropout)

    def factors(tile: ScoreTile) -> Tensor:
        row_keys = keys[tile.sample]
        # Where all heads have the same keys (absorbed), the rows of all heads are one head's.
        row_keys = row_keys.flatten(1)[:, None] if tile.joined else row_keys[:, tile.head]
        columns = lanes[tile.sample, None, None, tile.column]
        return rng.keep_mask(layer.dropout, row_keys, columns).mul_(scale)

    return factors


def mean_and_difference(
    layer: AttentionProjections, call: AttentionCall, out: Tensor, selected: SelectedQueries
) -> tuple[Tensor, Tensor]:
    """From attended rows [S, h, u + 1, d_h]: the mean of the values [S, h, 1, d_h], and the difference of each selected
    row from it, times its weight, [S, h, u, d_h]."""
    layout = call.layout
    if layout.bias is not None:
        out = out * has_observed(layout, out.dtype)
    mean = out[:, :, -1:]
    weights = query_weights(call.queries, selected.number.shape[2], layer.band).to(out.dtype)[:, None, :, None]
    delta = weights * (out[:, :, :-1] - mean)
    if selected.held is not None:
        delta = delta * selected.held[..., None]
    return mean + layer.per_head(layer.value_bias).to(out.dtype), delta


def flat_numbers(column: Tensor, layout: TokenLayout) -> Tensor:
    """Columns [S, h, n] -> flat token numbers. Where a column has no token, the number is in range and unused."""
    row = (column + torch.arange(len(column), device=column.device)[:, None, None] * layout.mask.shape[1]).flatten()
    if layout.token_at is None:
        return row
    return layout.token_at.index_select(0, row).clamp_max(max(0, len(layout.flat_mask) - 1))


def gather_tokens(x: Tensor, column: Tensor, held: Tensor | None, layout: TokenLayout) -> Tensor:
    """Rows of flat tokens x [N, d] by column [S, h, n] -> [S, h, n, d]; zeros for tokens of other ranks."""
    if len(x) == 0:
        return x.new_zeros((*column.shape, x.shape[1])) + 0 * x.sum()
    rows = x.index_select(0, flat_numbers(column, layout)).view(*column.shape, x.shape[1])
    return rows if held is None else rows * held[..., None]
