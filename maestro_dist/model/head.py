"""Pooling and heads: from the last tokens to the outputs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maestro_dist import rng
from maestro_dist.model.context import SequenceContext
from maestro_dist.model.layers import Key, Linear, dropout


def pool(x: Tensor, layout_mask: Tensor, group: Tensor, groups: int, sequence: SequenceContext) -> Tensor:
    """Sums and counts of observed tokens x [N, d] by group int64 [N] -> means [groups, d]; 0 for an empty group."""
    observed = layout_mask[:, None].to(x.dtype)
    joined = torch.cat((x * observed, observed), 1)
    total = sequence.all_reduce_sum(joined.new_zeros(groups, joined.shape[1]).index_add(0, group, joined))
    return total[:, :-1] / total[:, -1:].clamp_min(1)


class AttentionPool(nn.Module):
    """A mean of tokens, weighted by the softmax of learned scores: one score for each of H slices of the channels."""

    def __init__(self, width: int, heads: int, sequence: SequenceContext) -> None:
        super().__init__()
        self.heads, self.sequence = heads, sequence
        self.score = Linear(width, heads)

    def forward(self, x: Tensor, layout_mask: Tensor, group: Tensor, groups: int) -> Tensor:
        """As `pool`: tokens x [N, d] by group int64 [N] -> [groups, d]; 0 for a group without an observed token."""
        score = self.score(x).to(x.dtype)
        with torch.no_grad():
            lowest = torch.finfo(score.dtype).min
            masked_score = score.detach().masked_fill(~layout_mask[:, None], lowest)
            largest = score.new_full((groups, self.heads), lowest)
            largest = largest.scatter_reduce(0, group[:, None].expand(-1, self.heads), masked_score, "amax")
            largest = self.sequence.all_reduce_max(largest)
        weight = (score - largest.index_select(0, group)).clamp_max(0).exp() * layout_mask[:, None]
        weighted = (x.unflatten(1, (self.heads, -1)) * weight[..., None]).flatten(1)
        joined = torch.cat((weighted, weight), 1)
        total = self.sequence.all_reduce_sum(joined.new_zeros(groups, joined.shape[1]).index_add(0, group, joined))
        sums, weights = total[:, : x.shape[1]], total[:, x.shape[1] :]
        # The largest weight of a group is 1; only a group without an observed token has less, and finite gradients so.
        return (sums.unflatten(1, (self.heads, -1)) / weights.clamp_min(1)[..., None]).flatten(1)


class DeepHead(nn.Module):
    """A head with one hidden layer: norm, linear, GELU, dropout, linear.

    It can use combinations of modalities: the feed-forward of a cross-modal layer sees one token at a time.
    """

    def __init__(self, width: int, hidden: int, outputs: int, dropout: float, seed: int) -> None:
        super().__init__()
        self.dropout, self.seed = dropout, seed
        self.norm = nn.LayerNorm(width)
        self.expand = Linear(width, hidden)
        self.contract = Linear(hidden, outputs)

    def forward(self, pooled: Tensor, sample: Tensor, step: int) -> Tensor:
        """Pooled [B, d], sample numbers int64 [B] -> [B, C]; `step` keys the draws of dropout."""
        hidden = F.gelu(self.expand(self.norm(pooled)))
        if self.training and self.dropout:
            hidden = dropout(hidden, self.dropout, rng.bits(rng.key(self.seed, "dropout", "head", step), sample))
        out: Tensor = self.contract(hidden)
        return out


class ModalityHeads(nn.Module):
    """A small head for each modality on its own pooled tokens, and the weight of each head in the sum."""

    def __init__(self, modalities: int, width: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(modalities, width, outputs))
        self.bias = nn.Parameter(torch.empty(modalities, outputs))
        self.share = nn.Parameter(torch.full((modalities,), 1.0 / modalities))

    def fill(self, key: Key) -> None:
        """Weights and biases as in a linear layer. The shares start equal and sum to 1."""
        rng.fill_linear_(self.weight, self.weight.shape[1], key("weight"))
        rng.fill_linear_(self.bias, self.weight.shape[1], key("bias"))

    def forward(self, pooled: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled [B, M, d], present bool [B, M] -> (each modality's logits [B, M, C], 0 where absent; weighted sum).

        Of parts of a window: pooled [B, M, S, d] -> [B, M, S C].
        """
        if pooled.ndim == 4:
            logits = torch.einsum("bmsd,mdc->bmsc", pooled, self.weight.to(pooled.dtype)) + self.bias[:, None]
            logits = logits.flatten(2)
        else:
            logits = torch.einsum("bmd,mdc->bmc", pooled, self.weight.to(pooled.dtype)) + self.bias
        logits = torch.where(present[..., None], logits, 0)
        return logits, (logits * self.share[:, None]).sum(1)
