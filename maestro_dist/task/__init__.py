"""Tasks: what is predicted, its loss and its metrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from maestro_dist.errors import ConfigError
from maestro_dist.task.base import Task, higher_is_better

if TYPE_CHECKING:
    from maestro_dist.config.learning import TaskConfig

__all__ = ["Task", "higher_is_better", "make_task"]


def make_task(
    config: TaskConfig,
    *,
    kind: str,
    classes: Sequence[str] = (),
    class_counts: Sequence[int] = (),
    target_mean: float = 0.0,
    target_std: float = 1.0,
    consistency: float = 0.0,
) -> Task:
    """The task that the data is for.

    `kind` (none: no labels), `classes` and the training split's `class_counts` are the manifest's; `target_mean` and
    `target_std` are those of the training split's targets (regression); `consistency` is `missing.consistency`.
    Pre-training asks for none of them. Raises ConfigError where `task.kind` asks for another task.
    """
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
    if kind == "regression":
        from maestro_dist.task.regression import Regression

        return Regression(config, target_mean=target_mean, target_std=target_std, consistency=consistency)
    from maestro_dist.task.classification import Classification

    return Classification(config, classes=classes, class_counts=class_counts, consistency=consistency)
