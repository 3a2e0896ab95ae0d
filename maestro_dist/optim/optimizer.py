"""The optimizer with its two parameter groups."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from maestro_dist.config.schema import OptimConfig

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

NO_DECAY_NAMES = ("embedding", "table")


def build_optimizer(model: nn.Module, config: OptimConfig) -> Optimizer:
    """AdamW or SGD over all parameters of `model`, weight decay on matrices only.

    A parameter decays if it has two or more dimensions and the last part of its name, the parameter's own, is not an
    embedding (`NO_DECAY_NAMES`): decaying a learned row punishes rare symbols, which seldom get a gradient to
    answer with. Biases, norms and scales have one dimension. Which groups a parameter belongs to is a function of its
    name and shape alone, so it is the same on every rank and after every restart.
    SGD's decay is the usual coupled one (added to the gradient).
    """
    import torch

    decay: list[Tensor] = []
    rest: list[Tensor] = []
    for name, parameter in model.named_parameters():
        (decay if decays(name, parameter) else rest).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decay, "weight_decay": config.weight_decay, "name": "decay"},
        {"params": rest, "weight_decay": 0.0, "name": "rest"},
    ]
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps)


def decays(name: str, parameter: Tensor) -> bool:
    """Whether weight decay applies to this parameter."""
    own = name.rsplit(".", 1)[-1].lower()
    return parameter.ndim >= 2 and not any(word in own for word in NO_DECAY_NAMES)
