"""The core of ProbSparse attention by itself, without projections and layouts: for tests, benchmarks and reading."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from maestro_dist import rng
from maestro_dist.model.attention import sampling
from maestro_dist.model.attention.kernel import AttendOptions, attend
from maestro_dist.model.attention.row_functions import FillRows, TakeRows
from maestro_dist.model.attention.tiles import largest_product
from maestro_dist.model.context import OneProcess
from maestro_dist.model.layout import layout_of_mask


class ProbSparseOptions(NamedTuple):
    """ceil(sample_factor ln L) keys are sampled, ceil(factor ln L) queries selected; seed and step key the draws."""

    sample_factor: float
    factor: float
    training: bool = True
    seed: int = 0
    step: int = 0


def probsparse(
    query: Tensor, key: Tensor, value: Tensor, options: ProbSparseOptions, mask: Tensor | None = None
) -> Tensor:
    """The selected queries of each head attend; all other positions get the mean value (paper section 3).

    query, key, value [S, H, L, d_h]; mask bool [S, L] of observed tokens, None: all. Returns [S, H, L, d_h]; the rows
    of missing tokens are undefined.
    """
    samples, heads, length, width = query.shape
    if mask is None:
        mask = torch.ones((samples, length), dtype=torch.bool, device=query.device)
    layout = layout_of_mask(mask)
    with torch.no_grad():
        sizes = sampling.sample_sizes(options.sample_factor, layout.observed)
        count = sampling.cap(options.sample_factor, length) or min(1, length)
        if options.training:
            rank = sampling.drawn_keys(sizes, count, layout, rng.key(options.seed, "keys", options.step), heads)
        else:
            rank = sampling.strided_keys(sizes, count, layout).expand(-1, heads, -1)
        column, held = sampling.locate_tokens(rank, sizes, layout)
        keys = sampling.centred(sampling.gather_rows(key, column, held), sizes)
        scores = largest_product(query, keys, None, 1)
        selected = sampling.best_queries(scores, layout, sampling.cap(options.factor, length), OneProcess())
        wanted = torch.minimum(layout.observed, sampling.sample_sizes(options.factor, layout.observed))
        weights = torch.arange(selected.number.shape[2], device=query.device) < wanted[:, None]
    rows: Tensor = TakeRows.apply(query, selected.column)
    best = F.pad(rows * width**-0.5, (0, 0, 0, 1))
    out, _ = attend(best, key, value, AttendOptions(bias=layout.bias))
    out = out.to(value.dtype)
    if layout.bias is not None:
        out = out * (layout.observed > 0)[:, None, None, None]
    mean = out[:, :, -1:]
    number = torch.arange(samples * heads, device=query.device).view(samples, heads, 1) * length + selected.column
    delta = (out[:, :, :-1] - mean) * weights[:, None, :, None]
    context: Tensor = FillRows.apply(mean.flatten(0, 2), delta.flatten(0, 2), number.flatten(), length)
    return context.view(value.shape)
