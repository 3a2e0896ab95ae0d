"""Classification: cross-entropy with smoothing and class weights; accuracy, macro-F1, AUROC, AUPRC."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from maestro_dist.task.base import Task

if TYPE_CHECKING:
    from torch import Tensor

    from maestro_dist.config.learning import TaskConfig


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Logarithms of class probabilities, float64 [N, C]."""
    shifted = logits.astype(np.float64)
    shifted = shifted - shifted.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def log_odds(logits: np.ndarray, column: int) -> np.ndarray:
    """Log-odds of one class against the rest, float64 [N]: in the order of its probability, but never saturated."""
    others = np.delete(logits.astype(np.float64), column, axis=1)
    top = others.max(axis=1)
    return logits[:, column] - (top + np.log(np.exp(others - top[:, None]).sum(axis=1)))


def balanced_weights(class_counts: Sequence[int]) -> list[float]:
    """Weight of each class, inverse to its frequency, with mean 1 over the samples counted.

    A class without samples gets 1: it never occurs in training.
    """
    total, occurring = sum(class_counts), sum(count > 0 for count in class_counts)
    return [total / (occurring * count) if count else 1.0 for count in class_counts]


class Classification(Task):
    """One class out of C for each sample."""

    kind = "classification"
    default_metric = "accuracy"

    def __init__(
        self, config: TaskConfig, *, classes: Sequence[str], class_counts: Sequence[int], consistency: float = 0.0
    ) -> None:
        super().__init__(auxiliary=config.auxiliary, consistency=consistency)
        self.classes = list(classes)
        self.outputs = len(self.classes)
        self.metric_names = ("accuracy", "macro_f1", "auroc", *(["auprc"] if self.outputs == 2 else []), "loss")
        self._smoothing = config.label_smoothing
        self._weights = balanced_weights(class_counts) if config.class_weights == "balanced" else None
        self._weights_on: dict[str, Tensor] = {}

    def sample_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy of each row, times the weight of its class. Logits [R, C], target int64 [R] -> float32 [R].

        A target may be class probabilities, float32 [R, C]: they are not smoothed, and each class has its weight.
        """
        import torch
        from torch.nn import functional as F

        weights = None
        if self._weights is not None:
            device = str(logits.device)
            if device not in self._weights_on:
                self._weights_on[device] = torch.tensor(self._weights, dtype=torch.float32, device=logits.device)
            weights = self._weights_on[device]
        if target.is_floating_point():
            return F.cross_entropy(logits.float(), target, weight=weights, reduction="none")
        loss = F.cross_entropy(logits.float(), target, reduction="none", label_smoothing=self._smoothing)
        return loss if weights is None else loss * weights[target]

    def divergence(self, logits: Tensor, others: Tensor) -> Tensor:
        """Kullback-Leibler divergence of the class probabilities, in nats. [R, C] twice -> float32 [R]."""
        from torch.nn import functional as F

        one, other = F.log_softmax(logits.float(), dim=1), F.log_softmax(others.float(), dim=1)
        return (one.exp() * (one - other)).sum(1)

    def defined(self, name: str, class_counts: Sequence[int]) -> bool:
        """The areas under curves need samples of two classes."""
        return name not in ("auroc", "auprc") or sum(count > 0 for count in class_counts) > 1

    def metrics(self, logits: np.ndarray, target: np.ndarray) -> dict[str, float]:
        """Metrics of logits [N, C] against target int [N].

        accuracy; macro_f1 over the classes that occur in targets or predictions; auroc: binary, or the mean of one
        class against the rest over the classes that occur; auprc: average precision of class 1 (binary only);
        loss: plain mean cross-entropy.
        """
        from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

        predicted = logits.argmax(axis=1)
        result = {
            "accuracy": float((predicted == target).mean()),
            "macro_f1": float(f1_score(target, predicted, average="macro", zero_division=0)),
        }
        columns = [1] if self.outputs == 2 else range(self.outputs)
        split = [c for c in columns if 0 < np.count_nonzero(target == c) < len(target)]
        if split:
            result["auroc"] = float(np.mean([roc_auc_score(target == c, log_odds(logits, c)) for c in split]))
        if self.outputs == 2 and split:
            result["auprc"] = float(average_precision_score(target == 1, log_odds(logits, 1)))
        result["loss"] = float(-log_softmax(logits)[np.arange(len(target)), target].mean())
        return result

    def confusion(self, logits: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Counts [C, C]: rows are the true classes, columns the predicted ones."""
        counts = np.zeros((self.outputs, self.outputs), dtype=np.int64)
        np.add.at(counts, (target.astype(np.int64), logits.argmax(axis=1)), 1)
        return counts

    def predictions(self, logits: np.ndarray) -> np.ndarray:
        """Class probabilities, float64 [N, C]."""
        return np.exp(log_softmax(logits))
