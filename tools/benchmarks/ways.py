"""One attention layer over a sequence that ranks share, in three ways, and the bytes that each sends to collectives.

Two are the product's own, by the context that the layer gets (`SequenceRanks`, `UlyssesRanks`); the third gathers all
keys and values on every rank. All have the same parameters and draw the same keys, so they compute the same result.
Letters: L tokens on all ranks, P ranks, n = L / P tokens of one rank, H heads, d width, d_h head width, u selected
queries.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.cases import FACTOR, SEED, layout_of
from maestro_dist import rng
from maestro_dist.config.model import ModelConfig
from maestro_dist.model.attention import sampling
from maestro_dist.model.attention.kernel import attend
from maestro_dist.model.attention.layer import Attention
from maestro_dist.model.attention.row_functions import FillRows, SplitProjections, TakeRows
from maestro_dist.model.attention.selection import query_weights
from maestro_dist.model.attention.tiles import largest_product
from maestro_dist.model.budget import queries_from_budgets
from maestro_dist.model.context import OneProcess, SequenceContext
from maestro_dist.model.layout import EnteringTokens, ModalityTokens, TokenLayout, modality_layout, plan_depths
from maestro_dist.parallel.sequence import SequenceRanks, time_cuts
from maestro_dist.parallel.ulysses import UlyssesRanks

NATIVE, PLAIN, ULYSSES, GATHERED = (
    "sparse-native", "sparse-native, plain form", "Ulysses", "gathered keys and values",
)  # fmt: skip

_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
_INPUT = {"allreduce_": 0, "_allgather_base_": 1, "alltoall_base_": 1, "_reduce_scatter_base_": 1}
"""For each collective operator, the number of the argument that this rank sends."""


class Shape(NamedTuple):
    """Sizes of a layer."""

    length: int
    width: int
    heads: int

    def formula(self, way: str, ranks: int) -> float:
        """Bytes that a rank sends to collectives in forward and backward, float32."""
        selected = sampling.cap(FACTOR, self.length)
        array = 4 * self.length * self.width
        if way in (NATIVE, PLAIN):
            return 5 * selected * self.width * 4 + 12 * self.heads * selected
        if way == ULYSSES:
            return 8 * array / ranks
        # keys and values of this rank; the gradients of all keys and values; candidates for the best queries
        return 2 * array / ranks + 2 * array + 8 * self.heads * selected


class Way(NamedTuple):
    """A layer whose `call` maps this rank's tokens [n, d] to their outputs [n, d]; `tokens` is n."""

    layer: Attention
    call: Callable[[Tensor], Tensor]
    tokens: int


class Handed(TorchDispatchMode):
    """Counts the bytes that this rank sends to collectives while it is active, whichever library calls them.

    It counts at the operators of `torch.distributed`, which all libraries call.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count, then call the operator."""
        if func.namespace == "c10d" and func._schema.name != "c10d::barrier":
            position = _INPUT.get(func._schema.name.partition("::")[2])
            if position is None:
                raise RuntimeError(f"{func._schema.name}: an unknown collective, whose bytes cannot be counted")
            given = args[position]
            self.bytes += sum(x.nbytes for x in given) if isinstance(given, list) else given.nbytes
        return func(*args, **(kwargs or {}))


def make(way: str, shape: Shape, dtype: torch.dtype = torch.float32) -> Way:
    """The layer by `way` on this rank. All ranks of the world must make the same layers in the same order."""
    return _MAKERS[way](shape, dtype)


def one_process(shape: Shape, dtype: torch.dtype = torch.float32) -> Way:
    """The model's layer on all tokens, in this process alone."""
    layer, layout = _layer(shape, dtype), layout_of(shape.length, "cpu")
    queries = _queries(layer, layout)
    return Way(layer, lambda x: layer(x, layout, queries, 0), shape.length)


def _shared(shape: Shape, dtype: torch.dtype, context: type[SequenceRanks] = SequenceRanks, form: str = "auto") -> Way:
    """The model's layer on the ranks of a context."""
    sequence, layout = _slice(shape.length, context)
    layer = _layer(shape, dtype, sequence, form)
    queries = _queries(layer, layout)
    return Way(layer, lambda x: layer(x, layout, queries, 0), layout.parts[0].words)


def _gathered(shape: Shape, dtype: torch.dtype) -> Way:
    """Every rank gets all keys and values, and computes the attention of the best queries that it holds."""
    sequence, mine = _slice(shape.length, SequenceRanks)
    layer, whole = _layer(shape, dtype), layout_of(shape.length, "cpu")
    queries, limit = _queries(layer, whole), sampling.cap(FACTOR, shape.length)
    draws = rng.key(layer.seed, "keys", layer.name, 0)  # as the layer draws them

    @torch.no_grad()
    def scores(query: Tensor, key: Tensor) -> Tensor:
        """The metric of queries [1, H, n, d_h] with sampled keys of [1, H, L, d_h]."""
        sizes = sampling.sample_sizes(layer.sample_factor, whole.observed)
        most = sampling.cap(layer.sample_factor, whole.capacity)
        column, held = sampling.locate_tokens(sampling.drawn_keys(sizes, most, whole, draws, layer.heads), sizes, whole)
        return largest_product(query, sampling.centred(sampling.gather_rows(key, column, held), sizes), None, 1)

    def call(x: Tensor) -> Tensor:
        # without the bias of the values, which the layer adds after the attention
        bias = torch.cat((layer.query_bias, layer.query_bias.new_zeros(2 * len(layer.query_bias))))
        packed = F.linear(x, torch.cat((layer.query_weight, layer.key_weight, layer.value_weight)), bias)
        query = packed[:, : shape.width].view(1, len(x), shape.heads, -1).transpose(1, 2)
        every = _Everyones.apply(packed[:, shape.width :])
        key, value = SplitProjections.apply(every.view(1, shape.length, 2, shape.heads, -1), None)
        chosen = sampling.best_queries(scores(query, key), mine, limit, sequence)
        # the queries that this rank holds come first; other ranks compute the others
        assert chosen.held is not None  # there is more than one rank
        held = chosen.held.long()
        first = held.argsort(dim=-1, descending=True, stable=True)[..., : int(held.sum(-1).max())]
        column = chosen.column.gather(2, first)
        weights = (query_weights(queries, limit, 0.0)[:, None] * held).gather(2, first)
        best = TakeRows.apply(query, column)
        best = F.pad(best * best.shape[3] ** -0.5, (0, 0, 0, 1))  # a query of zeros attends to the mean of the values
        out, _ = attend(best, key, value)
        mean = out[:, :, -1:]
        delta = weights[..., None] * (out[:, :, :-1] - mean)
        row = column * shape.heads + torch.arange(shape.heads)[:, None]
        mean = mean + layer.value_bias.view(1, shape.heads, 1, -1)
        context = FillRows.apply(mean.flatten(1), delta.flatten(0, 2), row.flatten(), len(x))
        return F.linear(context.view(x.shape), layer.output_weight, layer.output_bias)

    return Way(layer, call, mine.parts[0].words)


_MAKERS: dict[str, Callable[[Shape, torch.dtype], Way]] = {
    NATIVE: _shared,
    PLAIN: lambda shape, dtype: _shared(shape, dtype, form="plain"),
    ULYSSES: lambda shape, dtype: _shared(shape, dtype, UlyssesRanks),
    GATHERED: _gathered,
}
WAYS = tuple(_MAKERS)


class _Everyones(torch.autograd.Function):
    """All ranks' tokens [n, c] joined, [L, c]; the gradients are summed, and each rank gets those of its tokens."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        every = x.new_empty(len(x) * dist.get_world_size(), x.shape[1])
        _all_gather(every, x.contiguous())
        return every

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].contiguous()
        own = gradient.new_empty(len(gradient) // dist.get_world_size(), gradient.shape[1])
        _reduce_scatter(own, gradient)
        return own


def _layer(shape: Shape, dtype: torch.dtype, sequence: SequenceContext | None = None, form: str = "auto") -> Attention:
    config = ModelConfig.model_validate(
        {
            "width": shape.width,
            "heads": shape.heads,
            "dropout": 0.0,
            "sample_factor": FACTOR,
            "attention_algorithm": form,
        }
    )
    layer = Attention("layer", config, FACTOR, SEED, sequence or OneProcess())
    layer.fill(lambda name: rng.key(SEED, "init", name))
    return layer.to(dtype)


def _slice(length: int, context: type[SequenceRanks]) -> tuple[SequenceRanks, TokenLayout]:
    """This rank's slice of one modality, all tokens observed."""
    world = dist.group.WORLD
    assert world is not None
    rank, cuts = dist.get_rank(), time_cuts(length, 1, dist.get_world_size())
    sequence = context(world, {"x": cuts})
    words, rows = cuts[rank + 1] - cuts[rank], torch.zeros(1, dtype=torch.int64)
    mask = torch.ones(1, words, dtype=torch.bool)
    bounds = () if sequence.head_exchange is None else sequence.head_exchange.word_bounds("x", 1)
    part = ModalityTokens(1, 0, words, first_word=cuts[rank], summary_total=0, words_total=length, word_bounds=bounds)
    planned = plan_depths(EnteringTokens([part], [mask], [mask[:, :0]], [rows], 1), [], sequence)
    return sequence, modality_layout(planned, 0, 0, rows, rows)


def _queries(layer: Attention, layout: TokenLayout) -> Tensor:
    return queries_from_budgets(
        layout.observed.new_full((1,), FACTOR, dtype=layer.query_weight.dtype), layout.observed
    ).queries
