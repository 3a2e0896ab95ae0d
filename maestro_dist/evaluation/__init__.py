"""Evaluation of a split over all ranks, complete and with modalities missing."""

from maestro_dist.evaluation.predictions import Predictions
from maestro_dist.evaluation.result import Evaluation, Scenario
from maestro_dist.evaluation.split import evaluate_split

__all__ = ["Evaluation", "Predictions", "Scenario", "evaluate_split"]
