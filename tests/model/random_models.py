"""Random models and batches: every option that changes which operations a forward and a backward are made of."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from maestro_dist.config.learning import TaskConfig
from maestro_dist.config.model import ModelConfig
from maestro_dist.model import Maestro, PretrainModel, Trunk
from maestro_dist.model.attention import VARIANTS
from maestro_dist.task import Labels, Task, make_task
from maestro_dist.types import Batch, Modality

CLASSES = ("a", "b", "c")

SPARSE = [name for name, variant in VARIANTS.items() if variant.abilities.selects_queries]


def options(draw: random.Random) -> dict[str, Any]:
    """Of the section `model`."""
    few = {
        "heads": (2, 8),
        "word": (1, 4, 8),
        "encoder_layers": (0, 1, 2),
        "fusion_layers": (0, 1, 2),
        "budget": ("gate", "reallocate", "fixed"),
        "budget_inputs": ("presence", "content"),
        "embedding": ("ordinal", "table", "patch"),
        "stem": (None, {"channels": 4, "kernel": 3}),
        "summary": ("none", "level", "statistics"),
        "summary_bins": (0, 3),
        "head": ("pooled", "additive"),
        "pooling": ("mean", "attention"),
        "head_hidden": (0, 1),
        "activation_checkpointing": ("none", "layers"),
        "dropout": (0.0, 0.2),
        "attention": ("sparse", "sparse", "sparse", "dense"),
        "attention_algorithm": (
            "auto",
            "auto",
            "auto",
            *(name for name, variant in VARIANTS.items() if variant.abilities.selects_queries),
        ),
        "downsample": (True, True, False),
        "layer_scale": (None, 0.1),
        "normalize": ("window", "dataset"),
        "tile": (None, 7),
    }
    chosen = {name: draw.choice(values) for name, values in few.items()}
    # eight heads of eight: where the cheapest form of attention hangs on the length
    width = 64 if chosen["heads"] == 8 else 16
    experts = {"experts": draw.choice((0, 4)), "top_k": draw.choice((1, 2)), "shared": draw.choice((0, 1))}
    return {**chosen, "width": width, "feedforward": 2.0, "moe": experts}


def modalities(draw: random.Random) -> list[Modality]:
    """Two to five, of one or two variates; some have no more than a word."""
    most, made = draw.choice((8, 64, 256)), []
    for j in range(draw.choice((2, 3, 5))):
        steps, variates = draw.choice((1, most // 2, most)), 1 + j % 2
        made.append(Modality(f"m{j}", variates, 16.0, steps, "g", (0.0,) * variates, (1.0,) * variates))
    return made


def model_and_task(draw: random.Random, sensors: list[Modality]) -> tuple[Trunk, Task]:
    """A classifier, or a model in pre-training."""
    config = ModelConfig.model_validate(options(draw))
    task = TaskConfig.model_validate({"kind": draw.choice(("auto", "auto", "auto", "pretrain"))})
    made = make_task(task, Labels("classification", classes=CLASSES, class_counts=[1] * len(CLASSES)))
    if made.kind == "pretrain":
        return PretrainModel(config, sensors, task.pretrain, seed=1).train(), made
    return Maestro(config, sensors, len(CLASSES), seed=1).train(), made


def batch(sensors: list[Modality], present: np.ndarray, gaps: float, seed: int) -> Batch:
    """Noise; `present` bool [B, M]; a share `gaps` of the steps is missing."""
    draw = np.random.default_rng(seed)
    values, rows = {}, {}
    for j, modality in enumerate(sensors):
        having = np.flatnonzero(present[:, j])
        windows = draw.standard_normal((len(having), modality.steps, modality.variates)).astype(np.float32)
        windows[draw.random(windows.shape[:2]) < gaps] = np.nan
        rows[modality.name], values[modality.name] = torch.from_numpy(having), torch.from_numpy(windows)
    sample = torch.arange(len(present))
    return Batch(values, rows, torch.from_numpy(present), sample, sample % len(CLASSES), global_samples=8)


def random_batch(draw: random.Random, sensors: list[Modality]) -> Batch:
    """Of zero to five samples, which lack any modalities, or all; of some, nothing was observed."""
    seed = draw.randrange(1 << 30)
    shape = draw.choice((0, 1, 1, 2, 5)), len(sensors)
    present = np.random.default_rng(seed).random(shape) > draw.choice((0.0, 0.3, 0.6, 1.0))
    return batch(sensors, present, draw.choice((0.0, 0.1, 0.9, 1.0)), seed)
