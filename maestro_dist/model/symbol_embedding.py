"""From SAX symbols, and the samples inside the words, to tokens.

Letters: R rows, W words of w steps, D variates, d width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maestro_dist import rng
from maestro_dist.model.layers import Key, Linear


def _narrow(linear: Linear, x: Tensor) -> Tensor:
    """`linear` with few inputs. Transposed, the gradient of its weight takes a sixth of the time."""
    weight = linear.weight.t().clone(memory_format=torch.contiguous_format)
    out = torch.addmm(linear.bias, x.flatten(0, -2), weight)
    return out.view(*x.shape[:-1], out.shape[1])


class OrdinalEmbedding(nn.Module):
    """The symbols of a word's variates as numbers in [0, 1], then a linear layer. Missing is 0."""

    def __init__(self, variates: int, word: int, alphabet: int, width: int) -> None:
        super().__init__()
        self.alphabet = alphabet
        self.linear = Linear(variates, width)

    def forward(self, symbols: Tensor, samples: Tensor | None) -> Tensor:
        """Symbols uint8 [R, W, D] -> [R, W, d]."""
        return _narrow(self.linear, symbols.to(self.linear.weight.dtype) / self.alphabet)


class TableEmbedding(nn.Module):
    """A learned row for each (variate, symbol), summed over the variates. Row 0 of a variate means missing."""

    def __init__(self, variates: int, word: int, alphabet: int, width: int) -> None:
        super().__init__()
        self.variates, self.rows = variates, alphabet + 1
        self.weight = nn.Parameter(torch.empty(variates * self.rows, width))

    def fill(self, key: Key) -> None:
        """N(0, 1 / D), so that a token starts with variance 1 for any number of variates."""
        rng.fill_normal_(self.weight, self.variates**-0.5, key("weight"))

    def forward(self, symbols: Tensor, samples: Tensor | None) -> Tensor:
        """Symbols uint8 [R, W, D] -> [R, W, d]."""
        flat = symbols.reshape(-1, self.variates)
        summed = _EmbeddingSum.apply if symbols.device.type == "cpu" else _summed_rows
        out: Tensor = summed(self.weight, flat, self.rows)
        return out.view(*symbols.shape[:2], out.shape[1])


def _table_rows(symbols: Tensor, rows: int) -> Tensor:
    """int64 [n, D]: row numbers of symbols [n, D] in a table with `rows` rows for each variate."""
    return symbols + torch.arange(symbols.shape[1], device=symbols.device) * rows


def _summed_rows(weight: Tensor, symbols: Tensor, rows: int) -> Tensor:
    return F.embedding_bag(_table_rows(symbols, rows), weight, mode="sum")


class _EmbeddingSum(torch.autograd.Function):
    """`embedding_bag` that stores the symbols instead of row numbers. Its backward does not sort them."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, symbols: Tensor, rows: int) -> Tensor:
        """Weight [D x rows, d], symbols uint8 [n, D] -> [n, d]."""
        ctx.save_for_backward(symbols)
        ctx.rows = rows
        return _summed_rows(weight, symbols, rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Gradient of the weight."""
        (symbols,), gradient = ctx.saved_tensors, gradients[0]
        weight_gradient = gradient.new_zeros((symbols.shape[1] * ctx.rows, gradient.shape[1]))
        for row in _table_rows(symbols, ctx.rows).unbind(1):
            weight_gradient.index_add_(0, row, gradient)
        return weight_gradient, None, None


class PatchEmbedding(nn.Module):
    """`TableEmbedding` plus a linear layer on the word's own z-scored samples and their observed mask."""

    def __init__(self, variates: int, word: int, alphabet: int, width: int) -> None:
        super().__init__()
        self.table = TableEmbedding(variates, word, alphabet, width)
        self.linear = Linear(2 * word * variates, width)

    def forward(self, symbols: Tensor, samples: Tensor | None) -> Tensor:
        """Symbols uint8 [R, W, D], samples [R, W, w, 2 D] of `sax.SaxWords` -> [R, W, d]."""
        assert samples is not None
        table: Tensor = self.table(symbols, samples)
        return table + _narrow(self.linear, samples.flatten(2))


SYMBOL_EMBEDDINGS = {"ordinal": OrdinalEmbedding, "table": TableEmbedding, "patch": PatchEmbedding}
"""By `model.embedding`."""
