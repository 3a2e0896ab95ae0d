"""Softmax attention of a few selected queries over very many keys, in tiles: linear in the keys in time and memory.

Letters: S samples, H heads, L columns (keys), u selected queries, c width of a key. No array has the size L x L. Only
the probabilities that the backward needs have the size u x L. On a CPU each tile is first copied into a small buffer
that stays in the cache: a matrix product that reads its operand from main memory takes longer than copy and product.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from maestro_dist.model.layout import LOWEST

_TILE = {"cpu": 1 << 18}
"""Scores of a tile, by type of device: on a CPU about the size of a core's second-level cache."""
_TILE_ELSEWHERE = 1 << 27
_TILE_LENGTH = 1280
"""Keys of a tile if there are many. With fewer, products are inefficient; with more, operands leave the cache."""

DropFactors = Callable[["ScoreTile"], Tensor]
"""Gives the dropout factors [s, h, u, l] of a tile's scores."""


class ScoreTile(NamedTuple):
    """A range of samples, heads and columns. `joined`: all heads have the same keys, and are computed as one head."""

    sample: slice
    head: slice
    column: slice
    joined: bool


NARROW = 32
"""Keys up to this width are stored as [c, L]: products with short rows are several times slower."""


class _Line(NamedTuple):
    """Samples and heads that are computed together, over the same columns, tile by tile."""

    sample: slice
    head: slice
    columns: list[slice]

    def of(self, x: Tensor) -> Tensor:
        """Its part of x [S, H, ...] as [s * h, ...]; a view where the strides allow it."""
        return x[self.sample, self.head].flatten(0, 1)

    def lying(self, x: Tensor) -> Tensor:
        """Its part of x [S, H, L, c] as [s * h, c, L]; a view where the strides allow it."""
        return x[self.sample, self.head].transpose(2, 3).flatten(0, 1)

    def put(self, x: Tensor, values: Tensor) -> None:
        """Write values [s * h, ...] to its part of x [S, H, ...]."""
        target = x[self.sample, self.head]
        target.copy_(values.view(target.shape))


def _lines(
    samples: int, heads: int, length: int, rows: int, device: torch.device, lengths: Sequence[int] | None
) -> Iterator[_Line]:
    """All of [S, H, L] in tiles of about `_TILE` scores, without the columns after a sample's own length."""
    limit = max(1, _TILE.get(device.type, _TILE_ELSEWHERE) // max(1, rows))
    width = max(1, min(length, max(_TILE_LENGTH, limit // max(1, samples * heads))))
    many = max(1, min(heads, limit // width))
    width = max(1, min(length, limit // many))
    several = max(1, min(samples, limit // (width * many))) if many == heads and width >= length else 1
    for first in range(0, samples, several):
        sample = slice(first, min(first + several, samples))
        end = length if lengths is None else max(lengths[sample])
        columns = [slice(start, min(start + width, end)) for start in range(0, end, width)]
        for start in range(0, heads, many):
            yield _Line(sample, slice(start, min(start + many, heads)), columns)


class _Buffer:
    """Memory for one operand of a tile, reused for the next tile."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.flat = torch.empty(0, dtype=dtype, device=device)

    def empty(self, *shape: int) -> Tensor:
        size = math.prod(shape)
        if self.flat.numel() < size:
            self.flat = self.flat.new_empty(size)
        return self.flat[:size].view(shape)

    def load(self, line: Tensor, column: slice) -> Tensor:
        """Columns of a line [n, c, L], in the buffer's type. Copied only if necessary."""
        part = line[:, :, column]
        rows, width, length = part.shape
        narrow = width <= NARROW
        good = line.stride(2) == 1 if narrow else line.stride(1) == 1
        if length == line.shape[2] and good and line.dtype == self.flat.dtype:
            return line
        if narrow:
            return self.empty(rows, width, length).copy_(part)
        return self.empty(rows, length, width).transpose(1, 2).copy_(part)


def _gradient_like(x: Tensor, dtype: torch.dtype, make: Callable[..., Tensor]) -> Tensor:
    """Memory for the gradient of x [S, H, L, c], in the order in which tiles are written."""
    samples, heads, length, width = x.shape
    if width <= NARROW:
        return make((samples, heads, width, length), dtype=dtype, device=x.device).transpose(2, 3)
    return make(x.shape, dtype=dtype, device=x.device)


def _outer(left: Tensor, right: Tensor, out: Tensor, *, add: bool = False) -> None:
    """left^T right for scores left [n, u, l] and rows right^T [n, c, u], written, or added, to out [n, c, l]."""
    first, second = right, left
    if out.stride(2) != 1:
        first, second, out = left.transpose(1, 2), right.transpose(1, 2), out.transpose(1, 2)
    if add:
        out.baddbmm_(first, second)
    else:
        torch.bmm(first, second, out=out)


def compute_dtype(x: Tensor) -> torch.dtype:
    """The type of products and sums: float32 for half precision."""
    return x.dtype if x.dtype in (torch.float32, torch.float64) else torch.float32


@torch.no_grad()
def largest_product(
    x: Tensor, keys: Tensor, bias: Tensor | None, groups: int, lengths: Sequence[int] | None = None
) -> Tensor:
    """For each token the largest product with the keys of each group. The products are not stored.

    x [S, H, L, c], keys [S, H, groups * U, c], bias [S, H, groups * U] or None (added to the products)
    -> float32 [S, H * groups, L]; 0 after a sample's length, if lengths are given. No gradient.
    """
    samples, heads, length, _ = x.shape
    make = x.new_empty if lengths is None else x.new_zeros
    out = make((samples, heads, groups, length), dtype=torch.float32)
    dtype = compute_dtype(x)
    keys = keys.to(dtype)
    tiles, products = _Buffer(dtype, x.device), _Buffer(dtype, x.device)
    for line in _lines(samples, heads, length, keys.shape[2], x.device, lengths):
        own, tokens, target = line.of(keys), line.lying(x), line.of(out)
        offset = None if bias is None else line.of(bias).to(dtype)[..., None]
        for column in line.columns:
            tile = tiles.load(tokens, column)
            product = products.empty(own.shape[0], own.shape[1], tile.shape[2])
            torch.bmm(own, tile, out=product)
            if offset is not None:
                product += offset
            target[:, :, column] = product.unflatten(1, (groups, -1)).amax(2)
    return out.view(samples, heads * groups, length)


class TileOptions(NamedTuple):
    """Options of `TiledAttention`; see `kernel.AttendOptions`."""

    bias: Tensor | None
    drop: DropFactors | None
    store: bool
    lengths: Sequence[int] | None


class TiledAttention(torch.autograd.Function):
    """Softmax attention of u queries a head over L keys, tile by tile.

    Each tile is normalised by itself. Then the tiles are weighted by their shares of the whole sum (log-sum-exp merge:
    Milakov and Gimelshein, 2018; Dao et al., 2022). The backward uses the same tiles.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor | None, options: TileOptions
    ) -> tuple[Tensor, Tensor]:
        """See `kernel.attend`."""
        with torch.autocast(query.device.type, enabled=False):
            return _forward(ctx, query, key, value, options)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of query, key and value."""
        with torch.autocast(gradients[0].device.type, enabled=False):
            return (*_backward(ctx, *gradients), None)


def _forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor | None, options: TileOptions) -> tuple[Tensor, Tensor]:
    samples, heads, rows, _ = query.shape
    dtype, device = compute_dtype(query), query.device
    out = query.new_zeros((samples, heads, rows, (key if value is None else value).shape[3]), dtype=dtype)
    total = query.new_full((samples, heads, rows), LOWEST, dtype=dtype)
    keys, values, scores = (_Buffer(dtype, device) for _ in range(3))
    shares: list[Tensor] = []
    stored: list[Tensor] = []
    for line in _lines(samples, heads, key.shape[2], rows, device, options.lengths):
        if not line.columns:
            continue
        own, of_key = line.of(query).to(dtype), line.lying(key)
        of_value = None if value is None else line.lying(value)
        tops, peaks, sums = [], [], []
        for column in line.columns:
            tile = keys.load(of_key, column)
            score = _scores(own, tile, options.bias, line, column, scores)
            probability = score.softmax(2)
            tops.append(score.amax(2))
            peaks.append(probability.amax(2))
            if options.store:
                stored.append(probability)
            if options.drop is not None:
                factors = options.drop(ScoreTile(line.sample, line.head, column, value is None))
                probability = _multiplied(probability.clone() if options.store else probability, factors)
            if of_value is not None:
                tile = values.load(of_value, column)
            sums.append(torch.bmm(probability, tile.transpose(1, 2)))
        # A tile's log-sum-exp, without another pass of exponentials: score - log(probability), at the largest.
        by_tile = torch.stack(tops) - torch.stack(peaks).log()
        together = by_tile.logsumexp(0)
        share = (by_tile - together).exp()[..., None]  # [tiles, s * h, u, 1]
        line.put(out, (torch.stack(sums) * share).sum(0))
        line.put(total, together)
        shares.append(share)
    ctx.save_for_backward(query, key, value, options.bias, out, *shares, *stored)
    ctx.options, ctx.lines = options, len(shares)
    return out, total


def _backward(ctx: Any, gradient: Tensor, of_total: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    query, key, value, bias, out, *saved = ctx.saved_tensors
    samples, heads, rows, _ = query.shape
    dtype, device, options = out.dtype, query.device, ctx.options
    make = torch.empty if options.lengths is None else torch.zeros
    to_query = torch.zeros(query.shape, dtype=dtype, device=device)
    to_key = _gradient_like(key, dtype, make)
    to_value = None if value is None else _gradient_like(value, dtype, make)
    inner = (gradient * out).sum(3, keepdim=True) - of_total[..., None]
    keys, values, scores = (_Buffer(dtype, device) for _ in range(3))
    shares, stored = iter(saved[: ctx.lines]), iter(saved[ctx.lines :])
    for line in _lines(samples, heads, key.shape[2], rows, device, options.lengths):
        if not line.columns:
            continue
        share = next(shares)
        own, of_key = line.of(query).to(dtype), line.lying(key)
        of_value = None if value is None else line.lying(value)
        into, into_key = torch.zeros_like(own), line.lying(to_key)
        into_value = None if to_value is None else line.lying(to_value)
        pulled, within = line.of(gradient) * share, line.of(inner) * share
        across, upright = _upright(pulled, of_key if of_value is None else of_value), _upright(own, of_key)
        for number, column in enumerate(line.columns):
            tile = keys.load(of_key, column)
            probability = next(stored) if options.store else _scores(own, tile, bias, line, column, scores).softmax(2)
            other = tile if of_value is None else values.load(of_value, column)
            to_score = torch.bmm(pulled[number], other, out=scores.empty(*probability.shape))
            seen = probability
            if options.drop is not None:
                factors = options.drop(ScoreTile(line.sample, line.head, column, value is None))
                seen = _multiplied(probability.clone(), factors)
                to_score = _multiplied(to_score, factors)
            _outer(seen, across[number], (into_key if into_value is None else into_value)[:, :, column])
            to_score.sub_(within[number]).mul_(probability)
            into.baddbmm_(to_score, tile.transpose(1, 2))
            _outer(to_score, upright, into_key[:, :, column], add=into_value is None)
        line.put(to_query, into)
    return (
        to_query.to(query.dtype),
        to_key.to(key.dtype),
        None if value is None or to_value is None else to_value.to(value.dtype),
    )


def _upright(rows: Tensor, line: Tensor) -> Tensor:
    """Rows [..., u, c] as [..., c, u], in the memory order that products with narrow lines [n, c, L] need."""
    turned = rows.transpose(-1, -2)
    return turned.contiguous() if line.shape[1] <= NARROW else turned


def _scores(own: Tensor, tile: Tensor, bias: Tensor | None, line: _Line, column: slice, buffer: _Buffer) -> Tensor:
    score = torch.bmm(own, tile, out=buffer.empty(own.shape[0], own.shape[1], tile.shape[2]))
    if bias is not None:
        missing = bias[line.sample, None, None, column]
        score.view(missing.shape[0], -1, *score.shape[1:]).add_(missing)
    return score


def _multiplied(x: Tensor, factors: Tensor) -> Tensor:
    """x [s * h, u, l], its first rows multiplied in place by factors [s, h, <= u, l]."""
    x.view(*factors.shape[:2], -1, factors.shape[3])[:, :, : factors.shape[2]].mul_(factors)
    return x
