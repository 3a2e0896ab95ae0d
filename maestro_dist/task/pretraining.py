"""Pre-training: the symbols of hidden words. Cross-entropy, accuracy and perplexity of a symbol."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from maestro_dist.task.base import Task

if TYPE_CHECKING:
    from torch import Tensor

    from maestro_dist.types import Batch, Output


class Pretraining(Task):
    """No label is looked at. The model has summed up each sample's symbols (`Output.masked`); C is 3."""

    kind = "pretrain"
    outputs = 3
    default_metric = "loss"
    metric_names = ("loss", "accuracy", "perplexity")

    def __init__(self) -> None:
        super().__init__(auxiliary=0.0)

    def loss(self, output: Output, batch: Batch) -> Tensor:
        """Mean cross-entropy of a sample's symbols, float32 [B]; 0 where none was asked for."""
        return self.sample_loss(output["masked"], batch.target)

    def rows(self, output: Output) -> Tensor:
        """Each sample's sums [B, 3]: a split's symbols count alike, whichever sample they are of."""
        return output["masked"]

    def sample_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """`loss` of sums [R, 3]."""
        return (logits[:, 0] / logits[:, 2].clamp(min=1.0)).float()

    def metrics(self, logits: np.ndarray, target: np.ndarray) -> dict[str, float]:
        """Of sums [N, 3], over all symbols of the split: loss in nats a symbol, accuracy, perplexity (e^loss).

        Nothing where no symbol was asked for.
        """
        nats, right, count = logits.astype(np.float64).sum(axis=0).tolist()
        if not count:
            return {}
        return {"loss": nats / count, "accuracy": right / count, "perplexity": math.exp(min(nats / count, 700.0))}

    def predictions(self, logits: np.ndarray) -> np.ndarray:
        """Mean nats a symbol of each sample, float64 [N]: how unlike what the model knows it is."""
        sums = logits.astype(np.float64)
        return sums[:, 0] / np.maximum(sums[:, 2], 1.0)
