from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from maestro_dist.config.learning import OptimConfig
from maestro_dist.optim import build_optimizer, learning_rate, momentum
from maestro_dist.optim.average import decay_at


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)
        self.norm = nn.LayerNorm(4)
        self.table = nn.Embedding(5, 4)
        self.embeddings = nn.ModuleDict({"acc": nn.Linear(2, 2)})  # a projection, though it lives among embeddings
        self.experts = nn.Parameter(torch.zeros(2, 3, 3))
        self.head_bias = nn.Parameter(torch.zeros(2, 3))


def test_only_matrices_decay() -> None:
    model = Model()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = build_optimizer(model, OptimConfig(weight_decay=0.1)).param_groups
    split = {group["weight_decay"]: {names[id(parameter)] for parameter in group["params"]} for group in groups}
    assert split[0.1] == {"linear.weight", "embeddings.acc.weight", "experts"}
    assert split[0.0] == set(names.values()) - split[0.1]


def test_a_model_without_matrices_has_one_group() -> None:
    assert len(build_optimizer(nn.LayerNorm(4), OptimConfig(optimizer="sgd")).param_groups) == 1


def test_adamw_gets_its_settings() -> None:
    optimizer = build_optimizer(Model(), OptimConfig(lr=0.2, betas=(0.8, 0.9), eps=1e-6))
    assert type(optimizer) is torch.optim.AdamW
    assert [optimizer.defaults[key] for key in ("lr", "betas", "eps")] == [0.2, (0.8, 0.9), 1e-6]
    sgd = build_optimizer(Model(), OptimConfig(optimizer="sgd", lr=0.3, momentum=0.5))
    assert (type(sgd), sgd.defaults["lr"], sgd.defaults["momentum"]) == (torch.optim.SGD, 0.3, 0.5)


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5])
def test_cosine_rises_from_the_first_step_peaks_once_and_ends_at_the_final_share(warmup: float) -> None:
    config, total = OptimConfig(lr=2.0, warmup=warmup, final_lr=0.05), 100
    rates = [learning_rate(config, step, total) for step in range(total)]
    rising = round(warmup * total)
    assert rates[0] > 0
    assert rates[:rising] == pytest.approx([2.0 * (step + 1) / rising for step in range(rising)])
    assert rates[rising] == max(rates) == 2.0
    assert all(first >= second for first, second in zip(rates[rising:], rates[rising + 1 :], strict=False))
    middle = (rising + total - 1) / 2
    assert learning_rate(config, math.floor(middle), total) == pytest.approx(2.0 * 0.525, rel=0.05)
    assert rates[-1] == pytest.approx(0.1)
    assert learning_rate(config, total + 5, total) == pytest.approx(0.1)


def test_constant_stays_and_one_step_runs_have_a_rate() -> None:
    config = OptimConfig(lr=1.0, schedule="constant", warmup=0.2)
    assert [learning_rate(config, step, 10) for step in range(4)] == [0.5, 1.0, 1.0, 1.0]
    for warmup in (0.0, 0.5, 1.0):
        assert learning_rate(OptimConfig(lr=1.0, warmup=warmup), 0, 1) == 1.0


@pytest.mark.parametrize(("warmup", "optimizer"), [(0.3, "adamw"), (0.5, "sgd"), (0.1, "adamw")])
def test_one_cycle_is_that_of_torch(warmup: float, optimizer: str) -> None:
    """Torch's peak is the last step of the rise; ours the first of the descent, so its rise is one step longer."""
    total = 100
    config = OptimConfig(
        lr=2.0, schedule="one_cycle", warmup=warmup, final_lr=0.001,
        optimizer=optimizer, betas=(0.95, 0.999), momentum=0.95,
    )  # fmt: skip
    theirs = build_optimizer(Model(), config)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        theirs, max_lr=2.0, total_steps=total, pct_start=warmup + 1 / total, div_factor=25, final_div_factor=40
    )
    for step in range(total):
        group = theirs.param_groups[0]
        assert learning_rate(config, step, total) == pytest.approx(group["lr"], rel=1e-9)
        expected = group["momentum"] if optimizer == "sgd" else group["betas"][0]
        assert momentum(config, step, total) == pytest.approx(expected, rel=1e-9)
        theirs.step()
        scheduler.step() if step < total - 1 else None
    assert learning_rate(config, total + 5, total) == pytest.approx(0.002)


def test_early_weights_are_soon_forgotten() -> None:
    assert [decay_at(0.999, steps) for steps in (1, 8, 10**6)] == [2 / 11, 0.5, 0.999]


def test_momentum_stays_as_set_elsewhere() -> None:
    assert momentum(OptimConfig(), 3, 10) is None
    assert momentum(OptimConfig(optimizer="sgd", schedule="one_cycle"), 3, 10) is None
