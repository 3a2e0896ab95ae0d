"""Which keys the sparsity metric sees and which queries it selects.

Letters: S samples, H heads, L columns (tokens held here, padded), U sampled keys, u selected queries.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from maestro_dist import rng
from maestro_dist.model.context import SequenceContext
from maestro_dist.model.layout import Layout, pack

_LOW = 0xFFFFFFFF
_NONE = -(1 << 63)
_CHUNK = 1 << 22
"""Most elements of queries x sampled keys that the metric holds at a time."""


def cap(factor: float, length: int) -> int:
    """Static limit ceil(factor ln L) <= L on sampled keys or selected queries of a padded length."""
    return min(length, math.ceil(factor * math.log(length))) if length > 0 else 0


def sample_sizes(factor: float, count: Tensor) -> Tensor:
    """U = max(1, ceil(c ln L)) <= L for observed counts int64 [S]."""
    wanted = (count.clamp_min(1).double().log() * factor).ceil().long().clamp_min(1)
    return torch.minimum(wanted, count)


def strided_keys(sizes: Tensor, limit: int, layout: Layout) -> tuple[Tensor, Tensor]:
    """Evaluation: keys evenly strided over the observed tokens, the same for all heads.

    Returns local columns int64 [S, 1, limit] and which of them are held here, bool of the same shape.
    """
    number = torch.arange(limit, device=sizes.device)
    count, size = layout.observed[:, None], sizes[:, None]
    rank = ((2 * number + 1) * count).div(2 * size.clamp_min(1), rounding_mode="floor") + 1
    column = torch.searchsorted(layout.order, rank).clamp_max(max(0, layout.order.shape[1] - 1))
    held = (number < size) & _at(layout.order, column, rank) & _at(layout.mask, column, True)
    return column[:, None], held[:, None]


def drawn_keys(
    sizes: Tensor, limit: int, layout: Layout, key: int, heads: int, sequence: SequenceContext
) -> tuple[Tensor, Tensor]:
    """Training: for each (sample, head) the observed tokens with the largest hashes, drawn without replacement.

    Returns local columns int64 [S, H, limit] and which of them are held here.
    """
    head = torch.arange(heads, device=sizes.device)[:, None]
    hashes = rng.bits(key, pack(layout.sample[:, None, None], layout.token * heads + head))
    hashes = torch.where(layout.mask[:, None], hashes, _NONE)
    top = hashes.topk(min(limit, hashes.shape[-1]), dim=-1)
    inside = torch.arange(limit, device=sizes.device) < sizes[:, None, None]
    if sequence.size == 1:
        return top.indices, inside
    short = (0, limit - top.indices.shape[-1])
    column, mine = F.pad(top.indices, short), F.pad(top.values, short, value=_NONE)
    best = sequence.gather(mine).topk(limit, dim=-1).values
    place = (best[..., None, :] == mine[..., :, None]).int()  # [S, H, local, global]
    source = place.argmax(-2)
    return column.gather(-1, source), inside & place.any(-2)


def metric(query: Tensor, keys: Tensor, valid: Tensor, sizes: Tensor) -> Tensor:
    """Sparsity metric max_k q.k - mean_k q.k, float32 [S, H, L], without ever holding all L x U products.

    query [S, H, L, d_h], keys [S, H, U, d_h], valid bool [S, 1 or H, U], sizes int64 [S].
    """
    mean = torch.where(valid[..., None], keys, 0).sum(2, keepdim=True) / sizes.clamp_min(1)[:, None, None, None]
    centred = (keys - mean).transpose(-1, -2)  # max(q.k) - q.mean = max(q.(k - mean))
    invalid = ~valid[..., None, :]
    rows = max(1, _CHUNK // max(1, query.shape[0] * query.shape[1] * keys.shape[2]))
    chunks = [
        (block @ centred).masked_fill_(invalid, -torch.inf).amax(-1).float() for block in query.split(rows, dim=2)
    ]
    return chunks[0] if len(chunks) == 1 else torch.cat(chunks, 2)


def best_queries(scores: Tensor, layout: Layout, limit: int, sequence: SequenceContext) -> Tensor:
    """Global token numbers int64 [S, H, limit] of the best queries, best first; ties go to the lower number.

    The float32 score and the token number are packed into one int64, so the order is total and exact.
    """
    whole = (scores.masked_fill(~layout.mask[:, None], -torch.inf) + 0.0).view(torch.int32)
    ordered = (whole ^ ((whole >> 31) & 0x7FFFFFFF)).long()
    packed = (ordered << 32) + (_LOW - layout.token)
    best = packed.topk(min(limit, packed.shape[-1]), dim=-1).values
    if sequence.size > 1:
        offers = F.pad(best, (0, limit - best.shape[-1]), value=_NONE)
        best = sequence.gather(offers).topk(limit, dim=-1).values
    return _LOW - (best & _LOW)


def locate(wanted: Tensor, layout: Layout, sequence: SequenceContext) -> tuple[Tensor, Tensor | None]:
    """Local columns of global token numbers, and which are held here (None: all)."""
    if sequence.size == 1:
        return wanted, None
    column = torch.searchsorted(layout.token, wanted).clamp_max(max(0, len(layout.token) - 1))
    held = layout.token[column] == wanted if len(layout.token) else torch.zeros_like(wanted, dtype=torch.bool)
    return column, held


def _at(values: Tensor, column: Tensor, wanted: Tensor | bool) -> Tensor:
    if values.shape[1] == 0:
        return torch.zeros_like(column, dtype=torch.bool)
    return values.gather(1, column) == wanted
