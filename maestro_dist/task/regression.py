"""Regression of one number: squared error of the scaled target; MAE and RMSE in the target's unit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from maestro_dist.task.base import Task

if TYPE_CHECKING:
    from torch import Tensor

    from maestro_dist.config.learning import TaskConfig


class Regression(Task):
    """Predicts one number for each sample. The model's output is (target - mean) / std of the training split."""

    kind = "regression"
    outputs = 1
    default_metric = "mae"
    metric_names = ("mae", "rmse", "loss")

    def __init__(
        self, config: TaskConfig, *, target_mean: float = 0.0, target_std: float = 1.0, consistency: float = 0.0
    ) -> None:
        super().__init__(auxiliary=config.auxiliary, consistency=consistency)
        self.mean = target_mean
        self.std = target_std if target_std > 0.0 else 1.0

    def sample_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Squared error in units of the target's standard deviation. Logits [R, 1], target [R] -> float32 [R]."""
        scaled = (target.float() - self.mean) / self.std
        return (logits.float().squeeze(1) - scaled).square()

    def divergence(self, logits: Tensor, others: Tensor) -> Tensor:
        """Squared difference in units of the target's standard deviation. [R, 1] twice -> float32 [R]."""
        return (logits.float() - others.float()).squeeze(1).square()

    def metrics(self, logits: np.ndarray, target: np.ndarray) -> dict[str, float]:
        """mae and rmse in the target's unit; loss: mean squared error in units of its standard deviation."""
        error = self.predictions(logits) - target.astype(np.float64)
        rmse = float(np.sqrt(np.square(error).mean()))
        return {"mae": float(np.abs(error).mean()), "rmse": rmse, "loss": (rmse / self.std) ** 2}

    def predictions(self, logits: np.ndarray) -> np.ndarray:
        """Values in the target's unit, float64 [N]."""
        return logits[:, 0].astype(np.float64) * self.std + self.mean
