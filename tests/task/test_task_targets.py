"""The loss and the metrics of several targets, compared with slow and obvious computations."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from maestro_dist.config.learning import TaskConfig
from maestro_dist.config.schema import EvaluationConfig
from maestro_dist.errors import ConfigError, DataError
from maestro_dist.evaluation.result import Evaluation, Scenario
from maestro_dist.evaluation.table import metric_label
from maestro_dist.task import Labels, Task, higher_is_better, make_task
from maestro_dist.tracking.plots import validation_names
from maestro_dist.types import Batch, TargetScale

SCALES = (TargetScale("systolic", 120.0, 15.0), TargetScale("diastolic", 80.0, 10.0), TargetScale("flat", 5.0, 0.0))
NAN = float("nan")


def task(consistency: float = 0.0) -> Task:
    return make_task(TaskConfig(), Labels("regression", targets=SCALES), consistency=consistency)


def draw(samples: int = 50) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    target = rng.normal((120, 80, 5), (15, 10, 1), size=(samples, 3)).astype(np.float32)
    lacks = rng.random((samples, 3)) < 0.4
    lacks[np.arange(samples), rng.integers(0, 3, samples)] = False  # each has one at least
    target[lacks] = NAN
    return rng.normal(size=(samples, 3)).astype(np.float32), target


def test_loss_and_gradient_are_those_of_the_known_targets() -> None:
    logits, target = draw()
    given = torch.from_numpy(logits).requires_grad_()
    loss = task().sample_loss(given, torch.from_numpy(target))
    loss.sum().backward()
    assert given.grad is not None
    for row in range(len(logits)):
        errors = {}
        for column, scale in enumerate(SCALES):
            if not np.isnan(target[row, column]):
                errors[column] = logits[row, column] - (target[row, column] - scale.mean) / (scale.std or 1.0)
        assert loss[row].item() == pytest.approx(np.mean([error**2 for error in errors.values()]), rel=1e-4)
        for column in range(3):
            slope = 2 * errors[column] / len(errors) if column in errors else 0.0
            assert given.grad[row, column].item() == pytest.approx(slope, rel=1e-4, abs=1e-6)


def test_metrics_are_those_of_each_target_alone_and_their_means() -> None:
    logits, target = draw()
    found = task().metrics(logits, target.astype(np.float64))
    for column, scale in enumerate(SCALES):
        own = ~np.isnan(target[:, column])
        alone = make_task(TaskConfig(), Labels("regression", target_mean=scale.mean, target_std=scale.std))
        expected = alone.metrics(logits[own, column : column + 1], target[own, column])
        for name, value in expected.items():
            assert found[f"{name}.{scale.name}"] == pytest.approx(value, rel=1e-12)
    for name in ("mae", "rmse", "loss"):
        assert found[name] == pytest.approx(np.mean([found[f"{name}.{scale.name}"] for scale in SCALES]))
    assert set(found) == set(task().metric_names)
    assert task().metric("auto") == "mae"


def test_a_target_that_no_sample_knows_has_no_metric_and_is_not_in_the_mean() -> None:
    logits, target = draw()
    target[:, 1] = NAN
    found = task().metrics(logits, target)
    assert not [name for name in found if name.endswith("diastolic")]
    assert found["mae"] == pytest.approx((found["mae.systolic"] + found["mae.flat"]) / 2)
    one = task().metrics(logits[:1], np.array([[NAN, 81.0, NAN]]))
    assert set(one) == {"mae", "rmse", "loss", "mae.diastolic", "rmse.diastolic", "loss.diastolic"}
    assert task().metrics(logits[:1], np.full((1, 3), NAN)) == {}


def test_a_sample_of_which_nothing_is_known_has_no_loss_and_no_gradient() -> None:
    given = torch.ones(2, 3, requires_grad=True)
    loss = task().sample_loss(given, torch.tensor([[NAN, NAN, NAN], [1e30, NAN, 5.0]]))
    loss.sum().backward()
    assert loss[0].item() == 0.0
    assert given.grad is not None
    assert given.grad.isfinite().all()
    assert given.grad[0].tolist() == [0.0, 0.0, 0.0]
    assert task().sample_loss(torch.empty(0, 3), torch.empty(0, 3)).shape == (0,)


def test_mixed_targets_are_weighted_by_their_shares() -> None:
    logits, target = (torch.from_numpy(part) for part in draw(4))
    partner, mix = target.roll(1, 0), torch.tensor([0.1, 0.5, 0.9, 1.0])
    batch = Batch({}, {}, torch.ones(4, 1, dtype=torch.bool), torch.arange(4), target, partner_target=partner, mix=mix)
    loss = task().loss({"logits": logits}, batch)
    own, other = (task().sample_loss(logits, of) for of in (target, partner))
    torch.testing.assert_close(loss, mix * own + (1 - mix) * other)


def test_heads_of_modalities_and_teachers_see_all_targets() -> None:
    logits, target = (torch.from_numpy(part) for part in draw(4))
    heads, present = torch.randn(4, 2, 3), torch.tensor([[True, True], [True, False], [False, True], [True, True]])
    learner = make_task(TaskConfig(auxiliary=0.5), Labels("regression", targets=SCALES))
    batch = Batch({}, {}, present, torch.arange(4), target)
    found = learner.loss({"logits": logits, "modality_logits": heads}, batch)
    for row in range(4):
        own = learner.sample_loss(logits[row : row + 1], target[row : row + 1])
        each = [
            learner.sample_loss(heads[row : row + 1, m], target[row : row + 1]) for m in range(2) if present[row, m]
        ]
        torch.testing.assert_close(found[row : row + 1], own + 0.5 * torch.stack(each).mean(0))
    taught = torch.from_numpy(learner.predictions(logits.numpy())).float()
    learner.learn_from(taught, 0.25)
    shared = learner.loss({"logits": logits}, batch)
    torch.testing.assert_close(shared, 0.75 * learner.sample_loss(logits, target), rtol=1e-4, atol=1e-5)


def test_the_divergence_is_symmetric_and_zero_for_equal_predictions() -> None:
    one, other = torch.randn(5, 3), torch.randn(5, 3)
    torch.testing.assert_close(task().divergence(one, other), (one - other).square().mean(1))
    assert task().divergence(one, one).tolist() == [0.0] * 5


def test_errors_of_one_target_are_better_if_they_are_lower() -> None:
    assert not any(higher_is_better(name) for name in task().metric_names)
    with pytest.raises(ConfigError, match=r"has mae, rmse, loss, mae\.systolic"):
        task().metric("accuracy")
    assert task().metric("mae.diastolic") == "mae.diastolic"
    assert metric_label("rmse.diastolic") == "RMSE of diastolic"


def test_a_target_that_no_sample_of_a_validation_knows_has_no_score() -> None:
    logits, target = draw()
    target[:, 2] = NAN
    of = task()
    found = Evaluation("validation", len(target), list(of.metric_names), [Scenario(0.0, 0, of.metrics(logits, target))])
    assert found.score("mae.diastolic") == of.metrics(logits, target)["mae.diastolic"]
    with pytest.raises(DataError, match=r"mae\.flat is undefined on split 'validation' \(no sample has a known flat\)"):
        found.score("mae.flat")


@pytest.mark.parametrize("metric", ["mae.", "mae.9", "accuracy.systolic", "mae.a b", "perplexity.x", "mae.a.b"])
def test_what_is_no_metric_of_a_target_is_refused(metric: str) -> None:
    with pytest.raises(ValueError, match="metric"):
        EvaluationConfig.model_validate({"metric": metric})
    assert EvaluationConfig.model_validate({"metric": "rmse.A-b_1"}).metric == "rmse.A-b_1"


def test_lines_of_a_target_are_not_those_of_another() -> None:
    names = ["validation/mae.x", "validation/mae.x_missing_40", "validation/mae.x_missing_y", "validation/mae.xy"]
    history = {name: (np.zeros(1), np.zeros(1)) for name in names}
    assert validation_names(history, "mae.x") == names[:2]
