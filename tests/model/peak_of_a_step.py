"""Peak memory of training steps: python peak_of_a_step.py MODEL_JSON MODALITIES STEPS SAMPLES VARIATES.

With a key `pretrain` in MODEL_JSON (its value: `task.pretrain`) those of a model in pre-training; with `label_steps`
those of a model that predicts so many parts of a window.

Prints bytes, in a process of its own: the most that was resident beyond what it had before the model was built (the
libraries have done a tiny step by then, and the inputs exist), and the most that arrays held in forward and backward.
"""

from __future__ import annotations

import json
import sys
from itertools import accumulate
from pathlib import Path

import torch

from maestro_dist.config.learning import PretrainConfig
from maestro_dist.config.model import ModelConfig
from maestro_dist.model import Maestro, PretrainModel, Trunk
from maestro_dist.types import Batch, HeadShape, Modality


def resident(line: str) -> int:
    """Bytes resident now (VmRSS) or at most so far (VmHWM)."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(text.split()[1]) * 1024 for text in status if text.startswith(line))


def modalities(count: int, steps: int, variates: int) -> list[Modality]:
    return [Modality(f"m{j}", variates, 100.0, steps, "", (0.0,) * variates, (1.0,) * variates) for j in range(count)]


def make(
    config: ModelConfig,
    sensors: list[Modality],
    samples: int,
    pretrain: PretrainConfig | None = None,
    label_steps: int = 1,
) -> tuple[Trunk, Batch]:
    rows = torch.arange(samples)
    values = {m.name: torch.randn(samples, m.steps, m.variates) for m in sensors}
    present = torch.ones(samples, len(sensors)).bool()
    batch = Batch(values, {m.name: rows for m in sensors}, present, rows, rows % 3)
    if pretrain is not None:
        return PretrainModel(config, sensors, pretrain, seed=0).train(), batch
    shape = HeadShape(3, label_steps, sensors[0].seconds / label_steps)
    return Maestro(config, sensors, shape, seed=0).train(), batch


def step(model: Trunk, batch: Batch, optimizer: torch.optim.Optimizer | None = None) -> None:
    optimizer = optimizer or torch.optim.AdamW(model.parameters())
    forward_backward(model, batch)
    optimizer.step()


def forward_backward(model: Trunk, batch: Batch) -> None:
    model.zero_grad(set_to_none=True)
    output = model(batch, 0)
    if "masked" in output:
        output["masked"][:, 0].sum().backward()
    else:
        rows = output["logits"].view(-1, 3)
        torch.nn.functional.cross_entropy(rows, batch.target.repeat_interleave(len(rows) // len(batch))).backward()


def live(model: Trunk, batch: Batch) -> int:
    """Most bytes that lie in arrays at a time, beyond those that exist before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
        forward_backward(model, batch)
    changes = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes.sort(key=lambda event: event.start_ns())
    return max(accumulate(event.nbytes() for event in changes))


def main(model: str, count: int, steps: int, samples: int, variates: int) -> None:
    torch.set_num_threads(1)
    options = json.loads(model)
    given, label_steps = options.pop("pretrain", None), options.pop("label_steps", 1)
    pretrain = None if given is None else PretrainConfig.model_validate(given)
    tiny = ModelConfig.model_validate({**options, "width": 16, "heads": 2})
    step(*make(tiny, modalities(2, 64, 1), 2, pretrain, label_steps))
    sensors = modalities(count, steps, variates)
    made, batch = make(ModelConfig.model_validate(options), sensors, samples, pretrain, label_steps)
    before, optimizer = resident("VmRSS"), torch.optim.AdamW(made.parameters())
    for _ in range(3):  # the gaps between arrays are not where they will stay after one
        step(made, batch, optimizer)
    print(resident("VmHWM") - before, live(made, batch))


if __name__ == "__main__":
    main(sys.argv[1], *(int(text) for text in sys.argv[2:]))
