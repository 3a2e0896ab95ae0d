"""Losses of samples, compared with oracles that compute one sample at a time."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from maestro_dist.config.learning import TaskConfig
from maestro_dist.errors import ConfigError
from maestro_dist.task import Labels, Task, make_task
from maestro_dist.types import Batch, Output

CLASSES = ["rest", "walk", "run"]
COUNTS = [60, 30, 10]


def make_batch(present: torch.Tensor, target: torch.Tensor) -> Batch:
    return Batch(values={}, rows={}, present=present, sample=torch.arange(len(target)), target=target)


def make_output(samples: int, modalities: int, outputs: int) -> Output:
    generator = torch.Generator().manual_seed(3)
    heads = torch.randn(samples, modalities, outputs, generator=generator, requires_grad=True)
    logits = torch.randn(samples, outputs, generator=generator, requires_grad=True)
    return Output(logits=logits, modality_logits=heads)


def slow_cross_entropy(logits: list[float], label: int, smoothing: float, weight: float) -> float:
    top = max(logits)
    log_sum = top + math.log(sum(math.exp(value - top) for value in logits))
    share = [smoothing / len(logits) + (1 - smoothing) * (index == label) for index in range(len(logits))]
    return weight * -sum(part * (value - log_sum) for part, value in zip(share, logits, strict=True))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", ["none", "balanced"])
def test_classification_loss_equals_the_slow_sum(smoothing: float, weights: str) -> None:
    config = TaskConfig(label_smoothing=smoothing, class_weights=weights, auxiliary=0.3)  # type: ignore[arg-type]
    task = make_task(config, Labels("classification", classes=CLASSES, class_counts=COUNTS))
    present = torch.tensor([[True, True], [True, False], [False, False], [False, True]])
    target = torch.tensor([0, 1, 2, 2])
    output = make_output(4, 2, 3)
    loss = task.loss(output, make_batch(present, target))
    for row in range(4):
        label = int(target[row])
        weight = sum(COUNTS) / (3 * COUNTS[label]) if weights == "balanced" else 1.0
        expected = slow_cross_entropy(output["logits"][row].tolist(), label, smoothing, weight)
        heads = [
            slow_cross_entropy(output["modality_logits"][row, m].tolist(), label, smoothing, weight)
            for m in range(2)
            if present[row, m]
        ]
        expected += 0.3 * (sum(heads) / len(heads) if heads else 0.0)
        assert loss[row].item() == pytest.approx(expected, rel=1e-6)
    loss.sum().backward()
    absent = output["modality_logits"].grad[~present]  # type: ignore[index]
    assert torch.equal(absent, torch.zeros_like(absent)), "a head of an absent modality learns nothing"


def test_balanced_weights_have_mean_one_over_the_training_split() -> None:
    from maestro_dist.task.classification import balanced_weights

    counts = [60, 30, 0, 10]
    weights = balanced_weights(counts)
    assert sum(c * w for c, w in zip(counts, weights, strict=True)) / sum(counts) == pytest.approx(1.0)
    assert weights[0] * 60 == pytest.approx(weights[3] * 10)


def test_empty_batches_give_an_empty_loss_that_still_has_a_graph() -> None:
    task = make_task(
        TaskConfig(class_weights="balanced"), Labels("classification", classes=CLASSES, class_counts=COUNTS)
    )
    output = make_output(0, 2, 3)
    loss = task.loss(output, make_batch(torch.zeros(0, 2, dtype=torch.bool), torch.zeros(0, dtype=torch.int64)))
    assert loss.shape == (0,)
    loss.sum().backward()


def test_bf16_logits_give_a_float32_loss() -> None:
    task = make_task(TaskConfig(), Labels("classification", classes=CLASSES, class_counts=COUNTS))
    logits = torch.randn(5, 3).bfloat16()
    loss = task.loss(Output(logits=logits), make_batch(torch.ones(5, 2, dtype=torch.bool), torch.zeros(5).long()))
    assert loss.dtype == torch.float32


def test_regression_loss_is_in_units_of_the_spread() -> None:
    task = make_task(TaskConfig(auxiliary=0.5), Labels("regression", target_mean=70.0, target_std=10.0))
    output = Output(logits=torch.tensor([[0.5]]), modality_logits=torch.tensor([[[1.0], [9.0]]]))
    batch = make_batch(torch.tensor([[True, False]]), torch.tensor([80.0]))
    assert float(task.loss(output, batch)) == pytest.approx((0.5 - 1.0) ** 2 + 0.5 * 0.0)


def rows_of(batch: Batch, output: Output, rows: slice) -> tuple[Output, Batch]:
    """Some of the rows as a batch of their own."""
    part = make_batch(batch.present[rows], batch.target[rows])
    return Output(logits=output["logits"][rows], modality_logits=output["modality_logits"][rows]), part


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_a_mixture_has_the_loss_of_both_by_their_shares(kind: str) -> None:
    task, output = make(kind), make_output(3, 2, 3 if kind == "classification" else 1)
    target = torch.tensor([0, 2, 1])
    batch = make_batch(torch.tensor([[True, True], [True, False], [False, True]]), target)
    own = task.loss(output, batch)
    other = task.loss(output, replace(batch, target=target.flip(0)))
    share = torch.tensor([0.25, 1.0, 0.5])
    mixed = task.loss(output, replace(batch, partner_target=target.flip(0), mix=share))
    assert mixed.tolist() == pytest.approx((share * own + (1 - share) * other).tolist(), rel=1e-6)


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_two_views_count_a_sample_once_and_pull_the_dropped_one(kind: str) -> None:
    task, output = make(kind, consistency=0.7), make_output(4, 2, 3 if kind == "classification" else 1)
    batch = make_batch(torch.tensor([[True, True]] * 2 + [[True, False], [False, True]]), torch.tensor([0, 2] * 2))
    whole, dropped = (task.loss(*rows_of(batch, output, rows)) for rows in (slice(0, 2), slice(2, 4)))
    loss = task.loss(output, replace(batch, views=2))
    one, other = output["logits"][:2].double(), output["logits"][2:].double()
    if kind == "classification":
        p, q = one.softmax(1), other.softmax(1)
        apart = (p * (p / q).log()).sum(1)
    else:
        apart = (one - other).square().squeeze(1)
    assert loss.tolist() == pytest.approx(((whole + dropped) / 2 + 0.7 * apart).tolist(), rel=1e-5)
    (loss.sum() - (whole + dropped).sum() / 2).backward()  # what is left is the divergence's
    gradient = output["logits"].grad
    assert gradient is not None
    assert gradient[:2].abs().max() < 1e-6
    assert gradient[2:].abs().min() > 1e-4
    empty = make_batch(batch.present[:0], batch.target[:0])
    assert task.loss(make_output(0, 2, task.outputs), replace(empty, views=2)).shape == (0,)


def make(kind: str, consistency: float = 0.0) -> Task:
    return make_task(TaskConfig(), Labels(kind, classes=CLASSES, class_counts=COUNTS), consistency=consistency)


def test_another_kind_than_the_data_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"task\.kind=regression: the data is for classification"):
        make_task(TaskConfig(kind="regression"), Labels("classification", classes=CLASSES, class_counts=COUNTS))


def test_a_metric_that_the_task_lacks_is_refused() -> None:
    task = make_task(TaskConfig(), Labels("classification", classes=CLASSES, class_counts=COUNTS))
    assert task.metric("auto") == "accuracy"
    with pytest.raises(ConfigError, match=r"evaluation\.metric=auprc: this classification task has accuracy"):
        task.metric("auprc")


@pytest.mark.parametrize("weights", ["none", "balanced"])
def test_answers_are_targets_by_their_share(weights: str) -> None:
    config = TaskConfig(label_smoothing=0.2, class_weights=weights, auxiliary=0.3)  # type: ignore[arg-type]
    task = make_task(config, Labels("classification", classes=CLASSES, class_counts=COUNTS))
    present = torch.tensor([[True, True], [True, False], [False, False], [False, True]])
    target, numbers = torch.tensor([0, 1, 2, 2]), [3, 0, 4, 1]
    output = make_output(4, 2, 3)
    batch = replace(make_batch(present, target), sample=torch.tensor(numbers))
    hard = task.loss(output, batch).tolist()
    answers = torch.rand(6, 3, generator=torch.Generator().manual_seed(1))
    answers /= answers.sum(1, keepdim=True)
    each = [sum(COUNTS) / (3 * count) if weights == "balanced" else 1.0 for count in COUNTS]

    def soft(logits: list[float], row: int) -> float:
        parts = answers[numbers[row]].tolist()
        return sum(p * slow_cross_entropy(logits, c, 0.0, each[c]) for c, p in enumerate(parts))

    for share in (1.0, 0.7):
        task.learn_from(answers, share)
        loss = task.loss(output, batch)
        for row in range(4):
            heads = [soft(output["modality_logits"][row, m].tolist(), row) for m in range(2) if present[row, m]]
            answered = soft(output["logits"][row].tolist(), row) + 0.3 * (sum(heads) / len(heads) if heads else 0.0)
            assert loss[row].item() == pytest.approx((1 - share) * hard[row] + share * answered, rel=1e-5)


def test_values_are_answers_too() -> None:
    task = make_task(TaskConfig(auxiliary=0.0), Labels("regression", target_mean=2.0, target_std=4.0))
    present = torch.tensor([[True], [True]])
    batch = replace(make_batch(present, torch.tensor([1.0, 9.0])), sample=torch.tensor([2, 0]))
    output = Output(logits=torch.tensor([[0.5], [1.0]]))
    task.learn_from(torch.tensor([6.0, 0.0, 2.0]), 0.25)
    expected = [0.75 * (0.5 + 0.25) ** 2 + 0.25 * 0.5**2, 0.75 * (1 - 1.75) ** 2 + 0.25 * (1 - 1.0) ** 2]
    assert task.loss(output, batch).tolist() == pytest.approx(expected)
