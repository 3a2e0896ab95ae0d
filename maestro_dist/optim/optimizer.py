"""The optimizer with its two parameter groups."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from maestro_dist.config.schema import OptimConfig

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

NO_DECAY_NAMES = ("embedding", "table", "bias")


def build_optimizer(model: nn.Module, config: OptimConfig) -> Optimizer:
    """AdamW or SGD over all parameters of `model`, weight decay on matrices only.

    A parameter decays if it has two or more dimensions and neither its own name nor that of the module it sits in (the
    last two parts of its full name) says embedding, table or bias. Decaying a learned row punishes rare symbols, which
    seldom get a gradient to answer with. Norms and scales have one dimension. Being a function of name and shape
    alone, the split is the same on every rank and after every restart. SGD's decay is the usual coupled one (added to
    the gradient).
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
    owner = ".".join(name.split(".")[-2:])
    return parameter.ndim >= 2 and not any(word in owner for word in NO_DECAY_NAMES)
