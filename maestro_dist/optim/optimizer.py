"""The optimizer and its parameter groups: with or without weight decay, and experts that are spread over ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from maestro_dist.config.learning import OptimConfig
from maestro_dist.optim.average import keep_average

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

NO_DECAY_NAMES = ("embedding", "table", "bias")


def build_optimizer(model: nn.Module, config: OptimConfig) -> Optimizer:
    """AdamW or SGD over all parameters of `model`, with weight decay on matrices only.

    A parameter decays if it has two or more dimensions, and if neither its own name nor the name of its module (the
    last two parts of the full name) contains embedding, table or bias. Learned vectors of symbols do not decay, because
    rare symbols seldom get a gradient that would restore them. Norms and scales have one dimension. The groups depend
    on names and shapes only, so they are the same on every rank and after every restart. AdamW's decay is decoupled;
    SGD's decay is added to the gradient. With `optim.ema` the optimizer averages the weights too (see `average`).
    """
    import torch

    groups: dict[tuple[str | None, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        expert_group, has_decay = getattr(parameter, "group_name", None), decays(name, parameter)
        if (expert_group, has_decay) not in groups:
            decay = config.weight_decay if has_decay else 0.0
            groups[expert_group, has_decay] = {
                "params": [],
                "weight_decay": decay,
                "name": "decay" if has_decay else "rest",
            }
            if expert_group is not None:  # DeepSpeed uses the name of a group to find the ranks that share its experts
                groups[expert_group, has_decay] |= {"name": expert_group, "moe": True}
        groups[expert_group, has_decay]["params"].append(parameter)
    ordered = sorted(groups.items(), key=lambda item: (item[0][0] is not None, not item[0][1]))
    parameter_groups = [group for _, group in ordered]
    optimizer: Optimizer
    if config.optimizer == "sgd":
        optimizer = torch.optim.SGD(parameter_groups, lr=config.lr, momentum=config.momentum)
    else:
        optimizer = torch.optim.AdamW(parameter_groups, lr=config.lr, betas=config.betas, eps=config.eps)
    if config.ema is not None:
        keep_average(optimizer, config.ema)
    return optimizer


def decays(name: str, parameter: Tensor) -> bool:
    """Whether weight decay applies to this parameter."""
    owner = ".".join(name.split(".")[-2:])
    return parameter.ndim >= 2 and not any(word in owner for word in NO_DECAY_NAMES)
