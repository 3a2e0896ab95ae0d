"""The learning rate, and the momentum that may go with it: pure functions of the step."""

from __future__ import annotations

import math

from maestro_dist.config.learning import OptimConfig

_FIRST = 1 / 25
"""First learning rate of the one-cycle schedule, as a share of the peak."""


def learning_rate(config: OptimConfig, step: int, total_steps: int) -> float:
    """Learning rate of 0-based optimizer step `step` of a run of `total_steps`.

    Linear warm-up over the first `round(warmup * total_steps)` steps: step s of w takes `(s + 1) / w` of the peak, so
    the first step already moves the weights. Then constant, or half a cosine from the peak at step w down to
    `final_lr * lr` at the last step and after it. one_cycle rises by half a cosine, from a 25th of the peak at step 0
    to the peak at step w, and comes down as the cosine does (Smith & Topin, Super-Convergence, 2018).
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
    """SGD's momentum, or AdamW's first decay rate, of a step of the one-cycle schedule; None: as it was set.

    It goes against the learning rate: from what is set down to `low_momentum` at the peak, and back. SGD without
    momentum stays without.
    """
    high = config.momentum if config.optimizer == "sgd" else config.betas[0]
    if config.schedule != "one_cycle" or high == 0.0:
        return None
    warmup = round(config.warmup * total_steps)
    if step < warmup:
        return _between(high, config.low_momentum, step / warmup)
    return _between(config.low_momentum, high, _descent(step, warmup, total_steps))


def _descent(step: int, warmup: int, total_steps: int) -> float:
    """Share of the way from the peak at step `warmup` to the last step; 1 after it."""
    return min(1.0, (step - warmup) / max(1, total_steps - 1 - warmup))


def _between(start: float, end: float, share: float) -> float:
    """Half a cosine from `start` at 0 to `end` at 1."""
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * share))
