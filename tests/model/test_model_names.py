"""A modality may have any name that a manifest takes, also one that torch's modules have as an attribute."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from torch import nn

from maestro_dist.config.learning import PretrainConfig
from maestro_dist.config.model import ModelConfig
from maestro_dist.inference.exported_model import TaskDescription, export_model
from maestro_dist.inference.predictor import load_model
from maestro_dist.model import Maestro, PretrainModel
from maestro_dist.types import Batch, Modality

TAKEN = sorted(name for name in dir(nn.ModuleDict()) if re.fullmatch(r"[a-z0-9_]{1,40}", name))
NAMES = [*TAKEN, "training", "fill", "weight", "ds_external_parameters", "self", "name", "0", "class"]
CONFIG = ModelConfig(width=8, heads=2, word=4, encoder_layers=1, fusion_layers=1)


def modalities() -> list[Modality]:
    return [Modality(name, 1, 8.0, 8, mean=(0.0,), std=(1.0,)) for name in dict.fromkeys(NAMES)]


def batch(values: dict[str, torch.Tensor]) -> Batch:
    rows = {name: torch.arange(2) for name in values}
    present = torch.ones(2, len(values), dtype=torch.bool)
    return Batch(values=values, rows=rows, present=present, sample=torch.arange(2), target=torch.tensor([0, 1]))


def windows() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    return {modality.name: torch.randn(2, 8, 1, generator=draw) for modality in modalities()}


def test_a_step_export_and_load_with_every_name(tmp_path: Path) -> None:
    assert len(TAKEN) > 50
    assert {"cpu", "type", "items", "values", "_modules", "__class__"} <= set(TAKEN)
    model = Maestro(CONFIG, modalities(), 2, seed=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    model(batch(windows()))["logits"][:, 0].sum().backward()
    optimizer.step()
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    for name in NAMES:
        assert any(path.startswith(f"embeddings.{name}.") for path in changed), name
    task = TaskDescription("classification", ("a", "b"))
    export_model(str(tmp_path), config=CONFIG, modalities=modalities(), task=task, weights=model.state_dict())
    loaded = load_model(str(tmp_path))
    samples = [{name: window[row].numpy() for name, window in windows().items()} for row in range(2)]
    with torch.no_grad():
        wanted = model.eval()(batch(windows()))["logits"].softmax(1)
    assert np.allclose(loaded.predict(samples), wanted, atol=1e-6)


def test_names_change_neither_the_order_nor_the_names_of_parameters() -> None:
    plain = [Modality(name, 1, 8.0, 8, mean=(0.0,), std=(1.0,)) for name in ("acc", "ecg")]
    model = Maestro(CONFIG, plain, 2, seed=1)
    as_torch = nn.ModuleDict(dict(model.embeddings.items()))
    assert [*as_torch.state_dict()] == [*model.embeddings.state_dict()]
    assert list(model.embeddings) == ["acc", "ecg"]


def test_pretraining_takes_them_too() -> None:
    model = PretrainModel(CONFIG, modalities(), PretrainConfig(), seed=1)
    output = model(batch(windows()))
    output["masked"][:, 0].sum().backward()
    (weight,) = (value for path, value in model.named_parameters() if path.endswith("outputs.cpu.weight"))
    assert weight.grad is not None
