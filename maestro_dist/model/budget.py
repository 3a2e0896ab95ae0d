"""The adaptive attention budget: how many queries each modality of each sample may use.

Letters: B samples, M modalities; the last dimension is the encoder layers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maestro_dist import rng
from maestro_dist.model.layers import Key, Linear


class Budgets(NamedTuple):
    """Budgets u (`share`) and queries n = min(u ln L, L), real-valued [B, M, layers]; 0 for an absent modality."""

    share: Tensor
    queries: Tensor


def queries_from_budgets(share: Tensor, counts: Tensor) -> Budgets:
    """Budgets [B, M, layers] with their queries; counts int64 [B, M, layers]: observed tokens."""
    lengths = counts.to(share.dtype)
    return Budgets(share, torch.minimum(share * lengths.clamp_min(1).log(), lengths))


def fixed_budgets(beta: float, present: Tensor, counts: Tensor, dtype: torch.dtype) -> Budgets:
    """Budget beta for each present modality. present bool [B, M]."""
    return queries_from_budgets((present.to(dtype) * beta)[..., None].expand(counts.shape), counts)


def water_fill(share: Tensor, total: float, limit: Tensor) -> Tensor:
    """Divide `total` in the ratios `share` [..., M], none above `limit`. What one cannot use goes to the others.

    The result is min(lambda share, limit), with the lambda that uses all of `total` or reaches all limits.
    """
    ratio = torch.where(share > 0, limit / share.clamp_min(1e-30), torch.inf).detach()
    ratio, order = ratio.sort(dim=-1, stable=True)
    share_sorted, limit_sorted = share.gather(-1, order), limit.gather(-1, order)
    spent = limit_sorted.cumsum(-1) - limit_sorted
    rest = share_sorted.flip(-1).cumsum(-1).flip(-1)
    rate = (total - spent) / rest.clamp_min(1e-6)
    fits = rate <= ratio
    first = fits.int().argmax(-1, keepdim=True)
    rate = torch.where(fits.any(-1, keepdim=True), rate.gather(-1, first), 1e6)
    return torch.minimum(rate * share, limit)


class BudgetGate(nn.Module):
    """sigmoid(G(m + eps (1 - m))) beta, with G an MLP M -> M -> ReLU -> M on the presence vector m.

    `reallocate` divides beta M among the present modalities instead, by a softmax. With content, G also sees the mean
    token embedding of each modality.
    """

    def __init__(self, modalities: int, content: int, *, reallocate: bool, beta: float) -> None:
        super().__init__()
        self.reallocate, self.beta = reallocate, beta
        self.absent = PresenceVector(modalities)
        self.hidden = Linear(modalities * (1 + content), modalities)
        self.out = Linear(modalities, modalities)

    def forward(self, present: Tensor, content: Tensor | None, counts: Tensor) -> Budgets:
        """Present bool [B, M], content [B, M, d] or None (0 where absent), counts int64 [B, M, layers]."""
        inputs = self.absent(present)
        if content is not None:
            inputs = torch.cat((inputs, content.flatten(1)), 1)
        logits = self.out(F.relu(self.hidden(inputs))).to(inputs.dtype)
        if not self.reallocate:
            share = torch.where(present, logits.sigmoid() * self.beta, 0)
            return queries_from_budgets(share[..., None].expand(counts.shape), counts)
        softmax = torch.where(present, logits, torch.finfo(logits.dtype).min).softmax(-1)
        softmax = torch.where(present, softmax, 0)
        lengths = counts.to(softmax.dtype)
        limit = torch.where(counts > 1, lengths / lengths.clamp_min(2).log(), 0)
        total = self.beta * present.shape[1]
        share = water_fill(softmax[:, None].expand(-1, counts.shape[2], -1), total, limit.transpose(1, 2))
        return queries_from_budgets(torch.where(present[:, None], share, 0).transpose(1, 2), counts)


class PresenceVector(nn.Module):
    """m + eps (1 - m): a learned number for each absent modality."""

    def __init__(self, modalities: int) -> None:
        super().__init__()
        self.eps = nn.Parameter(torch.empty(modalities))

    def fill(self, key: Key) -> None:
        """N(0, .02): near zero, but different."""
        rng.fill_normal_(self.eps, 0.02, key("eps"))

    def forward(self, present: Tensor) -> Tensor:
        """Present bool [B, M] -> [B, M]."""
        return torch.where(present, 1.0, self.eps)
