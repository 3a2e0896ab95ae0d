"""The moving average of the weights (`optim.ema`): one more state tensor of the optimizer.

Being a state tensor, it is sharded, saved, resharded and restored as the moments are, and a step that is skipped leaves
it alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.optim import Optimizer

AVERAGE = "average"
"""Name of the state tensor. Beside it the state holds `step`, the number of steps taken, whatever the optimizer."""


def decay_at(decay: float, steps: int) -> float:
    """Share of the old average that stays when `steps` steps have gone before: min(decay, (1 + t) / (10 + t)).

    The rising start is that of TensorFlow's ExponentialMovingAverage: early weights are soon forgotten.
    """
    return min(decay, (1 + steps) / (10 + steps))


def keep_average(optimizer: Optimizer, decay: float) -> None:
    """Let `optimizer` (AdamW or SGD) average the weights after each of its steps.

    The first step sets the average to the weights it made: initial weights are no part of it. A hook does it, so that
    the optimizer stays of its own class, which DeepSpeed and checkpoints know by name.
    """
    import torch

    counts = isinstance(optimizer, torch.optim.AdamW)

    def update(optimizer: Optimizer, *_: Any) -> None:
        with torch.no_grad():
            for group in optimizer.param_groups:
                for weights in group["params"]:
                    if weights.grad is not None:
                        _update(optimizer.state[weights], weights)

    def _update(state: dict[str, Any], weights: torch.Tensor) -> None:
        if not counts:
            state["step"] = state.get("step", torch.zeros(())) + 1
        if AVERAGE not in state:
            state[AVERAGE] = weights.detach().clone()
        else:
            state[AVERAGE].lerp_(weights.detach(), 1.0 - decay_at(decay, int(state["step"]) - 1))

    optimizer.register_step_post_hook(update)
