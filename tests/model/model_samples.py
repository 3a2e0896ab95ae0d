"""Small modalities, batches and models that the tests of the model share."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from maestro_dist.config.model import ModelConfig
from maestro_dist.model import Maestro
from maestro_dist.types import Batch, HeadShape, Modality

MODALITIES = [
    Modality("acc", 3, 32.0, 64, "g", (0.1, -0.2, 1.0), (0.5, 0.6, 0.7)),
    Modality("bvp", 1, 50.0, 93, "1", (2.0,), (3.0,)),
    Modality("temp", 2, 4.0, 8, "degC", (30.0, 31.0), (0.4, 0.0)),
]

PRESENT = torch.tensor([[1, 1, 1], [0, 1, 0], [1, 0, 1], [0, 1, 1], [1, 1, 0], [0, 0, 0]]).bool()
"""Which of them six samples have; the last has none."""

RICH: dict[str, Any] = {
    "stem": {"channels": 4, "kernel": 3},
    "summary": "statistics",
    "encoder_layers": 2,
    "fusion_layers": 2,
    "moe": {"experts": 3, "top_k": 2},
    "dropout": 0.3,
    "beta": 1.2,
    "fusion_beta": 1.5,
}
"""Options of a model with much in it."""


def make_batch(present: Tensor, *, seed: int = 0, nan: float = 0.15, first_sample: int = 0) -> Batch:
    """Windows of `MODALITIES` around their means, with single steps and whole stretches missing."""
    values, rows, recording = {}, {}, {}
    for j, modality in enumerate(MODALITIES):
        rows[modality.name] = present[:, j].nonzero()[:, 0]
        windows = []
        for row in rows[modality.name].tolist():
            draw = np.random.default_rng([seed, j, row + first_sample])
            window = draw.standard_normal((modality.steps, modality.variates)) * 0.5 + modality.mean
            window[draw.random(window.shape) < nan] = np.nan
            start = draw.integers(0, modality.steps)
            window[start : start + int(nan * modality.steps)] = np.nan
            windows.append(window.astype(np.float32))
        shape = (len(windows), modality.steps, modality.variates)
        values[modality.name] = torch.from_numpy(np.array(windows, np.float32).reshape(shape))
        recording[modality.name] = torch.tensor([0.3, 1.5]).expand(len(windows), modality.variates, 2)
    sample = torch.arange(len(present)) + first_sample
    return Batch(values=values, rows=rows, present=present, sample=sample, target=sample % 4, recording=recording)


def make_model(*, seed: int = 7, sequence: Any = None, label_steps: int = 1, **options: Any) -> Maestro:
    """A tiny model; `options` override. `label_steps`: parts of the window of 2 s that it predicts."""
    config = ModelConfig.model_validate(
        {"width": 12, "heads": 3, "word": 4, "feedforward": 2.0, "moe": {"experts": 3}, **options}
    )
    shape = HeadShape(4, label_steps, 2.0 / label_steps)
    return Maestro(config, MODALITIES, shape, seed=seed, sequence=sequence)
