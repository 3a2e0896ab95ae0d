"""The budget gate learns which modality matters, and what a failed one frees goes to the others."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import pytest
import torch
from method_tasks import NAMES, look, motif, train, untrained
from torch import Tensor

GATE: dict[str, Any] = {"budget": "gate", "budget_band": 4.0}
REALLOCATE: dict[str, Any] = {"budget": "reallocate", "budget_band": 4.0, "beta": 3.0}


def lead(budgets: Tensor, name: str) -> float:
    """How far the mean budget of a modality lies above the largest of the others."""
    mean = budgets.mean(0)
    mine = mean[NAMES.index(name)]
    return float(mine - max(mean[j] for j in range(len(NAMES)) if NAMES[j] != name))


@cache
def learned(kind: str, name: str) -> tuple[Any, tuple[Any, Tensor]]:
    """A trained model of which only modality `name` carries the label, and fresh samples."""
    task = partial(motif, name=name)
    model = train(task, seed=1, steps=90, **(GATE if kind == "gate" else REALLOCATE))
    return model, task(64, torch.Generator().manual_seed(99))


@pytest.mark.parametrize(("kind", "name"), [("gate", "left"), ("gate", "right"), ("reallocate", "mid")])
def test_the_budget_of_the_modality_that_carries_the_label_ends_at_the_top(kind: str, name: str) -> None:
    model, (values, target) = learned(kind, name)
    output = look(model, values, target)
    assert (output["logits"].argmax(1) == target).float().mean() > 0.85
    assert lead(output["budgets"], name) > 0.4
    start = look(untrained(1, **(GATE if kind == "gate" else REALLOCATE)), values, target)["budgets"]
    assert lead(start, name) < 0.4, "it was at the top before training"


def test_a_fixed_budget_stays_where_it_is() -> None:
    model = train(partial(motif, name="mid"), seed=1, steps=2, **{**GATE, "budget": "fixed"})
    assert lead(look(model, *motif(8, torch.Generator().manual_seed(99)))["budgets"], "mid") == 0.0


def test_the_budget_of_a_failed_modality_goes_to_the_others() -> None:
    model, (values, target) = learned("reallocate", "mid")
    whole = look(model, values, target)["budgets"]
    keep = torch.ones(len(target), len(NAMES), dtype=torch.bool)
    keep[:, NAMES.index("mid")] = False
    failed = look(model, values, target, keep)["budgets"]
    torch.testing.assert_close(whole.sum(1), failed.sum(1), rtol=1e-4, atol=1e-4)
    assert not failed[:, NAMES.index("mid")].any()
    for name in ("left", "right"):
        assert (failed[:, NAMES.index(name)] > whole[:, NAMES.index(name)] + 0.5).all()


def test_without_reallocation_it_is_lost() -> None:
    model, (values, target) = learned("gate", "left")
    keep = torch.ones(len(target), len(NAMES), dtype=torch.bool)
    keep[:, NAMES.index("left")] = False
    freed = look(model, values, target)["budgets"].sum(1) - look(model, values, target, keep)["budgets"].sum(1)
    assert (freed > 1.0).all()
