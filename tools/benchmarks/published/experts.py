"""A mixture of experts as a loop over the experts.

Letters: N tokens, d width, E experts, k experts a token.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MaskedExperts(nn.Module):
    """Router and experts d -> hidden -> d (GELU between, no biases, as in the model that it is compared with)."""

    def __init__(self, width: int, hidden: int, experts: int, top_k: int, *, masked: bool = True) -> None:
        """`masked`: read and write the expert's rows by index assignment; else add them with `index_add_`, and skip
        experts without tokens."""
        super().__init__()
        self.top_k, self.masked = top_k, masked
        self.router = nn.Linear(width, experts, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, hidden, bias=False), nn.GELU(), nn.Linear(hidden, width, bias=False))
            for _ in range(experts)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Tokens x [N, d] -> [N, d]: the chosen experts' outputs times their raw logits."""
        gates, chosen = self.router(x).topk(self.top_k, dim=-1)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            token, place = (chosen == number).nonzero(as_tuple=True)  # the host waits here for the device
            if self.masked:
                out[token] = out[token] + expert(x[token]) * gates[token, place, None]
            elif len(token):
                out.index_add_(0, token, expert(x[token]) * gates[token, place, None])
        return out
