"""Metrics compared with scikit-learn, and edge cases."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as sk

from maestro_dist.config.learning import TaskConfig
from maestro_dist.task import Labels, higher_is_better, make_task
from maestro_dist.task import classification as module
from maestro_dist.task.classification import Classification, auroc, log_odds, macro_f1


def classification(outputs: int) -> Classification:
    names = [f"class {number}" for number in range(outputs)]
    task = make_task(TaskConfig(), Labels("classification", classes=names, class_counts=[1] * outputs))
    assert isinstance(task, Classification)
    return task


def softmax(logits: np.ndarray) -> np.ndarray:
    raised = np.exp(logits.astype(np.float64))
    return raised / raised.sum(1, keepdims=True)


def test_multiclass_metrics_equal_scikit_learn() -> None:
    draws = np.random.default_rng(0)
    logits, target = draws.normal(size=(200, 4)).astype(np.float32), draws.integers(0, 4, 200)
    logits[np.arange(200), target] += 1.0
    found, shares = classification(4).metrics(logits, target), softmax(logits)
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(target, logits.argmax(1)))
    assert found["macro_f1"] == pytest.approx(sk.f1_score(target, logits.argmax(1), average="macro"))
    assert found["auroc"] == pytest.approx(sk.roc_auc_score(target, shares, multi_class="ovr", average="macro"))
    assert found["loss"] == pytest.approx(sk.log_loss(target, shares))
    assert "auprc" not in found


def test_binary_metrics_equal_scikit_learn() -> None:
    draws = np.random.default_rng(1)
    logits, target = draws.normal(size=(300, 2)).astype(np.float32), draws.integers(0, 2, 300)
    found, shares = classification(2).metrics(logits, target), softmax(logits)
    assert found["auroc"] == pytest.approx(sk.roc_auc_score(target, shares[:, 1]))
    assert found["auprc"] == pytest.approx(sk.average_precision_score(target, shares[:, 1]))


def test_certain_answers_do_not_become_ties() -> None:
    """The probabilities of both rows round to 1.0; the logits still give an order."""
    logits = np.array([[0.0, 50.0], [0.0, 60.0], [0.0, 40.0]], dtype=np.float32)
    assert classification(2).metrics(logits, np.array([0, 1, 0]))["auroc"] == 1.0


def test_one_class_has_no_auroc() -> None:
    found = classification(2).metrics(np.zeros((3, 2), dtype=np.float32), np.ones(3, dtype=np.int64))
    assert set(found) == {"accuracy", "macro_f1", "loss"}


def test_auroc_is_the_mean_over_the_classes_that_occur() -> None:
    draws = np.random.default_rng(2)
    logits, target = draws.normal(size=(60, 4)).astype(np.float32), draws.integers(0, 2, 60) * 2
    shares = softmax(logits)
    expected = np.mean([sk.roc_auc_score(target == c, shares[:, c]) for c in (0, 2)])
    assert classification(4).metrics(logits, target)["auroc"] == pytest.approx(expected)


@pytest.mark.parametrize("step", [0.0, 0.5, 4.0], ids=["no ties", "ties", "nearly all tied"])
def test_auroc_is_scikit_learns_to_the_last_bit(step: float) -> None:
    draws = np.random.default_rng(3)
    for samples in (2, 3, 10, 500):
        score, positive = draws.normal(size=samples), draws.permutation(samples) < max(1, samples // 3)
        score = np.round(score / step) * step if step else score
        assert auroc(positive, score) == sk.roc_auc_score(positive, score)


@pytest.mark.parametrize("classes", [2, 3, 40])
def test_macro_f1_is_scikit_learns_to_the_last_bit(classes: int) -> None:
    draws = np.random.default_rng(classes)
    for samples in (1, 5, 300):
        target, predicted = draws.integers(0, classes, samples), draws.integers(0, max(2, classes // 2), samples)
        expected = sk.f1_score(target, predicted, average="macro", zero_division=0)
        assert macro_f1(target, predicted, classes) == expected


def test_many_classes_are_scored_as_few_are(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = np.random.default_rng(4)
    logits, columns = draws.normal(scale=30.0, size=(40, 7)).astype(np.float32), [6, 0, 3]
    logits[0] = [0, 900, 0, 0, 0, 0, 0]
    few = log_odds(logits, columns)
    monkeypatch.setattr(module, "_FEW", 2)
    monkeypatch.setattr(module, "_BLOCK", 3 * 7)  # the last block is a part of one
    assert log_odds(logits, columns) == pytest.approx(few, rel=1e-12)
    assert log_odds(logits, columns[:1]) == pytest.approx(few[:, :1], rel=1e-12)


def test_metrics_of_many_classes_need_little_more_memory_than_the_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    import tracemalloc

    draws, many = np.random.default_rng(5), 500
    logits, target, task = draws.normal(size=(many, many)).astype(np.float32), np.arange(many), classification(many)
    monkeypatch.setattr(module, "_BLOCK", 10 * many)
    task.metrics(logits[:10], target[:10])  # imports
    tracemalloc.start()
    found = task.metrics(logits, target)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * logits.nbytes
    shares = softmax(logits)
    assert found["auroc"] == pytest.approx(np.mean([auroc(target == c, shares[:, c]) for c in range(many)]))


def test_confusion_rows_are_the_truth() -> None:
    logits = np.eye(3, dtype=np.float32)[[0, 0, 2, 1]]
    counts = classification(3).confusion(logits, np.array([0, 1, 2, 2]))
    assert counts.tolist() == [[1, 0, 0], [1, 0, 0], [0, 1, 1]]


def test_probabilities_sum_to_one() -> None:
    logits = np.array([[1000.0, 0.0], [-3.0, 2.0]], dtype=np.float32)
    shares = classification(2).predictions(logits)
    assert shares.sum(1) == pytest.approx([1.0, 1.0])
    assert shares[1] == pytest.approx(softmax(logits[1:])[0])


def test_regression_metrics_are_in_the_unit_of_the_target() -> None:
    task = make_task(TaskConfig(), Labels("regression", target_mean=70.0, target_std=10.0))
    logits, target = np.array([[0.0], [1.0], [-1.0]], dtype=np.float32), np.array([72.0, 80.0, 56.0])
    found = task.metrics(logits, target)
    values = np.array([70.0, 80.0, 60.0])
    assert task.predictions(logits) == pytest.approx(values)
    assert found["mae"] == pytest.approx(sk.mean_absolute_error(target, values))
    assert found["rmse"] == pytest.approx(sk.root_mean_squared_error(target, values))
    assert found["loss"] == pytest.approx(found["rmse"] ** 2 / 100)


def test_direction_of_metrics() -> None:
    assert [higher_is_better(name) for name in ("accuracy", "auroc", "loss", "mae", "rmse")] == [
        True,
        True,
        False,
        False,
        False,
    ]


def test_pretraining_counts_symbols_not_samples() -> None:
    task = make_task(TaskConfig(kind="pretrain"), Labels("regression"))
    sums = np.array([[2.0, 1, 4], [6.0, 0, 2], [0.0, 0, 0]])
    assert task.metrics(sums, np.zeros(3)) == pytest.approx(
        {"loss": 8 / 6, "accuracy": 1 / 6, "perplexity": np.exp(8 / 6)}
    )
    assert task.predictions(sums).tolist() == [0.5, 3.0, 0.0]
    assert task.metrics(sums[2:], np.zeros(1)) == {}
    assert task.metric("auto") == "loss"
    assert not higher_is_better("perplexity")
