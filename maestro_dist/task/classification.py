"""Classification: cross-entropy with smoothing and class weights; accuracy, macro-F1, AUROC, AUPRC."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from maestro_dist.task.base import Task

if TYPE_CHECKING:
    from torch import Tensor

    from maestro_dist.config.learning import TaskConfig


_FEW = 64
"""Up to this number of classes the log-odds of each class are summed separately."""
_BLOCK = 1 << 22


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Logarithms of class probabilities, float64 [N, C]."""
    shifted = logits.astype(np.float64)
    shifted = shifted - shifted.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def _blocks(logits: np.ndarray) -> Iterator[slice]:
    """Slices of rows with a few million numbers each, to limit temporary memory."""
    rows = max(1, _BLOCK // logits.shape[1])
    return (slice(start, start + rows) for start in range(0, len(logits), rows))


def log_odds(logits: np.ndarray, columns: Sequence[int]) -> np.ndarray:
    """Log-odds of classes against all others, float64 [N, len(columns)]: ordered as probabilities, without saturation.

    Takes O(N C) time for any number of columns, and little more memory than the result.
    """
    odds = np.empty((len(logits), len(columns)), order="F")  # read column by column
    for rows in _blocks(logits):
        odds[rows] = _log_odds(logits[rows].astype(np.float64), columns)
    return odds


def _log_odds(values: np.ndarray, columns: Sequence[int]) -> np.ndarray:
    if values.shape[1] <= _FEW:  # separate sums keep the order of addition, and thus the last bit
        rest = [_log_sum(np.delete(values, column, axis=1)) for column in columns]
        return values[:, columns] - np.stack(rest, axis=1)
    rows, first = np.arange(len(values)), values.argmax(axis=1)
    top = values[rows, first]
    shares = np.exp(values - top[:, None])
    sums = np.zeros_like(values)  # sums of all columns before and after each column; no subtraction
    np.cumsum(shares[:, :-1], axis=1, out=sums[:, 1:])
    sums[:, :-1] += np.cumsum(shares[:, :0:-1], axis=1)[:, ::-1]
    with np.errstate(divide="ignore"):  # log(0) for a certain class; the top class is computed below
        odds = values - (top[:, None] + np.log(sums))
    others = values.copy()
    others[rows, first] = -np.inf
    odds[rows, first] = top - _log_sum(others)
    return odds[:, columns]


def _log_sum(values: np.ndarray) -> np.ndarray:
    """log(sum(exp(values))) of each row, float64 [N]."""
    top = values.max(axis=1)
    total: np.ndarray = top + np.log(np.exp(values - top[:, None]).sum(axis=1))
    return total


def auroc(positive: np.ndarray, score: np.ndarray) -> float:
    """Area under the ROC curve of `score` [N] for `positive` bool [N], which has both true and false entries.

    The same number as scikit-learn's `roc_auc_score`, bit for bit, without its input checks, which take most of the
    time for thousands of classes.
    """
    order = np.argsort(score)[::-1]
    ordered = score[order]
    last = np.append(np.flatnonzero(ordered[1:] != ordered[:-1]), len(order) - 1)  # equal scores make one threshold
    hits = np.cumsum(positive[order])[last]
    misses = 1 + last - hits
    corners = (np.diff(hits, 2) != 0) | (np.diff(misses, 2) != 0)  # points on a straight line are left out
    kept = np.concatenate(([True], corners, [True])) if len(last) > 2 else slice(None)
    true_positives, false_positives = np.append(0, hits[kept]), np.append(0, misses[kept])
    return float(np.trapezoid(true_positives / true_positives[-1], false_positives / false_positives[-1]))


def macro_f1(target: np.ndarray, predicted: np.ndarray, classes: int) -> float:
    """Mean F1 of the classes in targets or predictions, both int [N]; the same as scikit-learn's, bit for bit."""
    correct = np.bincount(target[target == predicted], minlength=classes)
    total = np.bincount(target, minlength=classes) + np.bincount(predicted, minlength=classes)
    occurs = total > 0
    return float((2.0 * correct[occurs] / total[occurs]).mean())


def balanced_weights(class_counts: Sequence[int]) -> list[float]:
    """Weight of each class, inverse to its frequency, with mean 1 over the samples; 1 for a class without samples."""
    total, occurring = sum(class_counts), sum(count > 0 for count in class_counts)
    return [total / (occurring * count) if count else 1.0 for count in class_counts]


class Classification(Task):
    """Predicts one of C classes for each sample."""

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

        A target may also be class probabilities, float32 [R, C]; these are weighted, but not smoothed.
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
        """auroc and auprc need samples of two classes."""
        return name not in ("auroc", "auprc") or sum(count > 0 for count in class_counts) > 1

    def metrics(self, logits: np.ndarray, target: np.ndarray) -> dict[str, float]:
        """Metrics of logits [N, C] against target int [N].

        accuracy; macro_f1 over the classes in targets or predictions; auroc: of class 1 (binary), or the mean over the
        occurring classes of one class against the others; auprc: average precision of class 1 (binary only); loss:
        mean cross-entropy without weights and smoothing.
        """
        predicted = logits.argmax(axis=1)
        result = {
            "accuracy": float((predicted == target).mean()),
            "macro_f1": macro_f1(target, predicted, self.outputs),
        }
        counts = np.bincount(target, minlength=self.outputs)
        columns = [1] if self.outputs == 2 else range(self.outputs)
        split = [c for c in columns if 0 < counts[c] < len(target)]
        if split:
            odds = log_odds(logits, split)
            areas = [auroc(target == c, odds[:, number]) for number, c in enumerate(split)]
            result["auroc"] = float(np.mean(areas))
            if self.outputs == 2:
                from sklearn.metrics import average_precision_score  # a second or two to import

                result["auprc"] = float(average_precision_score(target == 1, odds[:, 0]))
        log_probabilities = [
            log_softmax(logits[rows])[np.arange(len(target[rows])), target[rows]] for rows in _blocks(logits)
        ]
        result["loss"] = float(-np.concatenate(log_probabilities).mean())
        return result

    def confusion(self, logits: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Counts [C, C]: rows are the true classes, columns the predicted ones."""
        counts = np.zeros((self.outputs, self.outputs), dtype=np.int64)
        np.add.at(counts, (target.astype(np.int64), logits.argmax(axis=1)), 1)
        return counts

    def confused(self, logits: np.ndarray, target: np.ndarray) -> np.ndarray:
        """`confusion` as a list of the P pairs that occur, int64 [P, 3]: true class, predicted class, samples."""
        pairs = target.astype(np.int64) * self.outputs + logits.argmax(axis=1)
        numbers, samples = np.unique(pairs, return_counts=True)
        return np.stack([numbers // self.outputs, numbers % self.outputs, samples], axis=1)

    def predictions(self, logits: np.ndarray) -> np.ndarray:
        """Class probabilities, float64 [N, C]."""
        return np.exp(log_softmax(logits))
