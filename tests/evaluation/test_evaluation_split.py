"""evaluate_split in one process against a plain loop, and its errors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from maestro_dist.config.learning import TaskConfig
from maestro_dist.data.missing import evaluation_mask
from maestro_dist.errors import DataError, NonFiniteError
from maestro_dist.evaluation import Evaluation, EvaluationData, EvaluationPlan, evaluate_split
from maestro_dist.evaluation import split as split_module
from maestro_dist.evaluation.table import results_table
from maestro_dist.parallel.mesh import Mesh
from maestro_dist.task import Labels, make_task
from maestro_dist.types import Batch, Output

SAMPLES, MODALITIES, CLASSES = 23, 3, 4
ALONE = Mesh(rank=0, world=1, data=1)
draws = np.random.default_rng(5)
PRESENT = draws.random((SAMPLES, MODALITIES)) < 0.8
PRESENT[:, 0] |= ~PRESENT.any(1)
TARGET = draws.integers(0, CLASSES, SAMPLES)
SCORES = draws.normal(size=(SAMPLES, MODALITIES, CLASSES)).astype(np.float32)
LOADS = draws.integers(0, 9, (2, SAMPLES, 3))
TASK = make_task(TaskConfig(), Labels("classification", classes=list("abcd"), class_counts=[1] * 4))


def forward(batch: Batch) -> Output:
    """A model whose answer depends on the sample and on what it has."""
    scores = torch.from_numpy(SCORES)[batch.sample]
    load = torch.from_numpy(LOADS)[:, batch.sample] * batch.present.sum(1)[:, None]
    return Output(logits=(scores * batch.present.unsqueeze(-1)).sum(1), expert_load_by_sample=load.int())


def batches(keep: np.ndarray | None, *, size: int = 4, rank: int = 0, ranks: int = 1) -> Iterator[Batch]:
    mask = PRESENT if keep is None else keep
    most = -(-SAMPLES // ranks)
    numbers = np.arange(rank, SAMPLES, ranks)
    for start in range(0, most, size):
        chosen = numbers[start : start + size]
        yield Batch(
            values={},
            rows={},
            present=torch.from_numpy(mask[chosen]),
            sample=torch.from_numpy(chosen),
            target=torch.from_numpy(TARGET[chosen]),
        )


def oracle(rate: float, draw: int) -> dict[str, float]:
    mask = evaluation_mask(PRESENT, rate, draw)
    return TASK.metrics((SCORES * mask[:, :, None]).sum(1), TARGET)


DATA = EvaluationData(batches, PRESENT)
COMPLETE = EvaluationPlan("validation", rates=[0.0], draws=[0])


def evaluate(**options: bool) -> Evaluation:
    plan = EvaluationPlan("validation", rates=[0.4, 0.0], draws=[0, 1, 2], **options)
    return evaluate_split(forward, TASK, DATA, plan, ALONE)


def test_every_scenario_equals_the_plain_loop() -> None:
    result = evaluate()
    assert [(s.rate, s.draw) for s in result.scenarios] == [(0.0, 0), (0.4, 0), (0.4, 1), (0.4, 2)]
    for scenario in result.scenarios:
        assert scenario.metrics == pytest.approx(oracle(scenario.rate, scenario.draw), abs=1e-6)
    accuracies = [oracle(0.4, draw)["accuracy"] for draw in range(3)]
    assert result.mean("accuracy", 0.4) == pytest.approx(np.mean(accuracies))
    assert result.spread("accuracy", 0.4) == pytest.approx(np.std(accuracies, ddof=1))
    assert result.spread("accuracy", 0.0) is None
    expected = (oracle(0.0, 0)["accuracy"] + np.mean(accuracies)) / 2
    assert result.score("accuracy") == pytest.approx(expected)


def test_complete_scenario_keeps_its_confusion_and_logits() -> None:
    result = evaluate()
    assert result.class_counts == np.bincount(TARGET, minlength=CLASSES).tolist()
    assert result.majority() == pytest.approx(np.bincount(TARGET).max() / SAMPLES)
    assert result.logits is not None
    assert result.target is not None
    assert np.array_equal(result.target, TARGET)
    assert np.allclose(result.logits, (SCORES * PRESENT[:, :, None]).sum(1))


def test_loads_by_missing_set_are_those_of_all_scenarios() -> None:
    masks = [PRESENT, *(evaluation_mask(PRESENT, 0.4, draw) for draw in range(3))]
    found = evaluate().loads
    assert found is not None
    assert sum(load.samples for load in found) == 4 * SAMPLES
    for load in found:
        has = np.array([number not in load.missing for number in range(MODALITIES)])
        mine = [(mask == has).all(1) for mask in masks]
        assert load.samples == sum(rows.sum() for rows in mine)
        assert load.tokens == sum(LOADS[:, rows].sum(1) * has.sum() for rows in mine).tolist()


def test_confusion_of_many_classes_is_kept_as_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    square = evaluate()
    assert "confused" not in square.to_json()
    monkeypatch.setattr(split_module, "MOST_CLASSES", CLASSES - 1)
    pairs = evaluate()
    assert pairs.confusion is None
    assert square.confusion is not None
    assert pairs.class_counts == square.class_counts
    found = np.zeros((CLASSES, CLASSES), int)
    for true, predicted, samples in pairs.confused or ():
        found[true, predicted] = samples
    assert found.tolist() == square.confusion
    assert Evaluation.from_json(pairs.to_json()).confused == pairs.confused


def test_json_there_and_back() -> None:
    import json

    result = evaluate()
    again = Evaluation.from_json(json.loads(json.dumps(result.to_json())))
    assert again.scenarios == result.scenarios
    assert again.confusion == result.confusion
    assert again.loads == result.loads
    older = result.to_json()
    del older["loads"]
    assert Evaluation.from_json(older).loads is None
    assert results_table(again) == results_table(result)


def test_table_shows_mean_and_spread() -> None:
    result = evaluate()
    lines = results_table(result).splitlines()
    assert lines[0] == "validation: 23 samples"
    assert lines[1].split() == ["missing", "accuracy", "macro", "F1", "AUROC", "loss"]
    assert lines[3].startswith(f"none     {result.mean('accuracy', 0.0):.3f}")
    assert f"{result.mean('accuracy', 0.4):.3f} ± {result.spread('accuracy', 0.4):.3f}" in lines[4]


def test_flat_names() -> None:
    assert set(evaluate().flat("validation")) >= {"validation/accuracy", "validation/accuracy_missing_40"}


def test_a_sample_that_comes_twice_is_named() -> None:
    def twice(keep: np.ndarray | None) -> Iterator[Batch]:
        yield from batches(keep)
        yield next(batches(keep))

    with pytest.raises(DataError, match="has 23 samples but 27 were evaluated: number 0 came 2 times"):
        evaluate_split(forward, TASK, replace(DATA, batches=twice), COMPLETE, ALONE)


def test_a_sample_that_is_lost_is_named() -> None:
    def short(keep: np.ndarray | None) -> Iterator[Batch]:
        yield from list(batches(keep))[1:]

    with pytest.raises(DataError, match="number 0 came 0 times"):
        evaluate_split(forward, TASK, replace(DATA, batches=short), COMPLETE, ALONE)


def test_predictions_that_are_not_finite_stop() -> None:
    def broken(batch: Batch) -> Output:
        logits = forward(batch)["logits"]
        logits[batch.sample == 7] = float("nan")
        return Output(logits=logits)

    with pytest.raises(NonFiniteError, match="1 of 23 predictions on split 'validation' are NaN or infinite"):
        evaluate_split(broken, TASK, DATA, COMPLETE, ALONE)


def test_an_undefined_metric_cannot_choose() -> None:
    one_class = Evaluation("validation", 2, ["auroc"], [])
    object.__setattr__(one_class, "scenarios", evaluate().scenarios)
    for scenario in one_class.scenarios:
        scenario.metrics.pop("auroc")
    with pytest.raises(DataError, match="auroc is undefined"):
        one_class.score("auroc")


def test_regression_is_evaluated_alike() -> None:
    task = make_task(TaskConfig(), Labels("regression", target_mean=2.0, target_std=3.0))

    def predict(batch: Batch) -> Output:
        return Output(logits=forward(batch)["logits"][:, :1])

    result = evaluate_split(predict, task, DATA, COMPLETE, ALONE)
    expected = np.abs((SCORES * PRESENT[:, :, None]).sum(1)[:, 0] * 3.0 + 2.0 - TARGET).mean()
    assert result.mean("mae", 0.0) == pytest.approx(expected, rel=1e-5)
    assert result.confusion is None


def test_progress_bar_writes_to_stderr_only(capsys: pytest.CaptureFixture[str]) -> None:
    evaluate(progress=True)
    assert capsys.readouterr().out == ""
