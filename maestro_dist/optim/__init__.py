"""The optimizer, the moving average of the weights, and the schedules."""

from __future__ import annotations

from maestro_dist.optim.average import AVERAGE
from maestro_dist.optim.optimizer import build_optimizer
from maestro_dist.optim.schedule import learning_rate, momentum

__all__ = ["AVERAGE", "build_optimizer", "learning_rate", "momentum"]
