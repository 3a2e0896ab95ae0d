"""The learning rate: a pure function of the step."""

from __future__ import annotations

import math

from maestro_dist.config.schema import OptimConfig


def learning_rate(config: OptimConfig, step: int, total_steps: int) -> float:
    """Learning rate of 0-based optimizer step `step` of a run of `total_steps`.

    Linear warm-up over the first `round(warmup * total_steps)` steps: step s of w takes `(s + 1) / w` of the peak, so
    the first step already moves the weights. Then constant, or half a cosine from the peak at step w down to
    `final_lr * lr` at the last step and after it.
    """
    warmup = round(config.warmup * total_steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    if config.schedule == "constant":
        return config.lr
    progress = min(1.0, (step - warmup) / max(1, total_steps - 1 - warmup))
    return config.lr * (config.final_lr + (1.0 - config.final_lr) * 0.5 * (1.0 + math.cos(math.pi * progress)))
