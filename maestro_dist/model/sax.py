"""Missingness-aware SAX: from raw windows to symbols, and to the samples inside the words.

Letters: R rows (samples that have the modality), T steps, W words of w steps, D variates. A step that is not finite is
missing; an incomplete last word is padded with missing steps. Statistics and comparisons are float64. Nothing here has
a gradient.

Windows are read in tiles that stay in a CPU's cache. Sums have a fixed order (a tree). So statistics and
symbols of a window depend neither on other rows of the batch nor on the number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from maestro_dist.model.context import OneProcess, SequenceContext

_CONSTANT = 1e-13
"""A spread below this share of the mean is rounding: the variate is constant (float32 resolves 6e-8)."""

_TILE, _ACCELERATOR_TILE = 1 << 17, 1 << 24
"""Numbers of a tile on a CPU (1 MiB of float64) and on an accelerator."""

_SUMS = 16
"""Number of partial sums of each tile; they are added at the end."""

_LONG_WORD = 64
"""Words with at least this many steps are summed by halves, which needs fewer calls than step by step."""

FARTHEST = 1000.0
"""z-scores are limited to this: a placeholder (-9999) or a broken reading (1e30) must not dominate a batch. Sensors
stay far below: three real data sets, one of them with typing errors, reach 79."""

_CELLS = 1 << 14
"""Cells of the table that finds symbols on a CPU."""


class WindowMoments(NamedTuple):
    """Count n, mean and M2 = sum of squared deviations over the observed steps, float64 [R, D]."""

    n: Tensor
    mean: Tensor
    m2: Tensor


class SaxWords(NamedTuple):
    """Input of the embeddings.

    symbols  uint8 [R, W, D]: 1..alpha, 0 = missing
    samples  [R, W, w, 2 D]: z-scored samples, 0 where missing, then their observed mask; None if not requested
    whole    whether all steps are known to be observed (always False on an accelerator: the check would wait)
    """

    symbols: Tensor
    samples: Tensor | None
    whole: bool

    @property
    def observed(self) -> Tensor:
        """bool [R, W]: which words have an observed sample."""
        return (self.symbols > 0).any(2)


def breakpoints(alphabet: int) -> Tensor:
    """The alpha - 1 breakpoints that divide N(0, 1) into equiprobable regions, float64."""
    return torch.special.ndtri(torch.arange(1, alphabet, dtype=torch.float64) / alphabet)


def tokenise(
    values: Tensor,
    word: int,
    edges: Tensor,
    reference: tuple[Tensor, Tensor] | None = None,
    sequence: SequenceContext | None = None,
) -> Tensor:
    """Symbols uint8 [R, W, D] of raw windows (SAX of Lin et al., 2007, with a symbol for missing words).

    values float [R, T, D]; word: steps per word; edges = `breakpoints(alphabet)`; reference: mean and divisor from
    `given_reference`, or None for the window's own mean and deviation, over all ranks of `sequence`.
    """
    if reference is None:
        reference = window_reference(window_moments(values, sequence or OneProcess()))
    return words(values, word, edges, reference).symbols


def window_moments(values: Tensor, sequence: SequenceContext, end: int | None = None) -> WindowMoments:
    """WindowMoments of [R, T, D] over all steps, in two passes (sums of squares would lose precision).

    If no step from `end` on is observed, they are not looked at. The order of each sum stays that of T steps, so that
    statistics, and with them symbols, do not depend on the other rows.
    """
    tiles, (rows, _, variates) = list(_tiles(values, 1)), values.shape
    parts = max(1, len({steps.start for _, steps in tiles}))
    count = values.new_zeros((rows, parts, variates), dtype=torch.float64)
    total, square = values.new_zeros((2, rows, parts, _SUMS, variates), dtype=torch.float64)
    ends = [steps.stop if end is None else max(steps.start, min(steps.stop, end)) for _, steps in tiles]
    for number, (chosen, steps) in enumerate(tiles):
        x, mask = _observed(values[chosen, steps.start : ends[number]])
        count[chosen, number % parts] = x.shape[1] if mask is None else mask.sum(1, dtype=torch.float64)
        _fold_into(total[chosen, number % parts], _with_zeros(x, steps.stop - ends[number]))
    n, summed = sequence.all_reduce_sum(torch.stack((_fold(count)[:, 0], _fold(total.flatten(1, 2))[:, 0])))
    mean = summed / n.clamp_min(1)
    reference = _Reference(mean)
    for number, (chosen, steps) in enumerate(tiles):
        x, mask = _observed(values[chosen, steps.start : ends[number]])
        reference.score(x, chosen)
        if mask is not None:
            x.mul_(mask)
        _fold_into(square[chosen, number % parts], _with_zeros(x.square_(), steps.stop - ends[number]))
    return WindowMoments(n, mean, sequence.all_reduce_sum(_fold(square.flatten(1, 2))[:, 0]))


def window_reference(window: WindowMoments) -> tuple[Tensor, Tensor]:
    """Mean and divisor of `normalize: window`. The divisor of a constant variate is infinite, so its z is 0."""
    std = (window.m2 / window.n.clamp_min(1)).sqrt()
    return window.mean, torch.where(std > _CONSTANT * window.mean.abs(), std, torch.inf)


def given_reference(mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and divisor from statistics [.., D] of a recording or data set, float64.

    For a variate that was constant there (std 0), z is the difference from its mean: 0 for the same value, and finite
    for another.
    """
    mean, std = mean.double(), std.double()
    return mean, torch.where(std > _CONSTANT * mean.abs(), std, 1.0)


def words(
    values: Tensor, word: int, edges: Tensor, reference: tuple[Tensor, Tensor], dtype: torch.dtype | None = None
) -> SaxWords:
    """Symbols of raw windows [R, T, D] for references [R, D] or [D], and the samples in `dtype` if it is given.

    A word's symbol belongs to the mean over its observed steps. z at a breakpoint gets the higher symbol; 0 is missing.
    """
    rows, steps, variates = values.shape
    length = -(-steps // word)
    scale = _Reference(*(part.expand(rows, variates) for part in reference))
    symbols = torch.empty((rows, length, variates), dtype=torch.uint8, device=values.device)
    samples = None
    if dtype is not None:
        samples = values.new_zeros((rows, length * word, 2 * variates), dtype=dtype)
    whole = values.device.type == "cpu" and length * word == steps
    for chosen, span in _tiles(values, word):
        x, mask = _observed(values[chosen, span])
        whole = whole and mask is None
        if samples is not None:
            z = scale.score(x.clone(), chosen).clamp_(-FARTHEST, FARTHEST)
            samples[chosen, span, :variates] = z if mask is None else z.mul_(mask)
            samples[chosen, span, variates:] = 1 if mask is None else mask
        if x.shape[1] % word:
            tail = (0, 0, 0, word - x.shape[1] % word)
            x, mask = F.pad(x, tail), F.pad(torch.ones_like(x) if mask is None else mask, tail)
        target = symbols[chosen, span.start // word : -(-span.stop // word)]
        if mask is None:
            target.copy_(_symbols(scale.score(_word_sums(x, word).div_(word), chosen), edges))
        else:
            count = _word_sums(mask, word)
            average = _word_sums(x, word).div_(count.clamp_min(1))
            target.copy_(_symbols(scale.score(average, chosen), edges).mul_(count > 0))
    if samples is not None:
        samples = samples.view(rows, length, word, 2 * variates)
    return SaxWords(symbols, samples, whole)


def _tiles(values: Tensor, word: int) -> Iterator[tuple[slice, slice]]:
    """Rows and steps of each tile of [R, T, D], the rows' tiles in order of time.

    Steps are a power of two of words that depends on word and D alone, never on the batch.
    """
    rows, steps, variates = values.shape
    tile = _TILE if values.device.type == "cpu" else _ACCELERATOR_TILE
    length = word << max(0, (tile // (word * variates)).bit_length() - 1)
    height = max(1, tile // (min(length, max(1, steps)) * variates))
    for row in range(0, rows, height):
        for step in range(0, steps, length):
            yield slice(row, row + height), slice(step, min(steps, step + length))


def _observed(values: Tensor) -> tuple[Tensor, Tensor | None]:
    """A tile in float64, 0 where not observed, and its mask as numbers; None if everything is observed.

    The check runs on a CPU only: the sum is finite only if every number is finite.
    """
    if values.device.type == "cpu" and math.isfinite(values.sum().item()):
        return values.to(torch.float64, copy=True).contiguous(), None
    x = values.contiguous()
    mask = (x - x).eq_(0).float()  # 0 for finite numbers, NaN for others; half precision could not count
    return torch.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0).to(torch.float64, copy=True), mask


def _fold(x: Tensor, sums: int = 1) -> Tensor:
    """Sum of [R, n, D] over dim 1 by halves, in place, until at most `sums` >= 1 are left."""
    size = x.shape[1]
    while size > sums:
        half = size // 2
        x.narrow(1, 0, half).add_(x.narrow(1, size - half, half))
        size -= half
    return x.narrow(1, 0, size)


def _with_zeros(x: Tensor, count: int) -> Tensor:
    """x [R, n, D] and `count` zeros."""
    return F.pad(x, (0, 0, 0, count)) if count else x


def _fold_into(out: Tensor, x: Tensor) -> None:
    """Partial sums of a tile [R, n, D] into zeros [R, _SUMS, D]."""
    sums = _fold(x, _SUMS)
    out.narrow(1, 0, sums.shape[1]).copy_(sums)


class _Reference:
    """Mean and divisor, float64 [R, D], for all steps of a tile.

    They are repeated, so that several steps are one row: with D numbers alone the inner loops would be short.
    """

    def __init__(self, *numbers: Tensor) -> None:
        self.numbers, self.first = numbers, -1
        self.repeated: dict[int, list[Tensor]] = {}

    def score(self, x: Tensor, rows: slice) -> Tensor:
        """(x - mean) / divisor of contiguous [R, n, D], in place."""
        height, steps, variates = x.shape
        repeats = math.gcd(steps, 64)
        if repeats * variates < 32:
            repeats = max(1, steps)
        if self.first != rows.start:
            self.first, self.repeated = rows.start, {}
        if repeats not in self.repeated:
            self.repeated[repeats] = [number[rows, None].repeat(1, 1, repeats) for number in self.numbers]
        flat = x.view(height, steps // repeats, repeats * variates)
        mean, *divisor = self.repeated[repeats]
        flat.sub_(mean)
        if divisor:
            flat.div_(divisor[0])
        return x


def _word_sums(x: Tensor, word: int) -> Tensor:
    """[R, W x w, D] -> sums of the words, contiguous [R, W, D]; x may be overwritten."""
    if word >= _LONG_WORD:
        halves = x.contiguous().view(-1, word, x.shape[2])
        return _fold(halves).double().contiguous().view(x.shape[0], -1, x.shape[2])
    first, *rest = x.unflatten(1, (-1, word)).unbind(2)
    total = first.double() if not rest else first + rest[0]
    for part in rest[1:]:
        total += part
    return total.contiguous()


def _symbols(z: Tensor, edges: Tensor) -> Tensor:
    """uint8 [R, W, D]: 1 + the number of breakpoints that are not above z."""
    if z.device.type != "cpu":
        return (torch.bucketize(z, edges, right=True, out_int32=True) + 1).to(torch.uint8)
    table, scale, offset = _table(len(edges) + 1)
    cell = (z * scale).add_(offset).float().clamp_(0, _CELLS - 1).nan_to_num_().int()
    symbols = table.index_select(0, cell.view(-1))
    close = symbols.eq(0).nonzero()[:, 0]
    if len(close):
        exact = torch.bucketize(z.view(-1).index_select(0, close), edges, right=True) + 1
        symbols.index_copy_(0, close, exact.to(torch.uint8))
    return symbols.view(z.shape)


@lru_cache(maxsize=8)
def _table(alphabet: int) -> tuple[Tensor, float, Tensor]:
    """Symbols by cell of z, with scale and offset from z to its cell; 0 if a breakpoint is too close to decide.

    The cell is computed in float32. Its rounding (1e-3 of a cell) is below the margin around a breakpoint (1e-2).
    """
    edges = breakpoints(alphabet)
    reach = edges[-1].item() + 0.5
    scale = (_CELLS - 2) / (2 * reach)
    offset = torch.tensor(_CELLS / 2, dtype=torch.float64)
    corners = (torch.arange(_CELLS + 1, dtype=torch.float64) - offset) / scale
    low, high = (torch.bucketize(corners + side * 1e-2 / scale, edges, right=True) for side in (-1, 1))
    symbols = torch.where(low[:-1] == high[1:], low[:-1] + 1, 0)
    return symbols.to(torch.uint8), scale, offset
