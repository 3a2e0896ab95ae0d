"""Full attention of a few selected queries over very many keys, in tiles: time and memory linear in the keys.

Letters: S samples, H heads, L columns (keys), u selected queries, c width of a key. Nothing of the size L x L exists,
and of the size u x L only the probabilities that the backward needs. On a CPU each tile is first copied into a small
buffer that stays in the cache: a matrix product that packs its operand from main memory takes longer than both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from maestro_dist import rng
from maestro_dist.model import sampling
from maestro_dist.model.context import OneProcess
from maestro_dist.model.layout import LOWEST, plain_layout

_TILE = {"cpu": 1 << 17}
"""Scores held at a time, by type of device: on a CPU about half of a core's second-level cache."""
_TILE_ELSEWHERE = 1 << 27
_TILE_LENGTH = 1280
"""Keys in a tile when there are many: with fewer, products are short; with more, their operands leave the cache."""

Dropped = Callable[["Block"], Tensor]
"""Gives the dropout factors [s, h, u, l] of a block's scores."""


class Block(NamedTuple):
    """A rectangle of samples, heads and columns; `joined`: all heads share the keys, and their rows are one head's."""

    sample: slice
    head: slice
    column: slice
    joined: bool

    def of(self, x: Tensor) -> Tensor:
        """Its part of x [S, H, L, c]."""
        return x[self.sample, self.head, self.column]


def _blocks(
    samples: int, heads: int, length: int, rows: int, device: torch.device, joined: bool = False
) -> list[list[Block]]:
    """All of [S, H, L] in blocks of about one tile of scores; the inner lists run over the columns."""
    if not length:
        return []
    limit = max(1, _TILE.get(device.type, _TILE_ELSEWHERE) // max(1, rows))
    width = max(1, min(length, max(_TILE_LENGTH, limit // max(1, samples * heads))))
    many = max(1, min(heads, limit // width))
    width = max(1, min(length, limit // many))
    several = max(1, min(samples, limit // (width * many))) if many == heads and width == length else 1
    columns = [slice(start, min(start + width, length)) for start in range(0, length, width)]
    return [
        [Block(sample, head, column, joined) for column in columns]
        for sample in (slice(start, min(start + several, samples)) for start in range(0, samples, several))
        for head in (slice(start, min(start + many, heads)) for start in range(0, heads, many))
    ]


class _Buffer:
    """Memory for one operand of a tile, used again for the next tile."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.flat = torch.empty(0, dtype=dtype, device=device)

    def empty(self, *shape: int) -> Tensor:
        size = 1
        for side in shape:
            size *= side
        if self.flat.numel() < size:
            self.flat = self.flat.new_empty(size)
        return self.flat[:size].view(shape)

    def load(self, part: Tensor) -> Tensor:
        """A copy of part [s, h, l, c] as [s * h, l, c], in the buffer's type."""
        out = self.empty(part.shape[0] * part.shape[1], part.shape[2], part.shape[3])
        out.view(part.shape).copy_(part)
        return out


def _compute(x: Tensor) -> torch.dtype:
    """Half-width numbers are multiplied and summed as float32."""
    return x.dtype if x.dtype in (torch.float32, torch.float64) else torch.float32


@torch.no_grad()
def largest_product(x: Tensor, keys: Tensor, bias: Tensor | None, groups: int) -> Tensor:
    """For each token the largest product with the keys of each group, without keeping the products.

    x [S, H, L, c], keys [S, H, groups * U, c], bias [S, H, groups * U] or None (added to the products)
    -> float32 [S, H * groups, L]. No gradient.
    """
    samples, heads, length, _ = x.shape
    out = x.new_empty((samples, heads, groups, length), dtype=torch.float32)
    dtype = _compute(x)
    keys = keys.to(dtype)
    tile, products = _Buffer(dtype, x.device), _Buffer(dtype, x.device)
    for row in _blocks(samples, heads, length, keys.shape[2], x.device):
        own = keys[row[0].sample, row[0].head].flatten(0, 1)
        for block in row:
            tokens = tile.load(block.of(x))
            product = products.empty(own.shape[0], own.shape[1], tokens.shape[1])
            torch.bmm(own, tokens.transpose(1, 2), out=product)
            if bias is not None:
                product += bias[block.sample, block.head].to(dtype).flatten(0, 1)[..., None]
            target = out[block.sample, block.head, :, block.column]
            target.copy_(product.view(*target.shape[:3], -1, target.shape[3]).amax(3))
    return out.view(samples, heads * groups, length)


class AttendRows(torch.autograd.Function):
    """Softmax attention of u queries a head over L keys, tile by tile.

    Each tile is normalised by itself; tiles are then weighed by their shares of the whole sum (the log-sum-exp merge of
    Milakov and Gimelshein, 2018; Dao et al., 2022). The backward goes through the same tiles.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor | None,
        bias: Tensor | None,
        drop: Dropped | None,
        keep: bool,
    ) -> tuple[Tensor, Tensor]:
        """See `attend`."""
        with torch.autocast(query.device.type, enabled=False):
            return _forward(ctx, query, key, value, bias, drop, keep)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of query, key and value."""
        with torch.autocast(gradients[0].device.type, enabled=False):
            return (*_backward(ctx, *gradients), None, None, None)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor | None = None,
    *,
    bias: Tensor | None = None,
    drop: Dropped | None = None,
    keep: bool = True,
    fused: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """softmax(query key^T + bias) value and the logarithm of each row's sum of exponentials.

    query [S, H, u, c], already scaled; key [S, H, L, c]; value [S, H, L, c'], or None: the keys are the values too;
    bias [S, L]: 0 for a key, `LOWEST` for a missing one. Strides are free. Without `keep` the backward computes the
    probabilities again instead of keeping u x L numbers a head. `drop` gives factors for the first rows of the
    probabilities. `fused` takes torch's own kernel, which gives no logarithms (None) and knows no `drop`.

    Returns [S, H, u, c'] in float32 (float64 for float64) and [S, H, u].
    """
    if fused:
        values = key if value is None else value
        mask = None if bias is None else bias[:, None, None].to(query.dtype).expand(-1, 1, query.shape[2], -1)
        return F.scaled_dot_product_attention(query, key, values, attn_mask=mask, scale=1.0), None
    if key.shape[2] == 0:
        nothing = query.sum() * 0 + key.sum() * 0
        width = (key if value is None else value).shape[3]
        out = nothing + query.new_zeros((*query.shape[:3], width), dtype=_compute(query))
        return out, nothing + query.new_full(query.shape[:3], LOWEST, dtype=_compute(query))
    result: tuple[Tensor, Tensor] = AttendRows.apply(query, key, value, bias, drop, keep)
    return result


def _scores(own: Tensor, tile: Tensor, bias: Tensor | None, block: Block, buffer: _Buffer) -> Tensor:
    score = torch.bmm(own, tile.transpose(1, 2), out=buffer.empty(own.shape[0], own.shape[1], tile.shape[1]))
    if bias is not None:
        missing = bias[block.sample, None, None, block.column]
        score.view(missing.shape[0], -1, own.shape[1], tile.shape[1]).add_(missing)
    return score


def _multiplied(x: Tensor, factors: Tensor) -> Tensor:
    """x [s * h, u, l], its first rows multiplied in place by factors [s, h, <= u, l]."""
    x.view(*factors.shape[:2], -1, factors.shape[3])[:, :, : factors.shape[2]].mul_(factors)
    return x


def _forward(
    ctx: Any, query: Tensor, key: Tensor, value: Tensor | None, bias: Tensor | None, drop: Dropped | None, keep: bool
) -> tuple[Tensor, Tensor]:
    samples, heads, rows, _ = query.shape
    dtype, device, length = _compute(query), query.device, key.shape[2]
    blocks = _blocks(samples, heads, length, rows, device, value is None)
    tiles = len(blocks[0]) if blocks else 0
    width = (key if value is None else value).shape[3]
    parts = query.new_empty((samples, heads, tiles, rows, width), dtype=dtype)
    sums = query.new_empty((samples, heads, rows, tiles), dtype=dtype)
    keys, values, scores = (_Buffer(dtype, device) for _ in range(3))
    kept: list[Tensor] = []
    for line in blocks:
        own = query[line[0].sample, line[0].head].to(dtype).flatten(0, 1)
        for number, block in enumerate(line):
            tile = keys.load(block.of(key))
            score = _scores(own, tile, bias, block, scores)
            probability = score.softmax(2)
            # The tile's log-sum-exp, without another pass of exponentials: score - log(probability), at the largest.
            summed = score.amax(2) - probability.amax(2).log()
            sums[block.sample, block.head, :, number] = summed.view(*sums[block.sample, block.head].shape[:3])
            if keep:
                kept.append(probability)
            if drop is not None:
                probability = _multiplied(probability.clone() if keep else probability, drop(block))
            if value is not None:
                tile = values.load(block.of(value))
            target = parts[block.sample, block.head, number]
            target.copy_(torch.bmm(probability, tile).view(target.shape))
    total = sums.logsumexp(3)
    shares = (sums - total[..., None]).exp().transpose(2, 3)  # [S, H, tiles, u]
    out = (parts * shares[..., None]).sum(2)
    ctx.save_for_backward(query, key, value, bias, out, shares, *kept)
    ctx.drop, ctx.keep = drop, keep
    return out, total


def _backward(ctx: Any, gradient: Tensor, of_total: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    query, key, value, bias, out, shares, *kept = ctx.saved_tensors
    samples, heads, rows, _ = query.shape
    dtype, device, length = out.dtype, query.device, key.shape[2]
    of_query = torch.zeros(query.shape, dtype=dtype, device=device)
    of_key, of_value = torch.empty_like(key), None if value is None else torch.empty_like(value)
    inner = (gradient * out).sum(3) - of_total
    keys, values, scores, outs = (_Buffer(dtype, device) for _ in range(4))
    states = iter(kept)
    for line in _blocks(samples, heads, length, rows, device, value is None):
        sample, head, _, _ = line[0]
        own = query[sample, head].to(dtype).flatten(0, 1)
        into = torch.zeros_like(own)
        for number, block in enumerate(line):
            tile = keys.load(block.of(key))
            probability = next(states) if ctx.keep else _scores(own, tile, bias, block, scores).softmax(2)
            share = shares[sample, head, number]
            pulled = (gradient[sample, head] * share[..., None]).flatten(0, 1)
            other = tile if value is None else values.load(block.of(value))
            of_score = torch.bmm(pulled, other.transpose(1, 2), out=scores.empty(*probability.shape))
            seen = probability
            if ctx.drop is not None:
                factors = ctx.drop(block)
                seen = _multiplied(probability.clone(), factors)
                of_score = _multiplied(of_score, factors)
            spread = torch.bmm(seen.transpose(1, 2), pulled, out=outs.empty(*other.shape))
            if of_value is not None:
                target = block.of(of_value)
                target.copy_(spread.view(target.shape))
            of_score = of_score.sub_((inner[sample, head] * share).flatten(0, 1)[..., None]).mul_(probability)
            into.baddbmm_(of_score, tile)
            if of_value is None:
                spread.baddbmm_(of_score.transpose(1, 2), own)
            else:
                torch.bmm(of_score.transpose(1, 2), own, out=spread)
            target = block.of(of_key)
            target.copy_(spread.view(target.shape))
        of_query[sample, head] = into.view(*of_query[sample, head].shape)
    return of_query.to(query.dtype), of_key, of_value


def probsparse(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    sample_factor: float,
    factor: float,
    mask: Tensor | None = None,
    training: bool = True,
    seed: int = 0,
    step: int = 0,
) -> Tensor:
    """The core of the attention by itself: ceil(factor ln L) queries a head attend, all others get the mean value.

    query, key, value [S, H, L, d_h]; mask bool [S, L] of observed tokens, None: all; ceil(sample_factor ln L) keys feed
    the sparsity metric. Returns [S, H, L, d_h]; rows of missing tokens mean nothing.
    """
    samples, heads, length, width = query.shape
    if mask is None:
        mask = torch.ones((samples, length), dtype=torch.bool, device=query.device)
    layout = plain_layout(mask)
    with torch.no_grad():
        sizes = sampling.sample_sizes(sample_factor, layout.observed)
        count = sampling.cap(sample_factor, length) or min(1, length)
        if training:
            rank = sampling.drawn_keys(sizes, count, layout, rng.key(seed, "keys", step), heads)
        else:
            rank = sampling.strided_keys(sizes, count, layout).expand(-1, heads, -1)
        column, held = sampling.hold(rank, sizes, layout)
        keys = sampling.centred(sampling.rows(key, column, held), sizes)
        scores = largest_product(query, keys, None, 1)
        chosen = sampling.best_queries(scores, layout, sampling.cap(factor, length), OneProcess())
        wanted = torch.minimum(layout.observed, sampling.sample_sizes(factor, layout.observed))
        weights = torch.arange(chosen.number.shape[2], device=query.device) < wanted[:, None]
    best = F.pad(sampling.rows(query, chosen.column, None) * width**-0.5, (0, 0, 0, 1))
    out, _ = attend(best, key, value, bias=layout.bias)
    out = out.to(value.dtype) * (layout.observed > 0)[:, None, None, None]
    mean = out[:, :, -1:]
    context = mean.expand(value.shape).clone(memory_format=torch.contiguous_format).view(-1, width)
    number = torch.arange(samples * heads, device=query.device).view(samples, heads, 1)
    delta = (out[:, :, :-1] - mean) * weights[:, None, :, None]
    return context.index_add_(0, (number * length + chosen.column).flatten(), delta.flatten(0, 2)).view(value.shape)
