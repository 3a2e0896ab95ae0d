"""Weighted metrics against the plain ones on repeated samples; the bootstrap on a case that is known."""

from __future__ import annotations

import numpy as np
import pytest
from suite.statistics import interval, subject_weights, weighted_metric

from maestro_dist.config.learning import TaskConfig
from maestro_dist.task.classification import Classification

draws = np.random.default_rng(3)
SAMPLES, SUBJECTS = 60, 7
SUBJECT = np.concatenate((np.arange(SUBJECTS), draws.integers(0, SUBJECTS, SAMPLES - SUBJECTS)))


@pytest.mark.parametrize(
    ("metric", "classes"),
    [*((metric, classes) for metric in ("accuracy", "macro_f1", "auroc") for classes in (2, 4)), ("auprc", 2)],
)
def test_weights_are_repetitions(metric: str, classes: int) -> None:
    target = draws.integers(0, classes, SAMPLES)
    logits = np.round(draws.normal(size=(SAMPLES, classes)), 1).astype(np.float32)  # with ties
    logits[np.arange(SAMPLES), target] += 1
    weights = subject_weights(SUBJECTS, 20, 5)
    weights[0] = 1
    task = Classification(TaskConfig(), classes=[*"abcd"][:classes], class_counts=[1] * classes)
    found = weighted_metric(metric, logits, target, SUBJECT, weights)
    for row, value in zip(weights.astype(int), found, strict=True):
        chosen = np.repeat(np.arange(SAMPLES), row[SUBJECT])
        assert value == pytest.approx(task.metrics(logits[chosen], target[chosen])[metric], abs=1e-6)


def test_a_resample_with_one_class_has_no_ranking() -> None:
    logits, target = np.zeros((4, 2), np.float32), np.array([0, 0, 1, 1])
    weights = np.array([[2.0, 0.0], [1.0, 1.0]])
    found = weighted_metric("auroc", logits, target, np.array([0, 0, 1, 1]), weights)
    assert np.isnan(found[0])
    assert found[1] == 0.5


def test_every_resample_draws_as_many_subjects() -> None:
    weights = subject_weights(50, 400, 1)
    assert (weights.sum(1) == 50).all()
    assert weights.mean(0) == pytest.approx(np.ones(50), abs=0.25)
    assert np.array_equal(weights[:10], subject_weights(50, 10, 1))
    assert not np.array_equal(weights, subject_weights(50, 400, 2))


def test_people_are_resampled_not_windows() -> None:
    """25 people with 100 windows each, all right or all wrong: as good as 25 draws of a coin, not 2,500."""
    people, windows = 25, 100
    right = np.arange(people) < 15
    subject = np.repeat(np.arange(people), windows)
    target = np.zeros(len(subject), np.int64)
    logits = np.stack((right[subject], ~right[subject]), axis=1).astype(np.float32)
    values = weighted_metric("accuracy", logits, target, subject, subject_weights(people, 4000, 9))
    assert values.mean() == pytest.approx(0.6, abs=0.01)
    assert values.std() == pytest.approx(np.sqrt(0.6 * 0.4 / people), rel=0.05)
    low, high = interval(values)
    assert (low, high) == (pytest.approx(0.4, abs=0.041), pytest.approx(0.8, abs=0.041))
