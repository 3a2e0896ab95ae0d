"""Small exported models with two sensors, and samples for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from maestro_dist.config.model import ModelConfig
from maestro_dist.inference.exported_model import TaskDescription, export_model
from maestro_dist.model import Maestro
from maestro_dist.types import Modality

MODALITIES = [
    Modality("acc", 3, 8.0, 32, "g", (0.0, 0.1, 1.0), (0.5, 0.6, 0.7)),
    Modality("eda", 1, 4.0, 16, "uS", (2.0,), (1.0,)),
]
CLASSES = ("rest", "stress", "fun")
TASK = TaskDescription("classification", CLASSES, "stress")
draws = np.random.default_rng(0)
FULL = {m.name: draws.normal(size=(m.steps, m.variates)).astype(np.float32) for m in MODALITIES}
FULL["acc"][3:9, 1] = np.nan
SAMPLES = [FULL, {"acc": FULL["acc"]}, {"eda": FULL["eda"], "acc": None}]


def make_config(**changes: object) -> ModelConfig:
    return ModelConfig.model_validate({"width": 16, "heads": 2, "word": 4, "normalize": "dataset", **changes})


def exported(folder: Path, task: TaskDescription = TASK, **changes: object) -> Maestro:
    config = make_config(**changes)
    model = Maestro(config, MODALITIES, len(task.classes) or 1, seed=5).eval()
    weights = model.state_dict()
    export_model(str(folder), config=config, modalities=MODALITIES, task=task, weights=weights, about={"step": 7})
    return model


def as_lists(array: np.ndarray | None) -> list[list[float | None]] | None:
    """As it comes in JSON: gaps are null."""
    return None if array is None else [[None if np.isnan(x) else float(x) for x in row] for row in array]
