"""Peak memory of training steps: python peak_of_a_step.py MODEL_JSON MODALITIES STEPS SAMPLES VARIATES.

Prints bytes, in a process of its own, beyond what it had before the model was built; the libraries have done a tiny
step by then, and the inputs exist.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from maestro_dist.config.schema import ModelConfig
from maestro_dist.model import Maestro
from maestro_dist.types import Batch, Modality


def resident(line: str) -> int:
    """Bytes resident now (VmRSS) or at most so far (VmHWM)."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(text.split()[1]) * 1024 for text in status if text.startswith(line))


def modalities(count: int, steps: int, variates: int) -> list[Modality]:
    return [Modality(f"m{j}", variates, 100.0, steps, "", (0.0,) * variates, (1.0,) * variates) for j in range(count)]


def make(config: ModelConfig, sensors: list[Modality], samples: int) -> tuple[Maestro, Batch]:
    rows = torch.arange(samples)
    values = {m.name: torch.randn(samples, m.steps, m.variates) for m in sensors}
    present = torch.ones(samples, len(sensors)).bool()
    batch = Batch(values, {m.name: rows for m in sensors}, present, rows, rows % 3)
    return Maestro(config, sensors, 3, seed=0).train(), batch


def step(model: Maestro, batch: Batch) -> None:
    optimizer = torch.optim.AdamW(model.parameters())
    torch.nn.functional.cross_entropy(model(batch, 0)["logits"], batch.target).backward()
    optimizer.step()


def main(model: str, count: int, steps: int, samples: int, variates: int) -> None:
    torch.set_num_threads(1)
    options = json.loads(model)
    tiny = ModelConfig.model_validate({**options, "width": 16, "heads": 2})
    step(*make(tiny, modalities(2, 64, 1), 2))
    made, batch = make(ModelConfig.model_validate(options), modalities(count, steps, variates), samples)
    before = resident("VmRSS")
    for _ in range(3):  # the gaps between arrays are not where they will stay after one
        step(made, batch)
    print(resident("VmHWM") - before)


if __name__ == "__main__":
    main(sys.argv[1], *(int(text) for text in sys.argv[2:]))
