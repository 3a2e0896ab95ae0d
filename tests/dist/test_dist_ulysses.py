"""Attention on whole sequences for a share of the heads, over gloo ranks: equal to one process, in value and gradient."""

from __future__ import annotations

from typing import Any

import pytest
from ranks import run_ranks
from test_dist_sequence import on_slices

from maestro_dist.parallel.ulysses import UlyssesRanks

DENSE: dict[str, Any] = {"attention": "dense"}
OPTIONS: list[dict[str, Any]] = [
    {},
    DENSE,
    {"stem": {"channels": 4, "kernel": 5}, "summary": "statistics", "normalize": "window"},
    {"encoder_layers": 2, "budget": "reallocate", "budget_inputs": "content", "moe": {"experts": 3, "top_k": 2}},
    {"summary": "level", "encoder_layers": 0, "fusion_layers": 2, "head": "pooled"},
    {"summary": "level", "encoder_layers": 2, "fusion_layers": 2, "dropout": 0.3, **DENSE},
    {"distil": False, "embedding": "table", "moe": {"experts": 0}, "dropout": 0.3, "attention_form": "plain"},
    {"attention_kernel": "fused", "dropout": 0.2, "attention_dropout": 0.0},
    {"checkpoint": "layers", "tile": 8, "keep_scores": False, "dropout": 0.2},
    {"checkpoint": "layers", "dropout": 0.2, **DENSE},
    {"embedding": "table", "normalize": "window"},
]


@pytest.mark.parametrize("ranks", [2, 4])
def test_model_on_slices_is_the_model_on_the_whole(ranks: int) -> None:
    options = [{"heads": 4, "width": 16, **given} for given in OPTIONS]
    assert run_ranks(on_slices, ranks, options, UlyssesRanks) == [[]] * ranks
