"""One attention layer over a sequence that ranks share, in three ways, and the bytes that each hands to collectives.

All ways have the same parameters and draw the same keys, so that they compute the same thing. Letters: L tokens over
all ranks, P ranks, n = L / P tokens of one, H heads, h = H / P of them, d width, d_h head width, u selected queries.
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
from maestro_dist.parallel.load_deepspeed import load_deepspeed
from maestro_dist.parallel.sequence import SequenceRanks, time_cuts

NATIVE, PLAIN, ULYSSES, GATHERED = (
    "sparse-native", "sparse-native, plain form", "Ulysses", "gathered keys and values",
)  # fmt: skip

_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


_INPUT = {"allreduce_": 0, "_allgather_base_": 1, "alltoall_base_": 1, "_reduce_scatter_base_": 1}
"""Of each collective operator, which argument is what this rank hands in."""


class Shape(NamedTuple):
    """Numbers of a layer."""

    length: int
    width: int
    heads: int

    def formula(self, way: str, ranks: int) -> float:
        """Bytes that a rank hands to collectives in forward and backward, float32."""
        selected = sampling.cap(FACTOR, self.length)
        array = 4 * self.length * self.width
        if way in (NATIVE, PLAIN):
            return 5 * selected * self.width * 4 + 12 * self.heads * selected
        if way == ULYSSES:
            return 8 * array / ranks
        # keys and values of a rank, there; their gradients for all, back; the offers for the best queries
        return 2 * array / ranks + 2 * array + 8 * self.heads * selected


class Way(NamedTuple):
    """A layer whose `call` maps this rank's tokens [n, d] to their outputs [n, d]; `tokens` is n."""

    layer: Attention
    call: Callable[[Tensor], Tensor]
    tokens: int


class Handed(TorchDispatchMode):
    """Counts the bytes of what this rank hands to collectives while it is active, whichever library calls them.

    It looks at the operators of `torch.distributed`, in which they all end.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count, and go on."""
        if func.namespace == "c10d" and func._schema.name != "c10d::barrier":
            position = _INPUT.get(func._schema.name.partition("::")[2])
            if position is None:
                raise RuntimeError(f"{func._schema.name}: it is not known what a rank hands to it")
            given = args[position]
            self.bytes += sum(x.nbytes for x in given) if isinstance(given, list) else given.nbytes
        return func(*args, **(kwargs or {}))


def make(way: str, shape: Shape, dtype: torch.dtype = torch.float32) -> Way:
    """The layer by `way` on this rank. All ranks of the world must make the same ones in the same order."""
    return _MAKERS[way](shape, dtype)


def one_process(shape: Shape, dtype: torch.dtype = torch.float32) -> Way:
    """The model's layer on all tokens, in this process alone."""
    layer, layout = _layer(shape, dtype), layout_of(shape.length, "cpu")
    queries = _queries(layer, layout)
    return Way(layer, lambda x: layer(x, layout, queries, 0), shape.length)


def _native(shape: Shape, dtype: torch.dtype, form: str = "auto") -> Way:
    """The model's layer on sequence ranks."""
    sequence, layout = _slice(shape.length)
    layer = _layer(shape, dtype, sequence, form)
    queries = _queries(layer, layout)
    return Way(layer, lambda x: layer(x, layout, queries, 0), layout.parts[0].words)


def _ulysses(shape: Shape, dtype: torch.dtype) -> Way:
    """DeepSpeed's all-to-all, from slices of time to heads and back, around attention over all tokens."""
    load_deepspeed("cpu").init_distributed("gloo")
    from deepspeed.sequence.layer import DistributedAttention

    rank, ranks = dist.get_rank(), dist.get_world_size()
    if shape.length % ranks or shape.heads % ranks:
        raise ValueError(f"{ranks} ranks must divide {shape.length} tokens and {shape.heads} heads: it would hang")
    layer, whole = _layer(shape, dtype), layout_of(shape.length, "cpu")
    queries, own = _queries(layer, whole), shape.heads // ranks
    heads = slice(rank * own, (rank + 1) * own)

    def core(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[1, L, h, d_h] each -> [1, L, h, d_h]."""
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        scores = _scores(layer, query, key, whole, heads)
        chosen = sampling.best_queries(scores, whole, sampling.cap(FACTOR, shape.length), OneProcess())
        best = TakeRows.apply(query, chosen.column)
        mean, delta = _attended(best, key, value, query_weights(queries, chosen.number.shape[2], 0.0)[:, None])
        mean = mean + layer.value_bias.view(1, shape.heads, 1, -1)[:, heads]
        return _filled(mean, delta, chosen.column, shape.length)[None]

    attention = DistributedAttention(core, dist.group.WORLD, scatter_idx=2, gather_idx=1)

    def call(x: Tensor) -> Tensor:
        each = [tokens.view(1, len(x), shape.heads, -1) for tokens in _projected(layer, x).chunk(3, 1)]
        context = attention(*each, 0)
        return F.linear(context.reshape(x.shape), layer.output_weight, layer.output_bias)

    return Way(layer, call, shape.length // ranks)


def _gathered(shape: Shape, dtype: torch.dtype) -> Way:
    """Every rank gets all keys and values, and attends those of the best queries that it holds."""
    sequence, mine = _slice(shape.length)
    layer, whole = _layer(shape, dtype), layout_of(shape.length, "cpu")
    queries, limit = _queries(layer, whole), sampling.cap(FACTOR, shape.length)

    def call(x: Tensor) -> Tensor:
        packed = _projected(layer, x)
        query = packed[:, : shape.width].view(1, len(x), shape.heads, -1).transpose(1, 2)
        every = _Everyones.apply(packed[:, shape.width :])
        key, value = SplitProjections.apply(every.view(1, shape.length, 2, shape.heads, -1), None)
        chosen = sampling.best_queries(_scores(layer, query, key, whole, slice(None)), mine, limit, sequence)
        # those held here come first: the work on the others is left to their ranks
        assert chosen.held is not None  # there is more than one rank
        held = chosen.held.long()
        first = held.argsort(dim=-1, descending=True, stable=True)[..., : int(held.sum(-1).max())]
        column = chosen.column.gather(2, first)
        weights = query_weights(queries, limit, 0.0)[:, None] * held
        best = TakeRows.apply(query, column)
        mean, delta = _attended(best, key, value, weights.gather(2, first))
        context = _filled(mean + layer.value_bias.view(1, shape.heads, 1, -1), delta, column, len(x))
        return F.linear(context.view(x.shape), layer.output_weight, layer.output_bias)

    return Way(layer, call, mine.parts[0].words)


_MAKERS: dict[str, Callable[[Shape, torch.dtype], Way]] = {
    NATIVE: _native,
    PLAIN: lambda shape, dtype: _native(shape, dtype, "plain"),
    ULYSSES: _ulysses,
    GATHERED: _gathered,
}
WAYS = tuple(_MAKERS)


class _Everyones(torch.autograd.Function):
    """All ranks' tokens [n, c] joined, [L, c]; the gradients are summed, and each rank gets that of its own."""

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


def _slice(length: int) -> tuple[SequenceRanks, TokenLayout]:
    """This rank's part of one modality, all tokens observed."""
    world = dist.group.WORLD
    assert world is not None
    rank, cuts = dist.get_rank(), time_cuts(length, 1, dist.get_world_size())
    sequence = SequenceRanks(world, {"x": cuts})
    words, rows = cuts[rank + 1] - cuts[rank], torch.zeros(1, dtype=torch.int64)
    mask = torch.ones(1, words, dtype=torch.bool)
    part = ModalityTokens(rows=1, summary=0, words=words, first_word=cuts[rank], summary_total=0, words_total=length)
    planned = plan_depths(EnteringTokens([part], [mask], [mask[:, :0]], [rows], 1), [], sequence)
    return sequence, modality_layout(planned, 0, 0, rows, rows)


def _queries(layer: Attention, layout: TokenLayout) -> Tensor:
    return queries_from_budgets(
        layout.observed.new_full((1,), FACTOR, dtype=layer.query_weight.dtype), layout.observed
    ).queries


def _projected(layer: Attention, x: Tensor) -> Tensor:
    """Queries, keys and values [n, 3 d] of tokens [n, d], the values without their bias."""
    bias = torch.cat((layer.query_bias, layer.query_bias.new_zeros(2 * len(layer.query_bias))))
    return F.linear(x, torch.cat((layer.query_weight, layer.key_weight, layer.value_weight)), bias)


@torch.no_grad()
def _scores(layer: Attention, query: Tensor, key: Tensor, whole: TokenLayout, heads: slice) -> Tensor:
    """The metric of queries [1, h, n, d_h] by keys of all tokens [1, h, L, d_h], drawn as the layer draws them."""
    sizes = sampling.sample_sizes(layer.sample_factor, whole.observed)
    draws = rng.key(layer.seed, "keys", layer.name, 0)
    rank = sampling.drawn_keys(sizes, sampling.cap(layer.sample_factor, whole.capacity), whole, draws, layer.heads)
    column, held = sampling.locate_tokens(rank[:, heads], sizes, whole)
    sampled = sampling.centred(sampling.gather_rows(key, column, held), sizes)
    return largest_product(query, sampled, None, 1)


def _attended(best: Tensor, key: Tensor, value: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of the values [1, h, 1, d_h]; what the attention of rows [1, h, u, d_h] differs from it, times weights."""
    best = F.pad(best * best.shape[3] ** -0.5, (0, 0, 0, 1))
    out, _ = attend(best, key, value)
    mean = out[:, :, -1:]
    return mean, weights[..., None] * (out[:, :, :-1] - mean)


def _filled(mean: Tensor, delta: Tensor, column: Tensor, length: int) -> Tensor:
    """Context [length, h, d_h]: the mean for each token, and what is added to the selected ones."""
    _, heads, _, width = delta.shape
    row = column * heads + torch.arange(heads)[:, None]
    context: Tensor = FillRows.apply(mean.flatten(1), delta.flatten(0, 2), row.flatten(), length)
    return context.view(length, heads, width)
