"""The inputs, layouts and models that the benchmarks share.

Letters: B samples, H heads, L tokens, d width, d_h head width, u selected queries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import Row, Setting, at_most
from benchmarks.published.attention import budget
from benchmarks.timing import Rates, Times
from maestro_dist.config.model import ModelConfig
from maestro_dist.model.attention.core import ProbSparseOptions, probsparse
from maestro_dist.model.context import OneProcess
from maestro_dist.model.layout import EnteringTokens, ModalityTokens, TokenLayout, modality_layout, plan_depths
from maestro_dist.types import Batch, Modality

HEADS, HEAD_WIDTH, FACTOR = 8, 64, 5.0
SEED = 2711

PUBLISHED_NS = {256: 2751, 1024: 3123, 4096: 3989, 16384: 4691, 65536: 16414}
"""Reference of the published attention, measured on another machine: ns per token and head, forward and backward, one
thread, d_h 64."""

PUBLISHED_GFLOPS = 86.0
"""fp32 matrix product of the machine of `PUBLISHED_NS`, in GFLOP/s.

Derived: on that machine 1,346 ns per token and head at 10^6 tokens are 54 % of the FLOP bound. There u = U = 70, and
the bound counts 7 products of 2 x 70 x 64 FLOP, 62.7 kFLOP: 62,720 / (.54 x 1,346 ns) = 86 GFLOP/s.
"""

WESAD = (
    ("chest_acc", 3),
    ("chest_ecg", 1),
    ("chest_eda", 1),
    ("chest_emg", 1),
    ("chest_resp", 1),
    ("chest_temp", 1),
    ("wrist_acc", 3),
    ("wrist_bvp", 1),
    ("wrist_eda", 1),
    ("wrist_temp", 1),
)
"""WESAD's ten modalities and their variates."""

RATE_HZ = 32.0


def ours(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """This model's attention core in training: [1, H, L, d_h] each -> [1, H, L, d_h]."""
    return probsparse(query, key, value, ProbSparseOptions(FACTOR, FACTOR))


def trained(function: Callable[..., Tensor], inputs: Sequence[Tensor], gradient: Tensor) -> Callable[[], Tensor]:
    """Forward of `function` on leaf tensors `inputs` and backward of `gradient`."""

    def step() -> Tensor:
        for tensor in inputs:
            tensor.grad = None
        out = function(*inputs)
        out.backward(gradient)
        return out

    return step


def module_step(module: torch.nn.Module, call: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], Tensor]:
    """Forward and backward of a module's `call` on leaf tokens x, with a random gradient."""
    gradient = torch.randn_like(x)

    def step() -> Tensor:
        x.grad = None
        module.zero_grad()
        out = call(x)
        out.backward(gradient)
        return out

    return step


def core_inputs(length: int, device: str) -> tuple[list[Tensor], Tensor]:
    """Queries, keys and values [1, H, L, d_h] and a gradient."""
    shape = (1, HEADS, length, HEAD_WIDTH)
    return [torch.randn(shape, device=device).requires_grad_() for _ in range(3)], torch.randn(shape, device=device)


def tokens(length: int, width: int, device: str) -> Tensor:
    """Leaf tokens [L, d]."""
    return torch.randn(length, width, device=device).requires_grad_()


def layout_of(length: int, device: str, samples: int = 1) -> TokenLayout:
    """One modality, all tokens observed."""
    part = ModalityTokens(rows=samples, summary=0, words=length, first_word=0, summary_total=0, words_total=length)
    observed = torch.ones(samples, length, dtype=torch.bool, device=device)
    rows = torch.arange(samples, device=device)
    planned = plan_depths(EnteringTokens([part], [observed], [observed[:, :0]], [rows], samples), [], OneProcess())
    return modality_layout(planned, 0, 0, rows, rows)


def bound_ns(length: int, rates: Rates) -> float:
    """Nanoseconds per token and head of the 7 products of 2 u d_h FLOP that the core needs at least.

    Two in the forward (scores, attended values), four in their backward, and the metric.
    """
    return 7 * 2 * budget(FACTOR, length) * HEAD_WIDTH / rates.flops * 1e9


def gathered_bytes(length: int, samples: int, width: int = HEADS * HEAD_WIDTH) -> int:
    """Bytes of the keys [B, H, L, U, d_h] that the published formulation gathers, fp32."""
    return 4 * samples * length * budget(FACTOR, length) * width


def opponent_is_fair(name: str, length: int, ns: float, rates: Rates, setting: Setting, *, promised: bool) -> list[Row]:
    """Whether the published core is as fast here as in the reference, corrected for the speed of the machine."""
    if length not in PUBLISHED_NS or setting.clock != "cpu":
        return []
    share = ns * rates.flops / 1e9 / (PUBLISHED_NS[length] * PUBLISHED_GFLOPS)
    return [
        Row(f"{name}/published: ns x GFLOP/s against the reference", share, "x"),
        at_most(f"{name}/published: off the reference by", 100 * abs(share - 1), "%", 25.0, promised=promised),
    ]


def ratio(times: dict[str, Times], setting: Setting, slow: str, fast: str) -> float:
    """How many times faster `fast` is than `slow`."""
    return times[slow].best(setting) / times[fast].best(setting)


def modalities(steps: int) -> list[Modality]:
    """WESAD's modalities, each with windows of `steps`."""
    return [Modality(name, variates, RATE_HZ, steps) for name, variates in WESAD]


def wesad_config(**options: Any) -> ModelConfig:
    """The released model for WESAD: d 64, H 8, 2 layers a modality, 2 cross-modal, 4 experts, word 2, dropout .1."""
    return ModelConfig.model_validate(
        {
            "encoder_layers": 2,
            "fusion_layers": 2,
            "word": 2,
            "normalize": "window",
            "embedding": "ordinal",
            "summary": "none",
            "head": "pooled",
            "attention_dropout": 0.0,  # the released model has the setting, but never applies it
            **options,
        }
    )


def windows(streams: Sequence[Modality], samples: int, device: str, missing: float = 0.0) -> Batch:
    """Random windows; each sample lacks the same share of modalities, drawn for each sample, and never all."""
    draw = torch.Generator().manual_seed(SEED)
    gone = min(round(missing * len(streams)), len(streams) - 1)
    order = torch.rand(samples, len(streams), generator=draw).argsort(1)
    present = (order >= gone).to(device)
    values, rows = {}, {}
    for j, stream in enumerate(streams):
        rows[stream.name] = present[:, j].nonzero()[:, 0]
        shape = (len(rows[stream.name]), stream.steps, stream.variates)
        values[stream.name] = torch.randn(shape, generator=draw).cumsum(1).to(device)
    sample = torch.arange(samples, device=device)
    return Batch(values=values, rows=rows, present=present, sample=sample, target=sample % 3)
