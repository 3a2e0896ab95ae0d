"""Pre-training: predict the symbols of masked words. Cross-entropy, accuracy and perplexity of a symbol."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from maestro_dist.task.base import Task

if TYPE_CHECKING:
    from torch import Tensor

    from maestro_dist.types import Batch, Output


class Pretraining(Task):
    """Uses no labels. The model gives sums over the masked symbols of each sample (`Output.masked`), so C is 3."""

    kind = "pretrain"
    outputs = 3
    default_metric = "loss"
    metric_names = ("loss", "accuracy", "perplexity")

    def __init__(self) -> None:
        super().__init__(auxiliary=0.0)

    def loss(self, output: Output, batch: Batch) -> Tensor:
        """Mean cross-entropy of a sample's masked symbols, float32 [B]; 0 if there are none."""
        return self.sample_loss(output["masked"], batch.target)

    def rows(self, output: Output) -> Tensor:
        """The sums of each sample, [B, 3], so that all symbols of a split count equally."""
        return output["masked"]

    def sample_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """`loss` of sums [R, 3]."""
        return (logits[:, 0] / logits[:, 2].clamp(min=1.0)).float()

    def metrics(self, logits: np.ndarray, target: np.ndarray) -> dict[str, float]:
        """From sums [N, 3], over all masked symbols of the split: loss (nats), accuracy, perplexity (e^loss).

        Empty if there are no masked symbols.
        """
        nats, correct, count = logits.astype(np.float64).sum(axis=0).tolist()
        if not count:
            return {}
        return {"loss": nats / count, "accuracy": correct / count, "perplexity": math.exp(min(nats / count, 700.0))}

    def predictions(self, logits: np.ndarray) -> np.ndarray:
        """Mean cross-entropy (nats) of each sample's symbols, float64 [N]: how unusual the sample is for the model."""
        sums = logits.astype(np.float64)
        return sums[:, 0] / np.maximum(sums[:, 2], 1.0)
