"""Weights that were written under the old name of a parameter can still be read."""

from __future__ import annotations

from pathlib import Path

import torch
from model_samples import MODALITIES, PRESENT, make_batch, make_model

from maestro_dist import rng
from maestro_dist.model.names import current_name, draw_name
from maestro_dist.predict import TaskDescription, export_model, load_model
from maestro_dist.types import Modality


def old_names(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state as earlier versions named it."""
    return {name.replace(".downsample.convolution.", ".distil.convolution."): x for name, x in weights.items()}


def test_only_the_layer_that_halves_the_tokens_has_another_name() -> None:
    for now, before in (
        ("encoders.acc.layers.0.downsample.convolution.weight", "encoders.acc.layers.0.distil.convolution.weight"),
        ("fusion.1.downsample.convolution.bias/exp_avg", "fusion.1.distil.convolution.bias/exp_avg"),
    ):
        assert current_name(before) == current_name(now) == now
        assert draw_name(now) == before
    for same in (
        "embeddings.distil.symbols.table.weight",
        "encoders.distil.layers.0.feed.expand.weight",
        "head.weight",
    ):
        assert current_name(same) == draw_name(same) == same


def test_a_modality_may_have_the_old_or_the_new_name() -> None:
    for modality in ("distil", "downsample"):
        name = f"encoders.{modality}.layers.2.distil.convolution.weight"
        assert current_name(name) == f"encoders.{modality}.layers.2.downsample.convolution.weight"
        assert draw_name(current_name(name)) == name


def test_initial_weights_are_keyed_by_the_first_name() -> None:
    model = make_model(seed=7)
    convolution = model.fusion[0].downsample.convolution
    expected = torch.empty_like(convolution.weight)
    rng.fill_linear_(expected, convolution.in_features, rng.key(7, "init", "fusion.0.distil.convolution.weight"))
    assert torch.equal(convolution.weight, expected)


def test_an_exported_model_with_old_names_answers_the_same(tmp_path: Path) -> None:
    model = make_model().eval()
    old = old_names(model.state_dict())
    assert old.keys() != model.state_dict().keys()
    task = TaskDescription("classification", ("a", "b", "c", "d"))
    modalities: list[Modality] = MODALITIES
    export_model(str(tmp_path), config=model.config, modalities=modalities, task=task, weights=old)
    loaded = load_model(tmp_path).model
    batch = make_batch(PRESENT)
    with torch.no_grad():
        assert torch.equal(loaded(batch)["logits"], model(batch)["logits"])
