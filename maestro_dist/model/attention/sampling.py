"""Which keys the sparsity metric sees and which queries it selects.

Letters: S samples, H heads, L columns (padded tokens on this rank), U sampled keys, u selected queries.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from maestro_dist import rng
from maestro_dist.model.context import SequenceContext
from maestro_dist.model.layout import TokenLayout, pack_numbers

_LOW = 0xFFFFFFFF
_NONE = -(1 << 63)


def cap(factor: float, length: int) -> int:
    """Upper limit ceil(factor ln L) <= L of sampled keys or selected queries, from a padded length L."""
    return min(length, math.ceil(factor * math.log(length))) if length > 0 else 0


def sample_sizes(factor: float, count: Tensor) -> Tensor:
    """U = max(1, ceil(c ln L)) <= L for observed counts int64 [S]."""
    wanted = (count.clamp_min(1).double().log() * factor).ceil().long().clamp_min(1)
    return torch.minimum(wanted, count)


def strided_keys(sizes: Tensor, limit: int, layout: TokenLayout) -> Tensor:
    """Evaluation: ranks int64 [S, 1, limit] of keys evenly strided over the observed tokens, the same for all heads."""
    number = torch.arange(limit, device=sizes.device)
    count, size = layout.observed[:, None], sizes[:, None]
    return ((2 * number + 1) * count).div(2 * size.clamp_min(1), rounding_mode="floor")[:, None]


def drawn_keys(
    sizes: Tensor, limit: int, layout: TokenLayout, key: int, heads: int, local_heads: range | None = None
) -> Tensor:
    """Training: ranks int64 [S, H, limit] of drawn keys among the observed tokens, for the heads `local_heads`.

    The observed tokens are divided into U strata of equal size, and one key is drawn from each. So the keys differ and
    cover the time axis, and the cost grows with U, not with L.
    """
    number = torch.arange(limit, device=sizes.device)
    count, size = layout.observed[:, None], sizes.clamp_min(1)[:, None]
    first = (number * count).div(size, rounding_mode="floor")
    width = ((number + 1) * count).div(size, rounding_mode="floor") - first
    local_heads = range(heads) if local_heads is None else local_heads
    head = torch.arange(local_heads.start, local_heads.stop, device=sizes.device)[:, None]
    draws = rng.uniform(key, pack_numbers(layout.sample[:, None, None], number * heads + head))
    return first[:, None] + torch.minimum((draws * width[:, None]).long(), width[:, None] - 1)


def locate_tokens(rank: Tensor, sizes: Tensor, layout: TokenLayout) -> tuple[Tensor, Tensor | None]:
    """Columns of observed tokens from their ranks, int64 [S, H, U], and which of them are on this rank (None: all).

    Ranks from a sample's U on are unused; their columns are in range.
    """
    if layout.whole:
        return rank.clamp(0, max(0, layout.observed_so_far.shape[1] - 1)), None
    wanted = (rank + 1).flatten(1)
    column = torch.searchsorted(layout.observed_so_far, wanted).clamp_max(max(0, layout.observed_so_far.shape[1] - 1))
    number = torch.arange(rank.shape[2], device=rank.device)
    held = _equals(layout.observed_so_far, column, wanted) & _equals(layout.mask, column, True)
    return column.view(rank.shape), held.view(rank.shape) & (number < sizes[:, None, None])


def gather_rows(x: Tensor, column: Tensor, held: Tensor | None) -> Tensor:
    """Rows of x [S, H, L, c] by column [S, H, n] -> [S, H, n, c]; zeros for tokens of other ranks. No autograd."""
    if x.shape[2] == 0:
        return x.new_zeros((*column.shape, x.shape[3]))
    taken = x.gather(2, column[..., None].expand(-1, -1, -1, x.shape[3]))
    return taken if held is None else taken * held[..., None]


def centred(keys: Tensor, sizes: Tensor) -> Tensor:
    """Sampled keys [S, H, U, c] minus their mean: the largest product with a query is max q.k - mean q.k, the metric.

    A sample with fewer keys than U repeats its first key, which changes no maximum.
    """
    valid = (torch.arange(keys.shape[2], device=keys.device) < sizes[:, None])[:, None, :, None]
    mean = (keys * valid).sum(2, keepdim=True) / sizes.clamp_min(1)[:, None, None, None]
    return torch.where(valid, keys, keys[:, :, :1]) - mean


class SelectedQueries(NamedTuple):
    """The selected queries, best first, each int64 [S, H, u].

    number  global token number
    column  its column on this rank
    held    bool: whether it is on this rank; None: all are
    """

    number: Tensor
    column: Tensor
    held: Tensor | None


def best_queries(scores: Tensor, layout: TokenLayout, limit: int, sequence: SequenceContext) -> SelectedQueries:
    """The `limit` tokens with the best scores, float32 [S, H, L]. Of equal scores the lower number wins.

    Score and token number are packed into one int64, so the order is total and exact. If there are many tokens, only
    those in the best `limit` blocks are compared: a token in another block cannot be among the best.
    """
    if layout.bias is not None:
        scores = scores + layout.bias[:, None]
    length = scores.shape[-1]
    wanted, size = min(limit, length), _block_size(length, limit)
    column = torch.arange(length, device=scores.device)
    if size > 1:
        padded = F.pad(scores, (0, -length % size), value=-torch.inf)
        blocks = padded.unflatten(2, (padded.shape[2] // size, size)).amax(3)
        number = torch.arange(blocks.shape[2], device=scores.device)
        block = _number(_pack(blocks, number).topk(wanted, dim=-1, sorted=False).values)
        column = (block[..., None] * size + torch.arange(size, device=scores.device)).flatten(2)
        scores = padded.gather(2, column)
    best = _pack(scores, column).topk(wanted, dim=-1).values
    column = _number(best)
    token = layout.token.expand(layout.mask.shape)[:, None].expand(-1, scores.shape[1], -1)
    number = token.gather(2, column)
    if sequence.size == 1:
        return SelectedQueries(number, column, None)
    offers = F.pad((best | _LOW) - number, (0, limit - wanted), value=_NONE)
    number = _number(sequence.all_gather(offers).topk(limit, dim=-1).values)
    if length == 0:
        return SelectedQueries(number, torch.zeros_like(number), torch.zeros_like(number, dtype=torch.bool))
    column = torch.searchsorted(token[:, 0].contiguous(), number.flatten(1)).view(number.shape).clamp_max(length - 1)
    return SelectedQueries(number, column, token.gather(2, column) == number)


def _block_size(length: int, limit: int) -> int:
    """A power of two, such that there are at least eight blocks for each selected query."""
    return 1 << max(0, (length // (8 * max(1, limit))).bit_length() - 1)


def _pack(scores: Tensor, number: Tensor) -> Tensor:
    """Float32 scores and numbers below 2^32 as int64 whose order is by score, then by lower number."""
    bits = (scores + 0.0).view(torch.int32)  # -0.0 becomes 0.0
    ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long()
    return (ordered << 32) + (_LOW - number)


def _number(packed: Tensor) -> Tensor:
    return _LOW - (packed & _LOW)


def _equals(values: Tensor, column: Tensor, wanted: Tensor | bool) -> Tensor:
    if values.shape[1] == 0:
        return torch.zeros_like(column, dtype=torch.bool)
    return values.gather(1, column) == wanted
