"""Labels over time: loss, gradients and metrics are those of the labelled parts, one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from maestro_dist.config.learning import TaskConfig
from maestro_dist.errors import ConfigError
from maestro_dist.task import Labels, Task, make_task
from maestro_dist.types import Batch, TargetScale

STEPS, SAMPLES, NAN = 5, 20, float("nan")
NUMBERS = (TargetScale("high", 120.0, 15.0), TargetScale("low", 80.0, 10.0))
LABELS: dict[str, dict[str, Any]] = {
    "classification": {"kind": "classification", "classes": ("a", "b", "c"), "class_counts": (5, 20, 60)},
    "two classes": {"kind": "classification", "classes": ("a", "b"), "class_counts": (5, 20)},
    "multilabel": {"kind": "multilabel", "classes": ("a", "b", "c"), "class_counts": (5, 9, 50), "samples": 60},
    "regression": {"kind": "regression", "target_mean": 3.0, "target_std": 2.0},
    "several": {"kind": "regression", "targets": NUMBERS},
}


def tasks(name: str, **config: Any) -> tuple[Task, Task]:
    """The task over time, and that of one label."""
    options = TaskConfig.model_validate(config)
    return make_task(options, Labels(**LABELS[name], steps=STEPS)), make_task(options, Labels(**LABELS[name]))


def draw(name: str, one: Task) -> tuple[torch.Tensor, np.ndarray]:
    """Logits [N, S C] and targets [N, S, K]; some parts have no label, two samples only one, and the last has none."""
    made = np.random.default_rng(3)
    shape = (SAMPLES, STEPS, one.targets)
    most = {"multilabel": 8}.get(name, one.outputs)
    target = made.normal(100, 20, shape) if one.kind == "regression" else made.integers(0, most, shape).astype(float)
    target[made.random(shape) < 0.3] = NAN
    target[:2, 1:], target[-1] = NAN, NAN
    return torch.from_numpy(made.normal(size=(SAMPLES, STEPS * one.outputs)).astype(np.float32)), target


def one_target(one: Task, values: np.ndarray) -> torch.Tensor:
    """Targets [n, K] as the task of one label wants them."""
    if one.targets > 1:
        return torch.from_numpy(values).float()
    return torch.from_numpy(values[:, 0]).to(torch.float32 if one.kind == "regression" else torch.int64)


@pytest.mark.parametrize("name", LABELS)
@pytest.mark.parametrize("weights", ["none", "balanced"])
def test_loss_and_gradient_are_means_over_labelled_parts(name: str, weights: str) -> None:
    task, one = tasks(name, class_weights=weights) if LABELS[name].get("classes") else tasks(name)
    logits, target = draw(name, one)
    given = logits.clone().requires_grad_()
    loss = task.sample_loss(given, torch.from_numpy(target.reshape(SAMPLES, -1)).float())
    loss.sum().backward()
    other = logits.clone().requires_grad_()
    expected = []
    for row in range(SAMPLES):
        known = ~np.isnan(target[row]).all(1)
        rows = other[row].view(STEPS, -1)[torch.from_numpy(known)]
        losses = one.sample_loss(rows, one_target(one, target[row][known]))
        expected.append(losses.mean() if len(losses) else losses.sum())
    torch.testing.assert_close(loss, torch.stack(expected))
    assert loss[-1] == 0
    torch.stack(expected).sum().backward()
    assert given.grad is not None and other.grad is not None  # noqa: PT018
    assert bool(given.grad.isfinite().all())
    torch.testing.assert_close(given.grad, other.grad)


@pytest.mark.parametrize("name", LABELS)
def test_metrics_and_predictions_are_those_of_all_parts(name: str) -> None:
    task, one = tasks(name)
    logits, target = draw(name, one)
    rows, wanted = logits.numpy().reshape(-1, one.outputs), target.reshape(-1, one.targets)
    known = ~np.isnan(wanted).all(1)
    own = one_target(one, wanted[known]).numpy().astype(np.float64 if one.kind == "regression" else np.int64)
    expected = one.metrics(rows[known], own)
    found = task.metrics(logits.numpy(), target.reshape(SAMPLES, -1).astype(np.float32).astype(np.float64))
    assert found.keys() == expected.keys() == set(one.metric_names)
    assert all(found[key] == pytest.approx(expected[key], rel=1e-6) for key in expected)
    predictions = task.predictions(logits.numpy())
    assert predictions.shape[:2] == (SAMPLES, STEPS)
    np.testing.assert_array_equal(predictions[3, 2], one.predictions(rows)[3 * STEPS + 2])
    assert task.metrics(logits.numpy(), np.full((SAMPLES, STEPS * one.targets), NAN)) == {}
    assert task.metric("auto") == one.metric("auto")


@pytest.mark.parametrize("name", LABELS)
def test_teachers_heads_mixtures_and_two_views_see_all_parts(name: str) -> None:
    task, one = tasks(name)
    logits, target = draw(name, one)
    taught = torch.from_numpy(task.predictions(logits.numpy())).float()
    wanted = torch.from_numpy(target.reshape(SAMPLES, -1)).float()
    heads = torch.stack([logits, logits.flip(0)], 1)
    numbers = torch.arange(SAMPLES)
    batch = Batch(
        {}, {}, torch.ones(SAMPLES, 2, dtype=torch.bool), numbers, wanted,
        partner_target=wanted.flip(0), mix=torch.full((SAMPLES,), 0.25),
    )  # fmt: skip
    task.learn_from(taught, 1.0)
    loss = task.loss({"logits": logits, "modality_logits": heads}, batch)
    assert loss.shape == (SAMPLES,)
    assert bool(loss.isfinite().all())
    parts = taught.flatten(0, 1)
    own = one.sample_loss(logits.view(SAMPLES * STEPS, -1), parts).view(SAMPLES, STEPS).mean(1)
    torch.testing.assert_close(task.sample_loss(logits, taught), own)
    if one.kind != "regression":
        assert float(task.divergence(logits, logits).abs().max()) < 1e-6
    assert bool((task.divergence(logits, logits.flip(0)) > 0)[: SAMPLES // 2].all())


def test_too_many_labels_at_once_are_refused() -> None:
    many = tuple(f"c{number}" for number in range(25))
    labels = Labels("multilabel", classes=many, class_counts=[1] * 25, samples=25)
    make_task(TaskConfig(), labels)
    with pytest.raises(ConfigError, match="25 labels at once over time are more than the 24"):
        make_task(TaskConfig(), Labels("multilabel", classes=many, class_counts=[1] * 25, samples=25, steps=2))
