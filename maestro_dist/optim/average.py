"""The exponential moving average of the weights (`optim.ema`), as one more state tensor of the optimizer.

DeepSpeed and checkpoints treat it like the moments: they shard, save, reshard and restore it. A skipped step does not
change it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.optim import Optimizer

AVERAGE = "average"
"""Name of the state tensor. With each optimizer, the state also contains `step`, the number of steps taken."""


def decay_at(decay: float, steps: int) -> float:
    """Share of the old average that stays after t = `steps` earlier steps: min(decay, (1 + t) / (10 + t)).

    The decay starts low, so that early weights soon lose their influence, as in TensorFlow's ExponentialMovingAverage.
    """
    return min(decay, (1 + steps) / (10 + steps))


def keep_average(optimizer: Optimizer, decay: float) -> None:
    """Make `optimizer` (AdamW or SGD) average the weights after each of its steps.

    The first step sets the average to the weights after that step; the initial weights are not in it. A hook does this,
    because DeepSpeed and checkpoints know the optimizer by the name of its class, which must not change.
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
