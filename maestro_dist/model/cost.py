"""Which of three equal forms of a sparse attention layer is the cheapest.

The layer's output is one constant row a sample plus at most H u sparse rows. Hence the forms:

plain     queries, keys, values of all tokens; a context for all tokens; output projection of all tokens.
rows      the output projection, and the gradient of the query projection, only of the H u selected rows.
absorbed  and no keys or values either: the selected queries are taken through the key projection and compared with the
          tokens themselves, and the weighted sums of tokens go through the value projection.

Letters: L tokens of a sample, d width, H heads, U sampled keys, u selected queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from maestro_dist.config.model import ModelConfig
from maestro_dist.model.sampling import cap

FORMS = ("plain", "rows", "absorbed")

_MOVED = 20.0
"""What it costs to write a number to memory and read it again, in floating-point operations of a matrix product."""

_SHORT = 4.0
"""How much longer an operation takes in products with one head's part of a projection."""

_GATHERED = 5.0
"""How often a gathered row is moved, there and back."""


class Choice(NamedTuple):
    """The form, and what each would cost: floating-point operations a token, moved numbers included."""

    form: str
    costs: dict[str, float]

    def __str__(self) -> str:
        told = ", ".join(f"{form} {cost / 1000:.1f}k" for form, cost in self.costs.items())
        return f"{self.form} (operations a token: {told})"


def choose(length: int, width: int, heads: int, sampled: int, selected: int, *, training: bool) -> Choice:
    """The cheapest form for samples of `length` tokens."""
    square, times = 2.0 * width * width, 3 if training else 1
    per_token = 1.0 / max(1, length)
    products = 2 * sampled + (12 if training else 4) * selected  # metric; scores and sums, and their gradients
    gathered = _GATHERED * heads * (selected + sampled) * width * per_token
    few = 2 * selected * square * times * per_token  # queries and outputs of the selected rows alone
    moved = {
        "plain": width * (14 if training else 6),
        "rows": width * (8 if training else 4) + gathered,
        "absorbed": width * (2 if training else 1) + gathered,
    }
    computed = {
        "plain": 4 * square * times + products * width,
        "rows": square * (1 + 2 * times) + products * width + _SHORT * few,
        "absorbed": products * heads * width + 2 * _SHORT * few,
    }
    costs = {form: computed[form] + _MOVED * moved[form] for form in FORMS}
    return Choice(min(costs, key=lambda form: costs[form]), costs)


def describe_attention(config: ModelConfig, tokens: Sequence[int], *, training: bool = True) -> str:
    """Which form the layers take for samples with `tokens` in each modality, and what the others would cost."""
    halvings = config.encoder_layers if config.distil else 0
    joint = sum(-(-count // 2**halvings) for count in tokens)
    told = []
    for name, length, factor, layers in (
        ("encoders", max(tokens), config.beta, config.encoder_layers),
        ("cross-modal", joint, config.fusion_beta, config.fusion_layers),
    ):
        if layers:
            limits = (cap(config.sample_factor, length), cap(factor, length))
            choice = choose(length, config.width, config.heads, *limits, training=training)
            fixed = config.attention_form != "auto"
            told.append(f"{name} ({length:,} tokens) {config.attention_form + ', as set' if fixed else choice}")
    return "; ".join(told)


def keeps_scores(given: bool | None, width: int, heads: int, selected: int) -> bool:
    """Whether the probabilities of `selected` queries a head are kept for the backward (`model.keep_scores`)."""
    return heads * selected <= 2 * width if given is None else given
