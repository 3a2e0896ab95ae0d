"""Activation checkpointing changes no bit; tiles change the rounding of the parameters' gradients alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from model_samples import PRESENT, RICH, make_batch, make_model

RICHER: dict[str, Any] = {
    **RICH,
    "moe": {"experts": 3, "top_k": 2, "shared": 1},
    "budget_inputs": "content",
    "layer_scale": 0.5,
}


def run(options: dict[str, Any], dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Outputs and gradients of one training step."""
    model = make_model(**{"dropout": 0.3, "beta": 1.2, "fusion_beta": 1.5, **options}).to(dtype).train()
    batch = make_batch(PRESENT)
    output = model(batch, 5)
    torch.nn.functional.cross_entropy(output["logits"], batch.target).backward()
    gradients = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    assert len(gradients) > 50
    return {**output, **gradients}


@pytest.mark.parametrize(
    "options", [{}, RICHER, {"attention": "dense"}, {"downsample": False, "moe": {"experts": 0}}], ids=str
)
def test_checkpoints_give_the_same_bits(options: dict[str, Any]) -> None:
    plain, again = run(options), run({**options, "activation_checkpointing": "layers"})
    assert plain.keys() == again.keys()
    for name in plain:
        assert torch.equal(again[name], plain[name]), name


@pytest.mark.parametrize("checkpoint", ["none", "layers"])
@pytest.mark.parametrize("tile", [1, 7])
def test_tiles_give_the_same_step(tile: int, checkpoint: str) -> None:
    plain, tiled = (
        run(RICHER, torch.float64),
        run({**RICHER, "tile": tile, "activation_checkpointing": checkpoint}, torch.float64),
    )
    assert plain.keys() == tiled.keys()
    for name in plain:
        torch.testing.assert_close(
            tiled[name], plain[name], rtol=1e-9, atol=1e-12, msg=lambda text, n=name: f"{n}: {text}"
        )


def test_a_checkpointed_layer_keeps_only_what_enters_it() -> None:
    def kept(**options: Any) -> int:
        model, sizes = make_model(encoder_layers=3, word=1, feedforward=8.0, **options).train(), {}
        own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        alive = []

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            alive.append(tensor)
            if tensor.untyped_storage().data_ptr() not in own:
                sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(make_batch(torch.ones(32, 3).bool()), 1)
        return sum(sizes.values())

    assert kept(activation_checkpointing="layers") < 0.35 * kept()
    assert kept(tile=64) < 0.9 * kept()
