"""Regression of several numbers: squared errors of the scaled targets; MAE and RMSE of each in its own unit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from maestro_dist.task.base import Task

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from maestro_dist.config.learning import TaskConfig
    from maestro_dist.types import TargetScale

_METRICS = ("mae", "rmse", "loss")


class SeveralTargets(Task):
    """Predicts K numbers for each sample. An output is (target - mean) / std of this target in the training split.

    A target that is unknown in a sample (NaN) takes no part in its loss, nor in metrics. Metrics are named by target
    (`mae.systolic`); `mae`, `rmse` and `loss` are means over the targets that are known anywhere in the split.
    """

    kind = "regression"
    default_metric = "mae"

    def __init__(self, config: TaskConfig, *, targets: Sequence[TargetScale], consistency: float = 0.0) -> None:
        super().__init__(auxiliary=config.auxiliary, consistency=consistency)
        self.target_names = tuple(target.name for target in targets)
        self.outputs = self.targets = len(targets)
        self.metric_names = (*_METRICS, *(f"{metric}.{name}" for metric in _METRICS for name in self.target_names))
        self._mean = np.array([target.mean for target in targets])
        self._std = np.array([target.std if target.std > 0.0 else 1.0 for target in targets])
        self._on_device: dict[torch.device, Tensor] = {}

    def _scale(self, device: torch.device) -> Tensor:
        """Means and deviations on the device, float32 [2, K]; copied once, because a copy waits for the device."""
        import torch

        if device not in self._on_device:
            self._on_device[device] = torch.from_numpy(np.stack([self._mean, self._std])).float().to(device)
        return self._on_device[device]

    def sample_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Mean over a sample's known targets of the squared error in standard deviations; 0 if none is known.

        Logits and targets [R, K] -> float32 [R].
        """
        import torch

        target = target.float()
        mean, std = self._scale(target.device)
        known = ~target.isnan()
        # the difference is masked before it is squared: the gradient of an unknown target is 0, not NaN
        error = torch.where(known, logits.float() - (torch.where(known, target, mean) - mean) / std, 0.0)
        return error.square().sum(1) / known.sum(1).clamp(min=1)

    def divergence(self, logits: Tensor, others: Tensor) -> Tensor:
        """Mean squared difference in standard deviations of the targets. [R, K] twice -> float32 [R]."""
        return (logits.float() - others.float()).square().mean(1)

    def metrics(self, logits: np.ndarray, target: np.ndarray) -> dict[str, float]:
        """mae and rmse in the unit of each target; loss: mean squared error in units of its standard deviation."""
        error = self.predictions(logits) - target.astype(np.float64)
        found: dict[str, float] = {}
        for column, name in enumerate(self.target_names):
            own = error[~np.isnan(error[:, column]), column]
            if len(own):
                rmse = float(np.sqrt(np.square(own).mean()))
                found[f"mae.{name}"], found[f"rmse.{name}"] = float(np.abs(own).mean()), rmse
                found[f"loss.{name}"] = (rmse / float(self._std[column])) ** 2
        for metric in _METRICS:
            values = [found[f"{metric}.{name}"] for name in self.target_names if f"{metric}.{name}" in found]
            if values:
                found[metric] = float(np.mean(values))
        return found

    def predictions(self, logits: np.ndarray) -> np.ndarray:
        """Values in the unit of each target, float64 [N, K]."""
        return logits.astype(np.float64) * self._std + self._mean
