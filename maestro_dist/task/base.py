"""The base class of tasks: outputs, a loss per sample, metrics of a complete split."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from maestro_dist.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from maestro_dist.types import Batch, Output

LOWER_IS_BETTER = frozenset({"loss", "mae", "rmse", "perplexity"})


def higher_is_better(name: str) -> bool:
    """Whether larger values of the metric `name` are better. That of one target is `mae.systolic`, say."""
    return name.partition(".")[0] not in LOWER_IS_BETTER


class Task(ABC):
    """Computes loss, metrics and predictions from logits.

    outputs         C, the number of logits (of `rows`) for each sample
    default_metric  the metric for `evaluation.metric: auto`
    targets         numbers of a sample's target: K of several targets, else 1; as often as there are labels over time
    metric_names    every metric that `metrics` can return, in the order of tables
    """

    kind: str
    outputs: int
    targets: int = 1
    default_metric: str
    metric_names: tuple[str, ...]

    def __init__(self, *, auxiliary: float, consistency: float = 0.0) -> None:
        self._auxiliary = auxiliary
        self._consistency = consistency
        self._teacher_predictions: Tensor | None = None
        self._share = 0.0

    def learn_from(self, predictions: Tensor, share: float) -> None:
        """From now on the loss is `share` x loss on these predictions + (1 - `share`) x loss on the labels.

        `predictions`, of all training samples in manifest order: class probabilities float32 [N, C], or values [N] (of
        several targets [N, K]) in the target's unit; over time as `predictions` returns them.
        """
        self._teacher_predictions, self._share = predictions, share

    def loss(self, output: Output, batch: Batch) -> Tensor:
        """Loss of each sample, float32 [B].

        The loss of `logits`, plus, if modalities have their own heads, `task.auxiliary` times the mean loss of
        these heads. Modalities without any observed step do not count in this mean. With mixup the loss is the sum of
        the losses on both targets, weighted by their shares. After `learn_from` it is the weighted sum of the loss on
        the teachers' predictions and the loss on the targets.

        If a batch has two views of each sample, B counts each sample once. The loss is then the mean of both views,
        plus `missing.consistency` times the divergence of the dropped view's prediction from the complete view's. No
        gradient flows into the complete view through this term.
        """
        loss = self._loss_on(batch.target, output, batch)
        if self._teacher_predictions is not None:
            self._teacher_predictions = self._teacher_predictions.to(batch.sample.device)
            teacher_loss = self._loss_on(self._teacher_predictions[batch.sample], output, batch)
            loss = (1.0 - self._share) * loss + self._share * teacher_loss
        if batch.mix is not None and batch.partner_target is not None:
            loss = batch.mix * loss + (1.0 - batch.mix) * self._loss_on(batch.partner_target, output, batch)
        if batch.views == 1:
            return loss
        samples, logits = batch.samples, output["logits"]
        divergence = self.divergence(logits[:samples].detach(), logits[samples:])
        return (loss[:samples] + loss[samples:]) / 2 + self._consistency * divergence

    def _loss_on(self, target: Tensor, output: Output, batch: Batch) -> Tensor:
        logits = output["logits"]
        loss = self.sample_loss(logits, target)
        heads = output.get("modality_logits")
        if heads is None or self._auxiliary == 0.0:
            return loss
        samples, modalities, _ = heads.shape
        head_losses = self.sample_loss(heads.flatten(0, 1), target.repeat_interleave(modalities, 0)).view(
            samples, modalities
        )
        # A modality without observed steps (an augmentation may hide all of them) counts as absent.
        present = output.get("observed", batch.present).to(device=head_losses.device, dtype=head_losses.dtype)
        return loss + self._auxiliary * (head_losses * present).sum(1) / present.sum(1).clamp(min=1.0)

    def rows(self, output: Output) -> Tensor:
        """The rows [B, C] from which metrics are computed: the logits."""
        return output["logits"]

    @property
    def label_steps(self) -> int:
        """Labels of a sample over time; 1: it has one label."""
        return 1

    def labelled(self, logits: np.ndarray, target: np.ndarray) -> tuple[Task, np.ndarray, np.ndarray]:
        """The task of one label with the logits and targets of all labels of a split: of each part over time."""
        return self, logits, target

    def metric(self, name: str) -> str:
        """The metric that `evaluation.metric` names. Raises ConfigError if the task does not have it."""
        if name == "auto":
            return self.default_metric
        if name not in self.metric_names:
            known = ", ".join(self.metric_names)
            raise ConfigError(f"evaluation.metric={name}: this {self.kind} task has {known}")
        return name

    def defined(self, name: str, class_counts: Sequence[int]) -> bool:
        """Whether the metric `name` can be computed on a split with these class counts (empty without classes)."""
        return True

    @abstractmethod
    def sample_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Loss of each row, float32 [R]: logits [R, C]; targets [R] (or [R, K]), or predictions as in `learn_from`."""

    def divergence(self, logits: Tensor, others: Tensor) -> Tensor:
        """Divergence of the predictions from `others` and from `logits`, both [R, C]; float32 [R], 0 if equal.

        Raises ConfigError if the task has no predictions to compare.
        """
        raise ConfigError(f"missing.consistency: a {self.kind} task has no predictions to compare; use 0")

    @abstractmethod
    def metrics(self, logits: np.ndarray, target: np.ndarray) -> dict[str, float]:
        """Metrics of a complete split: logits [N, C], target [N] or [N, K], N >= 1. Undefined ones are left out."""

    @abstractmethod
    def predictions(self, logits: np.ndarray) -> np.ndarray:
        """Predictions for users: class probabilities [N, C], or values [N] or [N, K] in the unit of the target."""
