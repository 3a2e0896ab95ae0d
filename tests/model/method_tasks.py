"""Synthetic tasks on which the method can be seen at work, and a short training with torch's AdamW."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from maestro_dist.config.model import ModelConfig
from maestro_dist.model import Maestro
from maestro_dist.types import Batch, Modality, Output

STEPS, WORD = 256, 4
NAMES = ["left", "mid", "right"]
MODALITIES = [Modality(name, 2, 16.0, STEPS, mean=(0.0, 0.0), std=(1.0, 1.0)) for name in NAMES]


def batch_of(values: dict[str, Tensor], target: Tensor, first: int, keep: Tensor | None = None) -> Batch:
    """A batch of complete windows; `keep` bool [B, M] takes modalities away."""
    present = torch.ones(len(target), len(NAMES), dtype=torch.bool) if keep is None else keep
    rows = {name: present[:, j].nonzero()[:, 0] for j, name in enumerate(NAMES)}
    kept = {name: values[name][rows[name]] for name in NAMES}
    return Batch(values=kept, rows=rows, present=present, sample=torch.arange(len(target)) + first, target=target)


def noise(samples: int, draw: torch.Generator) -> dict[str, Tensor]:
    return {name: torch.randn(samples, STEPS, 2, generator=draw) for name in NAMES}


def motif(samples: int, draw: torch.Generator, name: str = "mid") -> tuple[dict[str, Tensor], Tensor]:
    """The class is the shape of a few short bursts somewhere in one modality; the others are noise."""
    values, target = noise(samples, draw), torch.randint(0, 2, (samples,), generator=draw)
    sign = torch.where(target == 1, 1.0, -1.0)
    for _ in range(3):
        start = torch.randint(0, STEPS // WORD, (samples,), generator=draw) * WORD
        where = start[:, None] + torch.arange(WORD)
        burst = torch.stack((torch.ones(samples), sign), 1)[:, None] * torch.tensor([2.5, -2.5, 2.5, -2.5])[:, None]
        values[name].scatter_add_(1, where[..., None].expand(-1, -1, 2), burst)
    return values, target


def train(
    task: Callable[[int, torch.Generator], tuple[dict[str, Tensor], Tensor]],
    *,
    seed: int,
    steps: int,
    samples: int = 32,
    lr: float = 1e-2,
    outputs: int = 2,
    **options: Any,
) -> Maestro:
    """A small model after `steps` steps of AdamW on fresh samples of a task."""
    model = untrained(seed, outputs, **options).train()
    draw = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    for step in range(steps):
        values, target = task(samples, draw)
        loss = F.cross_entropy(model(batch_of(values, target, step * samples), step)["logits"], target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def untrained(seed: int, outputs: int = 2, **options: Any) -> Maestro:
    """The same model before its first step."""
    small = {"width": 16, "heads": 2, "word": WORD, "summary": "none", "feedforward": 2.0, "dropout": 0.0, **options}
    return Maestro(ModelConfig.model_validate(small), MODALITIES, outputs, seed=seed).eval()


def look(model: Maestro, values: dict[str, Tensor], target: Tensor, keep: Tensor | None = None) -> Output:
    """What a model in evaluation says of samples."""
    with torch.no_grad():
        output: Output = model(batch_of(values, target, 1 << 20, keep))
    return output
