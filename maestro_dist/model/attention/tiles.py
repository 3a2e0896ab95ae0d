"""Softmax attention of a few selected queries over very many keys, in tiles: linear in the keys in time and memory.

Letters: S samples, H heads, L columns (keys), u selected queries, c width of a key. No array has the size L x L. Only
the probabilities that the backward needs have the size u x L. On a CPU each tile is first copied into a small buffer
that stays in the cache. This copy costs less than a matrix product that reads its operand from main memory.
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

    def part(self, x: Tensor) -> Tensor:
        """The line's part of x [S, H, ...] as [s * h, ...]; a view if the strides allow it."""
        return x[self.sample, self.head].flatten(0, 1)

    def transposed(self, x: Tensor) -> Tensor:
        """The line's part of x [S, H, L, c] as [s * h, c, L]; a view if the strides allow it."""
        return x[self.sample, self.head].transpose(2, 3).flatten(0, 1)

    def write(self, x: Tensor, values: Tensor) -> None:
        """Write values [s * h, ...] to the line's part of x [S, H, ...]."""
        target = x[self.sample, self.head]
        target.copy_(values.view(target.shape))


def _lines(
    samples: int, heads: int, length: int, rows: int, device: torch.device, lengths: Sequence[int] | None
) -> Iterator[_Line]:
    """All of [S, H, L] in tiles of about `_TILE` scores, without the columns after a sample's own length."""
    limit = max(1, _TILE.get(device.type, _TILE_ELSEWHERE) // max(1, rows))
    width = max(1, min(length, max(_TILE_LENGTH, limit // max(1, samples * heads))))
    line_heads = max(1, min(heads, limit // width))
    width = max(1, min(length, limit // line_heads))
    line_samples = max(1, min(samples, limit // (width * line_heads))) if line_heads == heads and width >= length else 1
    for first in range(0, samples, line_samples):
        sample = slice(first, min(first + line_samples, samples))
        end = length if lengths is None else max(lengths[sample])
        columns = [slice(start, min(start + width, end)) for start in range(0, end, width)]
        for start in range(0, heads, line_heads):
            yield _Line(sample, slice(start, min(start + line_heads, heads)), columns)


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
        ordered = line.stride(2) == 1 if narrow else line.stride(1) == 1
        if length == line.shape[2] and ordered and line.dtype == self.flat.dtype:
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
        line_keys, tokens, target = line.part(keys), line.transposed(x), line.part(out)
        offset = None if bias is None else line.part(bias).to(dtype)[..., None]
        for column in line.columns:
            tile = tiles.load(tokens, column)
            product = products.empty(line_keys.shape[0], line_keys.shape[1], tile.shape[2])
            torch.bmm(line_keys, tile, out=product)
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
    """Softmax attention of u queries per head over L keys, tile by tile.

    Each tile is normalized by itself. Then the tiles are weighted by their shares of the total sum (log-sum-exp merge:
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
        line_query, line_key = line.part(query).to(dtype), line.transposed(key)
        line_value = None if value is None else line.transposed(value)
        largest_scores, largest_probabilities, sums = [], [], []
        for column in line.columns:
            tile = keys.load(line_key, column)
            score = _scores(line_query, tile, options.bias, line, column, scores)
            probability = score.softmax(2)
            largest_scores.append(score.amax(2))
            largest_probabilities.append(probability.amax(2))
            if options.store:
                stored.append(probability)
            if options.drop is not None:
                factors = options.drop(ScoreTile(line.sample, line.head, column, value is None))
                probability = _multiplied(probability.clone() if options.store else probability, factors)
            if line_value is not None:
                tile = values.load(line_value, column)
            sums.append(torch.bmm(probability, tile.transpose(1, 2)))
        # A tile's log-sum-exp, without another pass of exponentials: score - log(probability), at the largest.
        log_sums = torch.stack(largest_scores) - torch.stack(largest_probabilities).log()
        log_total = log_sums.logsumexp(0)
        share = (log_sums - log_total).exp()[..., None]  # [tiles, s * h, u, 1]
        line.write(out, (torch.stack(sums) * share).sum(0))
        line.write(total, log_total)
        shares.append(share)
    ctx.save_for_backward(query, key, value, options.bias, out, *shares, *stored)
    ctx.options, ctx.lines = options, len(shares)
    return out, total


def _backward(ctx: Any, gradient: Tensor, total_gradient: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    query, key, value, bias, out, *saved = ctx.saved_tensors
    samples, heads, rows, _ = query.shape
    dtype, device, options = out.dtype, query.device, ctx.options
    make = torch.empty if options.lengths is None else torch.zeros
    query_gradient = torch.zeros(query.shape, dtype=dtype, device=device)
    key_gradient = _gradient_like(key, dtype, make)
    value_gradient = None if value is None else _gradient_like(value, dtype, make)
    inner = (gradient * out).sum(3, keepdim=True) - total_gradient[..., None]
    keys, values, scores = (_Buffer(dtype, device) for _ in range(3))
    shares, stored = iter(saved[: ctx.lines]), iter(saved[ctx.lines :])
    for line in _lines(samples, heads, key.shape[2], rows, device, options.lengths):
        if not line.columns:
            continue
        share = next(shares)
        line_query, line_key = line.part(query).to(dtype), line.transposed(key)
        line_value = None if value is None else line.transposed(value)
        line_query_gradient, line_key_gradient = torch.zeros_like(line_query), line.transposed(key_gradient)
        line_value_gradient = None if value_gradient is None else line.transposed(value_gradient)
        shared_gradient, shared_inner = line.part(gradient) * share, line.part(inner) * share
        gradient_columns, query_columns = (
            _transposed(shared_gradient, line_key if line_value is None else line_value),
            _transposed(line_query, line_key),
        )
        for number, column in enumerate(line.columns):
            tile = keys.load(line_key, column)
            probability = (
                next(stored) if options.store else _scores(line_query, tile, bias, line, column, scores).softmax(2)
            )
            value_tile = tile if line_value is None else values.load(line_value, column)
            score_gradient = torch.bmm(shared_gradient[number], value_tile, out=scores.empty(*probability.shape))
            dropped = probability
            if options.drop is not None:
                factors = options.drop(ScoreTile(line.sample, line.head, column, value is None))
                dropped = _multiplied(probability.clone(), factors)
                score_gradient = _multiplied(score_gradient, factors)
            _outer(
                dropped,
                gradient_columns[number],
                (line_key_gradient if line_value_gradient is None else line_value_gradient)[:, :, column],
            )
            score_gradient.sub_(shared_inner[number]).mul_(probability)
            line_query_gradient.baddbmm_(score_gradient, tile.transpose(1, 2))
            _outer(score_gradient, query_columns, line_key_gradient[:, :, column], add=line_value_gradient is None)
        line.write(query_gradient, line_query_gradient)
    return (
        query_gradient.to(query.dtype),
        key_gradient.to(key.dtype),
        None if value is None or value_gradient is None else value_gradient.to(value.dtype),
    )


def _transposed(rows: Tensor, line: Tensor) -> Tensor:
    """Rows [..., u, c] as [..., c, u], in the memory order that products with narrow lines [n, c, L] need."""
    turned = rows.transpose(-1, -2)
    return turned.contiguous() if line.shape[1] <= NARROW else turned


def _scores(query: Tensor, tile: Tensor, bias: Tensor | None, line: _Line, column: slice, buffer: _Buffer) -> Tensor:
    score = torch.bmm(query, tile, out=buffer.empty(query.shape[0], query.shape[1], tile.shape[2]))
    if bias is not None:
        missing = bias[line.sample, None, None, column]
        score.view(missing.shape[0], -1, *score.shape[1:]).add_(missing)
    return score


def _multiplied(x: Tensor, factors: Tensor) -> Tensor:
    """x [s * h, u, l], its first rows multiplied in place by factors [s, h, <= u, l]."""
    x.view(*factors.shape[:2], -1, factors.shape[3])[:, :, : factors.shape[2]].mul_(factors)
    return x
