"""Tasks: what a model predicts, its loss and its metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from maestro_dist.errors import ConfigError
from maestro_dist.task.base import Task, higher_is_better
from maestro_dist.types import MULTILABEL

if TYPE_CHECKING:
    from maestro_dist.config.learning import TaskConfig
    from maestro_dist.types import TargetScale

__all__ = ["Labels", "Task", "higher_is_better", "make_task"]

_MOST_OVER_TIME = 24
"""Sets of more labels have no exact float32."""


@dataclass(frozen=True)
class Labels:
    """The labels of the data.

    kind                      classification, multilabel, regression, or none: there are no labels
    classes                   names of the classes (classification, multilabel)
    class_counts              samples of each class in the training split, of `samples`
    target_mean, target_std   of the training split's targets, in the target's unit (regression)
    targets                   of several targets each one's name, mean and deviation (regression)
    steps                     labels of a sample over time. Then labels are counted, not samples
    """

    kind: str
    classes: Sequence[str] = ()
    class_counts: Sequence[int] = ()
    samples: int = 0
    target_mean: float = 0.0
    target_std: float = 1.0
    targets: Sequence[TargetScale] = ()
    steps: int = 1


def make_task(config: TaskConfig, labels: Labels, *, consistency: float = 0.0) -> Task:
    """The task of the data, or pre-training, which needs no labels. `consistency` is `missing.consistency`.

    Raises:
        ConfigError: `task.kind` is another task, or the data has no labels.
    """
    kind = labels.kind
    if config.kind == "pretrain":
        from maestro_dist.task.pretraining import Pretraining

        return Pretraining()
    if kind == "none":
        raise ConfigError(
            "task.kind: the data has no labels; use task.kind=pretrain, then train on data that has some "
            "(run.init_from)"
        )
    if config.kind not in ("auto", kind):
        raise ConfigError(f"task.kind={config.kind}: the data is for {kind}; use task.kind=auto")
    task = _task_of_one(config, labels, consistency)
    if labels.steps == 1:
        return task
    from maestro_dist.task.over_time import OverTime

    if kind == MULTILABEL and len(labels.classes) > _MOST_OVER_TIME:
        raise ConfigError(
            f"data.window.label_every_s: {len(labels.classes)} labels at once over time are more than the "
            f"{_MOST_OVER_TIME} that are possible; leave it out, or pack fewer labels"
        )
    return OverTime(task, labels.steps, auxiliary=config.auxiliary, consistency=consistency)


def _task_of_one(config: TaskConfig, labels: Labels, consistency: float) -> Task:
    """The task of one label."""
    kind = labels.kind
    if labels.targets:
        from maestro_dist.task.several_targets import SeveralTargets

        return SeveralTargets(config, targets=labels.targets, consistency=consistency)
    if kind == "regression":
        from maestro_dist.task.regression import Regression

        return Regression(config, target_mean=labels.target_mean, target_std=labels.target_std, consistency=consistency)
    if kind == MULTILABEL:
        from maestro_dist.task.multilabel import MultiLabel

        counts, samples = labels.class_counts, labels.samples
        return MultiLabel(config, classes=labels.classes, class_counts=counts, samples=samples, consistency=consistency)
    from maestro_dist.task.classification import Classification

    return Classification(config, classes=labels.classes, class_counts=labels.class_counts, consistency=consistency)
