"""Every option of the model on tiny shapes: no NaN, a gradient for every parameter, deterministic evaluation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from model_samples import MODALITIES, make_batch, make_model

OPTIONS: list[dict[str, Any]] = [
    {},
    *({"embedding": kind} for kind in ("ordinal", "table")),
    *({"normalize": kind, "summary": "statistics"} for kind in ("window", "recording")),
    {"stem": {"channels": 5, "kernel": 3, "layers": 2}},
    {"summary": "level", "head_hidden": 2, "pooling": "attention"},
    {"summary": "statistics", "summary_bands": 3, "stem": {"channels": 4, "kernel": 5, "layers": 1}},
    {"attention": "dense"},
    {"budget": "reallocate"},
    {"budget": "reallocate", "budget_inputs": "content", "summary": "level"},
    {"budget": "fixed"},
    {"budget_inputs": "content", "budget_band": 3.0},
    {"downsample": False},
    {"layer_scale": 0.1},
    {"head": "pooled"},
    {"encoder_layers": 0},
    {"encoder_layers": 3},
    {"fusion_layers": 0},
    {"fusion_layers": 2, "moe": {"experts": 3, "top_k": 2, "shared": 1, "balance": "bias"}},
    {"moe": {"experts": 0}},
    {"encoder_layers": 0, "fusion_layers": 0, "summary": "level"},
    {"word": {"acc": 4, "bvp": 7, "temp": 1}},
    {"word": 100},
    {"heads": 1, "width": 7},
    {"dropout": 0.0, "beta": 50.0, "fusion_beta": 50.0, "sample_factor": 50.0},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("gaps", ["gaps", "all_missing", "empty"])
def test_every_option(options: dict[str, Any], gaps: str) -> None:
    model = make_model(**options)
    present = {
        "gaps": torch.tensor([[1, 1, 1], [0, 1, 0], [1, 0, 0], [0, 0, 0]]).bool(),
        "all_missing": torch.zeros(2, 3).bool(),
        "empty": torch.zeros(0, 3).bool(),
    }[gaps]
    batch = make_batch(present)
    model.train()
    output = model(batch, 3)
    assert output["logits"].shape == (len(batch), 4)
    assert all(value.isfinite().all() for value in output.values())
    if "modality_logits" in output:
        assert output["modality_logits"].shape == (len(batch), 3, 4)
        assert not output["modality_logits"][~present].any()
    if "budgets" in output:
        assert output["budgets"].shape == output["queries"].shape == (len(batch), 3)
        assert not output["budgets"][~present].any()
    if "expert_load" in output:
        assert output["expert_load"].shape[1] == len(MODALITIES)
    torch.nn.functional.log_softmax(output["logits"], -1).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name

    model.eval()
    with torch.no_grad():
        first, second = model(batch, 3), model(batch, 9)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_bf16_autocast() -> None:
    model = make_model(stem={"channels": 4}, summary="statistics", moe={"shared": 1, "top_k": 2})
    batch = make_batch(torch.ones(3, 3).bool())
    exact = model.eval()(batch)["logits"]
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(batch)["logits"]
        model.train()(batch)["logits"].sum().backward()
    assert rounded.isfinite().all()
    assert torch.allclose(rounded.float(), exact, atol=0.1)
