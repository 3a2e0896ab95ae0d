"""Schedules of the learning rate and the momentum: pure functions of the step."""

from __future__ import annotations

import math

from maestro_dist.config.learning import OptimConfig

_FIRST = 1 / 25
"""First learning rate of the one-cycle schedule, as a share of the peak."""


def learning_rate(config: OptimConfig, step: int, total_steps: int) -> float:
    """Learning rate of optimizer step `step` (the first is 0) in a run of `total_steps`.

    Warm-up over the first w = round(warmup * total_steps) steps is linear: step s uses (s + 1) / w of the peak, so the
    first step already changes the weights. After it the rate is constant, or falls by half a cosine from the peak at
    step w to `final_lr * lr` at the last step, and stays there. With one_cycle the warm-up is half a cosine from a 25th
    of the peak at step 0 to the peak at step w (Smith & Topin, Super-Convergence, 2018).
    """
    warmup = round(config.warmup * total_steps)
    if step < warmup and config.schedule == "one_cycle":
        return config.lr * _between(_FIRST, 1.0, step / warmup)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    if config.schedule == "constant":
        return config.lr
    return config.lr * _between(1.0, config.final_lr, _descent(step, warmup, total_steps))


def momentum(config: OptimConfig, step: int, total_steps: int) -> float | None:
    """Momentum of SGD, or first decay rate of AdamW, at a step of the one-cycle schedule. None: it does not change.

    It moves against the learning rate: from the configured value down to `low_momentum` at the peak, and back. SGD
    with momentum 0 keeps it.
    """
    high = config.momentum if config.optimizer == "sgd" else config.betas[0]
    if config.schedule != "one_cycle" or high == 0.0:
        return None
    warmup = round(config.warmup * total_steps)
    if step < warmup:
        return _between(high, config.low_momentum, step / warmup)
    return _between(config.low_momentum, high, _descent(step, warmup, total_steps))


def _descent(step: int, warmup: int, total_steps: int) -> float:
    """How far a step is from the peak at step `warmup` (0) to the last step (1); 1 after the last step."""
    return min(1.0, (step - warmup) / max(1, total_steps - 1 - warmup))


def _between(start: float, end: float, share: float) -> float:
    """Half a cosine from `start` at share 0 to `end` at share 1."""
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * share))
