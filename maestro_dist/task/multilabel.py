"""Several labels at once: binary cross-entropy of each label; AUROC, AUPRC and F1, averaged over the labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from maestro_dist.task.base import Task
from maestro_dist.task.classification import auroc
from maestro_dist.types import MULTILABEL, label_bits

if TYPE_CHECKING:
    from torch import Tensor

    from maestro_dist.config.learning import TaskConfig


class MultiLabel(Task):
    """Predicts for each of C labels whether a sample has it. A target is a set of labels as `label_sets` stores it."""

    kind = MULTILABEL
    default_metric = "auroc"
    metric_names = ("auroc", "auprc", "macro_f1", "accuracy", "loss")

    def __init__(
        self,
        config: TaskConfig,
        *,
        classes: Sequence[str],
        class_counts: Sequence[int],
        samples: int = 0,
        consistency: float = 0.0,
    ) -> None:
        """`class_counts`: training samples that have each label, of `samples`."""
        super().__init__(auxiliary=config.auxiliary, consistency=consistency)
        self.classes = list(classes)
        self.outputs = len(self.classes)
        self._smoothing = config.label_smoothing
        self._weights: tuple[list[float], list[float]] | None = None
        if config.class_weights == "balanced":
            shares = [count / max(samples, 1) for count in class_counts]
            inside = [0.0 < share < 1.0 for share in shares]
            having = [0.5 / share if known else 1.0 for share, known in zip(shares, inside, strict=True)]
            lacking = [0.5 / (1 - share) if known else 1.0 for share, known in zip(shares, inside, strict=True)]
            self._weights = having, lacking

    def sample_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Mean binary cross-entropy over the labels. Logits [R, C], sets int64 [R] -> float32 [R].

        With `class_weights: balanced` having a label and lacking it count equally, over the training split. A target
        may also be probabilities, float32 [R, C]; these are not smoothed.
        """
        import torch
        from torch.nn import functional as F

        wanted = target if target.is_floating_point() else self._bits(target)
        if not target.is_floating_point() and self._smoothing:
            wanted = wanted * (1.0 - self._smoothing) + self._smoothing / 2
        weight = None
        if self._weights is not None:
            having, lacking = (torch.tensor(w, dtype=torch.float32, device=logits.device) for w in self._weights)
            weight = wanted * having + (1.0 - wanted) * lacking
        return F.binary_cross_entropy_with_logits(logits.float(), wanted, weight=weight, reduction="none").mean(1)

    def _bits(self, target: Tensor) -> Tensor:
        import torch

        places = torch.arange(self.outputs, device=target.device)
        return ((target[:, None] >> places) & 1).float()

    def divergence(self, logits: Tensor, others: Tensor) -> Tensor:
        """Kullback-Leibler divergence of the probabilities, in nats, mean over the labels. [R, C] twice -> [R]."""
        from torch.nn import functional as F

        one, other = logits.float(), others.float()
        having = one.sigmoid() * (F.logsigmoid(one) - F.logsigmoid(other))
        lacking = (-one).sigmoid() * (F.logsigmoid(-one) - F.logsigmoid(-other))
        return (having + lacking).mean(1)

    def defined(self, name: str, class_counts: Sequence[int]) -> bool:
        """auroc and auprc need a label that some samples have (that others lack it is not known here)."""
        return name not in ("auroc", "auprc") or any(class_counts)

    def metrics(self, logits: np.ndarray, target: np.ndarray) -> dict[str, float]:
        """Metrics of logits [N, C] against sets int [N].

        auroc, auprc (average precision): means over the labels that some samples have and others lack; macro_f1: mean
        over the labels that occur in targets or predictions (probability above 1/2); accuracy: share of right answers
        over samples and labels; loss: mean binary cross-entropy without weights and smoothing.
        """
        from sklearn.metrics import average_precision_score  # a second or two to import

        truth, scores = label_bits(target, self.outputs), logits.astype(np.float64)
        predicted = scores > 0
        result = {}
        split = [c for c in range(self.outputs) if 0 < truth[:, c].sum() < len(truth)]
        if split:
            result["auroc"] = float(np.mean([auroc(truth[:, c], scores[:, c]) for c in split]))
            areas = [average_precision_score(truth[:, c], scores[:, c]) for c in split]
            result["auprc"] = float(np.mean(areas))
        both = (truth & predicted).sum(0)
        total = truth.sum(0) + predicted.sum(0)
        if total.any():
            result["macro_f1"] = float((2.0 * both[total > 0] / total[total > 0]).mean())
        result["accuracy"] = float((truth == predicted).mean())
        signed = np.where(truth, scores, -scores)
        result["loss"] = float(np.logaddexp(0.0, -signed).mean())
        return result

    def predictions(self, logits: np.ndarray) -> np.ndarray:
        """The probability of each label, float64 [N, C]."""
        values = logits.astype(np.float64)
        return np.exp(-np.logaddexp(0.0, -values))
