"""Labels over time: one prediction for each part of a window, with the loss and metrics of the task of one label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from maestro_dist.task.base import Task

if TYPE_CHECKING:
    from torch import Tensor


class OverTime(Task):
    """The task `inner` for each of S parts of a window.

    The outputs of a sample are those of its first part, then those of the next. The parts are rows for `inner`: the
    loss of a sample is the mean over its labelled parts, and metrics are those of all labelled parts of a split.
    A target is float32 [B, S] (of K targets [B, S K]), NaN where a part has no label.
    """

    def __init__(self, inner: Task, steps: int, *, auxiliary: float, consistency: float = 0.0) -> None:
        super().__init__(auxiliary=auxiliary, consistency=consistency)
        self.inner, self.steps, self.kind = inner, steps, inner.kind
        self.outputs, self.targets = steps * inner.outputs, steps * inner.targets
        self.default_metric, self.metric_names = inner.default_metric, inner.metric_names

    @property
    def label_steps(self) -> int:
        """S, the parts of a window that have a label each."""
        return self.steps

    def defined(self, name: str, class_counts: Sequence[int]) -> bool:
        """As that of one label; `class_counts` are of labels."""
        return self.inner.defined(name, class_counts)

    def sample_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Mean loss of the labelled parts; 0 without any. Logits [R, S C], targets [R, S K] -> float32 [R].

        Targets may also be predictions of teachers for every part: [R, S, C], or [R, S] of a regression.
        """
        import torch

        count = len(logits)
        rows = logits.reshape(count * self.steps, self.inner.outputs)
        if target.ndim == 3:
            return self.inner.sample_loss(rows, target.flatten(0, 1)).view(count, self.steps).mean(1)
        wanted = target.reshape(len(rows), self.inner.targets)
        known = (~wanted.isnan()).any(1)
        if self.inner.targets == 1:
            wanted = torch.where(known, wanted[:, 0], 0.0)
            wanted = wanted if self.kind == "regression" else wanted.long()
        # an unknown label is replaced before the loss and its loss after it: no gradient comes from it, nor a NaN
        loss = torch.where(known, self.inner.sample_loss(rows, wanted), 0.0).view(count, self.steps)
        return loss.sum(1) / known.view(count, self.steps).sum(1).clamp(min=1)

    def divergence(self, logits: Tensor, others: Tensor) -> Tensor:
        """Mean divergence of the parts. [R, S C] twice -> float32 [R]."""
        rows, other_rows = (one.reshape(-1, self.inner.outputs) for one in (logits, others))
        return self.inner.divergence(rows, other_rows).view(len(logits), self.steps).mean(1)

    def labelled(self, logits: np.ndarray, target: np.ndarray) -> tuple[Task, np.ndarray, np.ndarray]:
        """The task of one label, and the logits and targets of all labelled parts as its rows."""
        rows = logits.reshape(-1, self.inner.outputs)
        wanted = target.reshape(len(rows), self.inner.targets)
        known = ~np.isnan(wanted).all(axis=1)
        rows, wanted = rows[known], wanted[known]
        if self.inner.targets == 1:
            wanted = wanted[:, 0] if self.kind == "regression" else wanted[:, 0].astype(np.int64)
        return self.inner, rows, wanted

    def metrics(self, logits: np.ndarray, target: np.ndarray) -> dict[str, float]:
        """Metrics of all labelled parts: logits [N, S C], target [N, S K]."""
        inner, rows, wanted = self.labelled(logits, target)
        return inner.metrics(rows, wanted) if len(rows) else {}

    def predictions(self, logits: np.ndarray) -> np.ndarray:
        """Class probabilities [N, S, C], or values [N, S] or [N, S, K] in the unit of the target."""
        found = self.inner.predictions(logits.reshape(-1, self.inner.outputs))
        return found.reshape(len(logits), self.steps, *found.shape[1:])
