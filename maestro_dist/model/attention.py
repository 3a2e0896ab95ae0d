"""ProbSparse attention with real-valued budgets over observed tokens only, and its dense counterpart.

Letters: S samples, L columns (padded tokens held here), N tokens (flat), H heads, d_h head width, U sampled keys, u
selected queries.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from maestro_dist import rng
from maestro_dist.config.model import ModelConfig
from maestro_dist.errors import ConfigError
from maestro_dist.model import cost, sampling, sparse
from maestro_dist.model.context import OneProcess, SequenceContext
from maestro_dist.model.layers import Key
from maestro_dist.model.layout import TokenLayout, pack_numbers
from maestro_dist.model.sampling import Chosen

_LOG = logging.getLogger(__name__)


def query_weights(queries: Tensor, limit: int, band: float) -> Tensor:
    """w_r = clamp(n - r, 0, 1) for ranks r < limit: real-valued n [S] -> [S, limit].

    The gradient of n flows through the boundary query alone; with a band it is spread evenly over the last `band`
    selected ones (straight through: the value is unchanged).
    """
    rank = torch.arange(limit, dtype=queries.dtype, device=queries.device)
    weights = (queries[:, None] - rank).clamp(0, 1)
    if band > 0:
        soft = ((queries[:, None] - rank) / band).clamp(0, 1)
        weights = weights.detach() + (soft - soft.detach())
    return weights


class Split(torch.autograd.Function):
    """Keys and values, and the selected rows of the queries if there are any, out of one packed array of projections.

    Their gradients are written into one array again, which lies in memory as the packed one does.
    """

    @staticmethod
    def forward(ctx: Any, packed: Tensor, column: Tensor | None) -> tuple[Tensor, ...]:
        """packed [S, L, n, H, d_h]; column int64 [S, H, u] (n = 3), or None (n = 2).

        Returns keys and values, views [S, H, L, d_h], then the rows [S, H, u, d_h].
        """
        ctx.shape, ctx.upright = packed.shape, packed.stride(4) != 1
        parts = packed.detach().permute(2, 0, 3, 1, 4)
        if column is None:
            return parts[0], parts[1]
        ctx.save_for_backward(column)
        return parts[1], parts[2], sampling.rows(parts[0], column, None)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Gradient of the packed array."""
        samples, length, count, heads, width = ctx.shape
        if ctx.upright:
            out = gradients[0].new_empty(count, heads, width, samples, length).permute(3, 4, 0, 1, 2)
        else:
            out = gradients[0].new_empty(ctx.shape)
        parts = out.permute(2, 0, 3, 1, 4)
        if len(gradients) == 3:
            (column,) = ctx.saved_tensors
            if length:
                parts[0].zero_().scatter_add_(2, column[..., None].expand(-1, -1, -1, width), gradients[2])
        parts[-2].copy_(gradients[0])
        parts[-1].copy_(gradients[1])
        return out, None


class Attention(nn.Module):
    """Multi-head self-attention of one layer.

    For each head the best queries by the sparsity metric attend fully; every other position gets the mean of the
    values. The key projection has no bias: it would change neither softmax nor metric. Probabilities are dropped only
    on the selected rows, and the value bias is added after them; dense attention drops none, so that its [L, L]
    probabilities are never kept. The mean of the values is the attention of a query of zeros, one more row.
    """

    def __init__(self, name: str, config: ModelConfig, factor: float, seed: int, sequence: SequenceContext) -> None:
        """`name` keys the draws; `factor` is the largest budget: at most factor ln L queries."""
        super().__init__()
        width = config.width
        self.name, self.seed, self.head_exchange = name, seed, sequence.head_exchange
        # with whole sequences for some of the heads (`own`), attention is that of one process
        self.sequence = sequence if self.head_exchange is None else OneProcess()
        self.own = range(config.heads) if self.head_exchange is None else self.head_exchange.local_heads(config.heads)
        self.heads, self.dense = config.heads, config.attention == "dense"
        self.form, self.kernel, self.keep = config.attention_form, config.attention_kernel, config.keep_scores
        self.sample_factor, self.factor, self.band = config.sample_factor, factor, config.budget_band
        self.dropout = config.dropout if config.attention_dropout is None else config.attention_dropout
        self.told = ""
        if self.kernel == "fused" and (self.dropout > 0 or self.sequence.size > 1):
            raise ConfigError(
                "model.attention_kernel fused can neither drop probabilities nor share a sequence among ranks; choose "
                "auto or tiles, or set model.attention_dropout and mesh.sequence to 0 and 1"
            )
        if self.head_exchange is not None and not self.dense and self.form in ("rows", "absorbed"):
            raise ConfigError(
                f"model.attention_form {self.form} makes no context for all tokens, which mesh.sequence_method ulysses "
                "exchanges; choose auto or plain"
            )
        self.query_weight = nn.Parameter(torch.empty(width, width))
        self.query_bias = nn.Parameter(torch.empty(width))
        self.key_weight = nn.Parameter(torch.empty(width, width))
        self.value_weight = nn.Parameter(torch.empty(width, width))
        self.value_bias = nn.Parameter(torch.empty(width))
        self.output_weight = nn.Parameter(torch.empty(width, width))
        self.output_bias = nn.Parameter(torch.empty(width))

    def fill(self, key: Key) -> None:
        """The usual start of linear layers."""
        for name, parameter in self.named_parameters():
            rng.fill_linear_(parameter, self.query_weight.shape[1], key(name))

    def forward(self, x: Tensor, layout: TokenLayout, queries: Tensor, step: int) -> Tensor:
        """Tokens x [N, d] -> [N, d]. `queries` [S]: real-valued number of queries n <= L of each sample."""
        if self.head_exchange is not None:
            attention = functools.partial(self._joined, layout=layout, queries=queries, step=step)
            return self._output(self.head_exchange.attend(self._project(x[None])[0], layout.tokens_by_rank, attention))
        # From complete samples, never from those at hand: each form finishes the gradients of its parameters in another
        # order, and ranks whose samples lack different modalities would add different parameters to each other.
        form = "plain" if self.dense else self.form if self.form != "auto" else self.choose(layout.complete_length)
        if form == "plain":
            context = self._context(self._project(layout.padded(x)), layout, queries, step)
            return self._output(layout.rows(context))
        return self._by_rows(x, layout, queries, step, absorbed=form == "absorbed")

    def _joined(self, packed: Tensor, layout: TokenLayout, queries: Tensor, step: int) -> Tensor:
        """Own heads' projections of all ranks' flat tokens [N', 3, h, d_h] -> their context [N', h, d_h]."""
        assert layout.unsharded is not None  # the plan has it wherever heads are exchanged
        padded = layout.unsharded.padded(packed.flatten(1)).unflatten(2, packed.shape[1:])
        return layout.unsharded.rows(self._context(padded, layout.unsharded, queries, step))

    def _context(self, packed: Tensor, layout: TokenLayout, queries: Tensor, step: int) -> Tensor:
        """Projections [S, L, 3, h, d_h] of own heads -> their context [S, L, h, d_h]."""
        return self._dense(packed, layout) if self.dense else self._plain(packed, layout, queries, step)

    def choose(self, length: int) -> str:
        """The cheapest form for samples of `length` tokens; a change is logged with the costs that led to it."""
        limits = (sampling.cap(factor, length) for factor in (self.sample_factor, self.factor))
        choice = cost.choose(length, self.query_weight.shape[0], self.heads, *limits, training=self.training)
        if choice.form != self.told:
            self.told = choice.form
            _LOG.info("%s, %d tokens a sample: %s", self.name, length, choice)
        return choice.form

    def _dense(self, packed: Tensor, layout: TokenLayout) -> Tensor:
        # Contiguous: on a CPU torch's kernel otherwise falls back to the one that keeps all [L, L] probabilities.
        query, key, value = packed.permute(2, 0, 3, 1, 4).contiguous().unbind(0)
        mask = None if layout.bias is None else layout.bias[:, None, None].to(query.dtype)
        context = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        context = context * _seen(layout, context.dtype) + self._heads(self.value_bias).to(context.dtype)
        return context.transpose(1, 2)

    def _project(self, x: Tensor) -> Tensor:
        """Queries, keys and values of tokens [S, L, d] packed, [S, L, 3, H, d_h], the values without their bias."""
        weight = torch.cat((self.query_weight, self.key_weight, self.value_weight))
        bias = torch.cat((self.query_bias, self.query_bias.new_zeros(2 * len(self.query_bias))))
        return self._packed(x, weight, bias, 3)

    def _packed(self, x: Tensor, weight: Tensor, bias: Tensor | None, count: int) -> Tensor:
        """`count` projections of tokens [S, L, d] as [S, L, count, H, d_h]; narrow heads lie with the tokens inside."""
        samples, length, width = x.shape
        each = width // self.heads
        if each > sparse.NARROW:
            packed = F.linear(x, weight, bias)
        else:
            flat = x.view(-1, width).t()
            packed = torch.mm(weight, flat) if bias is None else torch.addmm(bias[:, None], weight, flat)
            packed = packed.t()
        return packed.view(samples, length, count, self.heads, each)

    def _heads(self, vector: Tensor) -> Tensor:
        """[d] -> [h, 1, d_h] of own heads."""
        return vector.view(self.heads, 1, -1)[self.own.start : self.own.stop]

    def _output(self, context: Tensor) -> Tensor:
        """Output projection of [N, H, d_h] -> [N, d]."""
        return F.linear(context.flatten(1), self.output_weight, self.output_bias)

    def _plain(self, packed: Tensor, layout: TokenLayout, queries: Tensor, step: int) -> Tensor:
        with torch.no_grad():
            query, key, _ = packed.permute(2, 0, 3, 1, 4).unbind(0)
            rank, sizes = self._keys(layout, step)
            column, held = sampling.hold(rank, sizes, layout)
            sampled = self.sequence.all_reduce_sum(sampling.rows(key, column, held))
            scores = sparse.largest_product(query, sampling.centred(sampled, sizes), None, 1, layout.ragged)
            chosen = self._best(scores, layout, queries)
        key, value, best = Split.apply(packed, chosen.column)
        best = self.sequence.all_reduce_sum(best if chosen.held is None else best * chosen.held[..., None])
        best = best * best.shape[3] ** -0.5
        best = F.pad(best, (0, 0, 0, 1))
        out, total = sparse.attend(best, key, value, bias=layout.bias, **self._how(layout, chosen, step))
        if total is not None:
            out = self.sequence.merge_attention(out, total)
        mean, delta = self._split(out.to(value.dtype), layout, chosen, queries)
        samples, heads, length, width = value.shape
        sample = torch.arange(samples, device=value.device)[:, None, None]
        head = torch.arange(heads, device=value.device)[:, None]
        row = ((sample * length + chosen.column) * heads + head).flatten()
        context: Tensor = sparse.FillRows.apply(mean.flatten(1), delta.flatten(0, 2), row, length)
        # Without a token here the selected rows still take part: on other ranks they do.
        context = context if length else context + 0 * delta.sum()
        return context.view(samples, length, heads, width)

    def _by_rows(self, x: Tensor, layout: TokenLayout, queries: Tensor, step: int, *, absorbed: bool) -> Tensor:
        """The output as one row a sample, the same for all its tokens, plus the rows of the selected queries."""
        dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
        query_weight, key_weight, value_weight, output_weight = (
            weight.to(dtype).view(self.heads, -1, weight.shape[1])
            for weight in (self.query_weight, self.key_weight, self.value_weight, self.output_weight.t())
        )
        tokens = layout.padded(x)[:, None] if absorbed else None  # [S, 1, L, d]
        if tokens is None:
            padded = layout.padded(x)
            key, value = Split.apply(
                self._packed(padded, torch.cat((self.key_weight, self.value_weight)), None, 2), None
            )
        with torch.no_grad():
            rank, sizes = self._keys(layout, step)
            column, held = sampling.hold(rank, sizes, layout)
            if tokens is not None:
                sampled = _projected(_tokens(x, column, held, layout), key_weight)
                sampled = sampling.centred(self.sequence.all_reduce_sum(sampled), sizes)
                offset = (sampled * self._heads(self.query_bias).to(dtype)).sum(3)
                through = torch.einsum("shuc,hcd->shud", sampled, query_weight)
                scores = sparse.largest_product(
                    tokens, through.flatten(1, 2)[:, None], offset.flatten(1)[:, None], self.heads, layout.ragged
                )
            else:
                sampled = sampling.centred(self.sequence.all_reduce_sum(sampling.rows(key, column, held)), sizes)
                query = self._packed(padded, self.query_weight, self.query_bias, 1)[:, :, 0].transpose(1, 2)
                scores = sparse.largest_product(query, sampled, None, 1, layout.ragged)
                del query
            chosen = self._best(scores, layout, queries)
        best = _projected(_tokens(x, chosen.column, chosen.held, layout), query_weight)
        best = best + self._heads(self.query_bias).to(dtype)
        best = self.sequence.all_reduce_sum(best if chosen.held is None else best * chosen.held[..., None])
        best = best * best.shape[3] ** -0.5
        how = self._how(layout, chosen, step)
        if tokens is not None:
            out, total = self._absorbed(best, tokens, key_weight, value_weight, layout, how)
        else:
            best = F.pad(best, (0, 0, 0, 1))
            out, total = sparse.attend(best, key, value, bias=layout.bias, **how)
        if total is not None:
            out = self.sequence.merge_attention(out, total)
        mean, delta = self._split(out.to(dtype), layout, chosen, queries)
        constant = F.linear(mean.flatten(1), self.output_weight, self.output_bias)
        rows = torch.einsum("shuc,hcd->shud", delta, output_weight)
        rows = rows.flatten(0, 2)
        if layout.slot is None:
            length = layout.mask.shape[1]
            row = _flat(chosen.column, layout)
            out = sparse.FillRows.apply(constant, rows.to(constant.dtype), row, length)
            return out if length else out + 0 * rows.sum()
        every = constant.index_select(0, layout.row())
        return (
            every.index_add_(0, _flat(chosen.column, layout), rows.to(every.dtype))
            if len(x)
            else every + 0 * rows.sum()
        )

    def _absorbed(
        self,
        best: Tensor,
        tokens: Tensor,
        key_weight: Tensor,
        value_weight: Tensor,
        layout: TokenLayout,
        how: dict[str, Any],
    ) -> tuple[Tensor, Tensor | None]:
        """Queries [S, H, u, d_h] over tokens [S, 1, L, d] -> as `sparse.attend` over keys and values would give."""
        through = torch.einsum("shuc,hcd->shud", best, key_weight).flatten(1, 2)
        through = F.pad(through, (0, 0, 0, 1))[:, None]
        sums, total = sparse.attend(through, tokens, bias=layout.bias, **how)
        sums = sums[:, 0].to(value_weight.dtype)
        by_head = sums[:, :-1].unflatten(1, (self.heads, -1))
        by_head = torch.cat((by_head, sums[:, None, -1:].expand(-1, self.heads, -1, -1)), 2)
        if total is not None:
            own = total[:, 0, :-1].unflatten(1, (self.heads, -1))
            total = torch.cat((own, total[:, :, -1:].expand(-1, self.heads, -1)), 2)
        return _projected(by_head, value_weight), total

    def _keys(self, layout: TokenLayout, step: int) -> tuple[Tensor, Tensor]:
        """Ranks [S, H, U] of the sampled keys among a sample's observed tokens, and their number [S]."""
        count = sampling.cap(self.sample_factor, layout.capacity) or min(1, layout.capacity)
        sizes = sampling.sample_sizes(self.sample_factor, layout.observed)
        if not self.training:
            return sampling.strided_keys(sizes, count, layout).expand(-1, len(self.own), -1), sizes
        draws = rng.key(self.seed, "keys", self.name, step)
        return sampling.drawn_keys(sizes, count, layout, draws, self.heads, self.own), sizes

    def _best(self, scores: Tensor, layout: TokenLayout, queries: Tensor) -> Chosen:
        limit = sampling.cap(self.factor, layout.capacity)
        if queries.device.type == "cpu" and len(queries):  # there to ask is not to wait: no row that nobody may spend
            limit = min(limit, int(queries.detach().max().nan_to_num(limit).ceil()))
        return sampling.best_queries(scores, layout, limit, self.sequence)

    def _how(self, layout: TokenLayout, chosen: Chosen, step: int) -> dict[str, Any]:
        """Options of `sparse.attend`."""
        drops = self.training and self.dropout > 0
        can = self.sequence.size == 1 and not drops
        fused = self.kernel == "fused" or (self.kernel == "auto" and can and chosen.number.device.type != "cpu")
        drop = self._drop(layout, chosen, step) if drops else None
        keep = cost.keeps_scores(self.keep, len(self.query_bias), self.heads, chosen.number.shape[2])
        return {"drop": drop, "keep": keep, "fused": fused, "lengths": layout.ragged}

    def _drop(self, layout: TokenLayout, chosen: Chosen, step: int) -> sparse.Dropped:
        """Draws by sample, head, number of the query and number of the key."""
        draws = rng.key(self.seed, "dropout", f"{self.name}.probabilities", step)
        head = torch.arange(self.own.start, self.own.stop, device=chosen.number.device)[:, None]
        keys = rng.bits(draws, pack_numbers(layout.sample[:, None, None], chosen.number * self.heads + head))
        lanes = rng.lanes(layout.token).expand(layout.mask.shape)
        scale = 1.0 / (1.0 - self.dropout)

        def factors(block: sparse.Block) -> Tensor:
            own = keys[block.sample]
            # Where all heads see the same keys (absorbed), their rows follow one another.
            own = own.flatten(1)[:, None] if block.joined else own[:, block.head]
            lane = lanes[block.sample, None, None, block.column]
            return rng.keep_mask(self.dropout, own, lane).mul_(scale)

        return factors

    def _split(self, out: Tensor, layout: TokenLayout, chosen: Chosen, queries: Tensor) -> tuple[Tensor, Tensor]:
        """The mean of the values [S, H, 1, d_h], and what the selected rows differ from it [S, H, u, d_h]."""
        if layout.bias is not None:
            out = out * _seen(layout, out.dtype)
        mean = out[:, :, -1:]
        weights = query_weights(queries, chosen.number.shape[2], self.band).to(out.dtype)[:, None, :, None]
        delta = weights * (out[:, :, :-1] - mean)
        if chosen.held is not None:
            delta = delta * chosen.held[..., None]
        return mean + self._heads(self.value_bias).to(out.dtype), delta


def _seen(layout: TokenLayout, dtype: torch.dtype) -> Tensor:
    """[S, 1, 1, 1]: 1 for a sample with any observed token, else 0."""
    return (layout.observed > 0).to(dtype)[:, None, None, None]


def _flat(column: Tensor, layout: TokenLayout) -> Tensor:
    """Columns [S, H, n] -> flat token numbers; those of columns without a token are in range and mean nothing."""
    row = (column + torch.arange(len(column), device=column.device)[:, None, None] * layout.mask.shape[1]).flatten()
    if layout.token_at is None:
        return row
    return layout.token_at.index_select(0, row).clamp_max(max(0, len(layout.flat_mask) - 1))


def _tokens(x: Tensor, column: Tensor, held: Tensor | None, layout: TokenLayout) -> Tensor:
    """Rows of flat tokens x [N, d] by column [S, H, n] -> [S, H, n, d]; zeros where not held here."""
    if len(x) == 0:
        return x.new_zeros((*column.shape, x.shape[1])) + 0 * x.sum()
    rows = x.index_select(0, _flat(column, layout)).view(*column.shape, x.shape[1])
    return rows if held is None else rows * held[..., None]


def _projected(x: Tensor, weight: Tensor) -> Tensor:
    """x [S, H, n, d] through each head's own part of a projection, weight [H, d_h, d] -> [S, H, n, d_h]."""
    return torch.einsum("shud,hcd->shuc", x.to(weight.dtype), weight)
