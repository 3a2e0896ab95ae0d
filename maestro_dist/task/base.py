"""What a task is: outputs, a loss per sample, metrics of a whole split."""

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
    """Whether a larger value of the metric `name` is the better one."""
    return name not in LOWER_IS_BETTER


class Task(ABC):
    """Turns logits into a loss, into metrics and into answers.

    outputs         C, the number of logits a sample (of `rows`)
    default_metric  the metric that `evaluation.metric: auto` stands for
    metric_names    every metric that `metrics` can return, in the order of tables
    """

    kind: str
    outputs: int
    default_metric: str
    metric_names: tuple[str, ...]

    def __init__(self, *, auxiliary: float, consistency: float = 0.0) -> None:
        self._auxiliary = auxiliary
        self._consistency = consistency
        self._answers: Tensor | None = None
        self._share = 0.0

    def learn_from(self, answers: Tensor, share: float) -> None:
        """From now on the loss is, by `share`, against these answers for the training samples instead of the labels.

        `answers` float32 [N, C], class probabilities, or [N], values in the target's unit; in manifest order.
        """
        self._answers, self._share = answers, share

    def loss(self, output: Output, batch: Batch) -> Tensor:
        """Loss of each sample, float32 [B].

        It is that of `logits`, plus `task.auxiliary` times the mean loss of the modalities' own heads where the model
        has such heads. Modalities that are absent, or of which nothing was observed, do not count in that mean. The
        loss of a mixture is the loss on its own target and that on its partner's, by their shares. Where the task
        learns from answers (`learn_from`), it is the loss on these and that on the targets, by their shares.

        Where a batch has two views of each sample, [B] counts each once: it is the mean of both views' losses, plus
        `missing.consistency` times the divergence of the dropped view's prediction from the whole one's, which is
        taken as given.
        """
        loss = self._loss_on(batch.target, output, batch)
        if self._answers is not None:
            self._answers = self._answers.to(batch.sample.device)
            answered = self._loss_on(self._answers[batch.sample], output, batch)
            loss = (1.0 - self._share) * loss + self._share * answered
        if batch.mix is not None and batch.partner_target is not None:
            loss = batch.mix * loss + (1.0 - batch.mix) * self._loss_on(batch.partner_target, output, batch)
        if batch.views == 1:
            return loss
        samples, logits = batch.samples, output["logits"]
        apart = self.divergence(logits[:samples].detach(), logits[samples:])
        return (loss[:samples] + loss[samples:]) / 2 + self._consistency * apart

    def _loss_on(self, target: Tensor, output: Output, batch: Batch) -> Tensor:
        logits = output["logits"]
        loss = self.sample_loss(logits, target)
        heads = output.get("modality_logits")
        if heads is None or self._auxiliary == 0.0:
            return loss
        samples, modalities, _ = heads.shape
        each = self.sample_loss(heads.flatten(0, 1), target.repeat_interleave(modalities, 0)).view(samples, modalities)
        # A modality of which nothing was observed (an augmentation may hide all of it) has no say, as an absent one.
        present = output.get("observed", batch.present).to(device=each.device, dtype=each.dtype)
        return loss + self._auxiliary * (each * present).sum(1) / present.sum(1).clamp(min=1.0)

    def rows(self, output: Output) -> Tensor:
        """What metrics are computed from, [B, C]: the logits."""
        return output["logits"]

    def metric(self, name: str) -> str:
        """The metric that `evaluation.metric` names for this task. Raises ConfigError where the task has none such."""
        if name == "auto":
            return self.default_metric
        if name not in self.metric_names:
            known = ", ".join(self.metric_names)
            raise ConfigError(f"evaluation.metric={name}: this {self.kind} task has {known}")
        return name

    def defined(self, name: str, class_counts: Sequence[int]) -> bool:
        """Whether the metric `name` can be computed on a split with so many samples of each class (none given: the
        task has no classes)."""
        return True

    @abstractmethod
    def sample_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Loss of each row: logits [R, C] and target [R], or answers as `learn_from` takes them -> float32 [R]."""

    def divergence(self, logits: Tensor, others: Tensor) -> Tensor:
        """How far the predictions of `others` [R, C] are from those of `logits` [R, C]; float32 [R], 0 where equal.

        Raises ConfigError where the task predicts nothing that could be compared.
        """
        raise ConfigError(f"missing.consistency: a {self.kind} task has no predictions to compare; use 0")

    @abstractmethod
    def metrics(self, logits: np.ndarray, target: np.ndarray) -> dict[str, float]:
        """Metrics of a whole split: logits [N, C], target [N], N >= 1. What is undefined there is left out."""

    @abstractmethod
    def predictions(self, logits: np.ndarray) -> np.ndarray:
        """Answers for people: class probabilities [N, C], or values [N] in the target's unit."""
