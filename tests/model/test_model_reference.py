"""The whole model in evaluation mode equals the readable reference, whatever modalities are missing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from model_samples import MODALITIES, PRESENT, make_batch, make_model
from torch import Tensor

from maestro_dist.model import Maestro
from maestro_dist.model.attention import VARIANTS
from maestro_dist.model.reference import ReferenceModel
from maestro_dist.types import Batch

OPTIONS: list[dict[str, Any]] = [
    {},
    {"embedding": "ordinal", "normalize": "window", "head": "pooled", "moe": {"experts": 4, "top_k": 1}},
    {"embedding": "table", "encoder_layers": 2, "moe": {"experts": 3, "top_k": 2, "shared": 1, "balance": "bias"}},
    {"attention": "dense", "layer_scale": 0.5, "fusion_layers": 2},
    {"budget": "fixed", "downsample": False, "moe": {"experts": 0}},
    {"word": {"acc": 4, "bvp": 7, "temp": 1}, "beta": 50.0, "fusion_beta": 50.0, "sample_factor": 50.0},
    {"encoder_layers": 0, "fusion_layers": 2},
    {"fusion_layers": 0},
    {"heads": 1, "width": 7, "beta": 0.7},
]


def samples_of(batch: Batch) -> list[dict[str, Tensor]]:
    """The windows of each sample, without the modalities that it lacks."""
    found: list[dict[str, Tensor]] = [{} for _ in range(len(batch))]
    for name, rows in batch.rows.items():
        for row, window in zip(rows.tolist(), batch.values[name], strict=True):
            found[row][name] = window
    return found


def reference_of(model: Maestro) -> ReferenceModel:
    return ReferenceModel(model.config, model.modalities, model.state_dict())


@pytest.mark.parametrize("form", [name for name, variant in VARIANTS.items() if variant.abilities.selects_queries])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_model_equals_the_reference(options: dict[str, Any], form: str) -> None:
    options = {"summary": "none", "beta": 1.2, "fusion_beta": 1.5, "attention_algorithm": form, **options}
    model = make_model(**options).double().eval()
    for layer in model.fusion:  # biases that change which experts are chosen
        if getattr(layer.feed, "balanced", False):
            layer.feed.bias += torch.tensor([0.0, 0.3, -0.2], dtype=torch.float64)
    batch = make_batch(PRESENT)
    batch.values["bvp"][2] = torch.nan  # present, but nothing of it was observed
    with torch.no_grad():
        logits = model(batch)["logits"]
        expected = torch.stack([reference_of(model)(sample) for sample in samples_of(batch)])
    torch.testing.assert_close(logits, expected, rtol=1e-7, atol=1e-8)


def test_in_float32_too() -> None:
    model, batch = make_model(summary="none").eval(), make_batch(PRESENT)
    with torch.no_grad():
        expected = torch.stack([reference_of(model)(sample) for sample in samples_of(batch)])
        torch.testing.assert_close(model(batch)["logits"], expected, rtol=1e-5, atol=1e-5)


def test_it_refuses_what_it_does_not_compute() -> None:
    model = make_model(summary="level")
    with pytest.raises(NotImplementedError, match="summary"):
        ReferenceModel(model.config, MODALITIES, model.state_dict())
