"""Evaluation of a split over all ranks, with all modalities and with modalities missing."""

from maestro_dist.evaluation.predictions import Predictions
from maestro_dist.evaluation.result import Evaluation, Scenario
from maestro_dist.evaluation.split import EvaluationData, EvaluationPlan, evaluate_split

__all__ = ["Evaluation", "EvaluationData", "EvaluationPlan", "Predictions", "Scenario", "evaluate_split"]
