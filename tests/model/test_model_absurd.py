"""Numbers far outside all others must not outweigh them in a model."""

from __future__ import annotations

import torch

from maestro_dist.config.model import ModelConfig
from maestro_dist.model import Maestro
from maestro_dist.types import Batch, Modality

MODALITIES = [Modality(name, 1, 8.0, 8, mean=(0.0,), std=(1.0,)) for name in ("acc", "ecg")]
WINDOWS = torch.randn(2, 2, 8, 1, generator=torch.Generator().manual_seed(1))


def logits(model: Maestro, number: float) -> torch.Tensor:
    """Logits [2, 2] of two samples; the first has `number` in it."""
    values = {modality.name: window.clone() for modality, window in zip(MODALITIES, WINDOWS, strict=True)}
    values["acc"][0, 3] = number
    rows = {name: torch.arange(2) for name in values}
    present = torch.ones(2, 2, dtype=torch.bool)
    batch = Batch(values=values, rows=rows, present=present, sample=torch.arange(2), target=torch.tensor([0, 1]))
    with torch.no_grad():
        return model(batch)["logits"]


def test_absurd_numbers_neither_break_nor_outweigh() -> None:
    config = ModelConfig(width=8, heads=2, word=4, encoder_layers=1, fusion_layers=1, embedding="patch")
    model = Maestro(config, MODALITIES, 2, seed=1).eval()
    assert torch.equal(logits(model, 1e30), logits(model, 3e38))
    assert torch.equal(logits(model, 1e30)[1], logits(model, 0.5)[1])  # nobody else is touched
    assert not torch.equal(logits(model, 999.0), logits(model, 998.0))  # what sensors deliver is as it is
    assert logits(model, 1e30).isfinite().all()
    assert torch.equal(logits(model, torch.inf), logits(model, torch.nan))  # no number at all: not observed
