"""The model in plain torch. Start reading with `reference`, then `maestro`; README.md has a map."""

from maestro_dist.model.context import Experts, ExpertsFactory, OneProcess, SequenceContext
from maestro_dist.model.estimate import count_parameters, tokens_per_sample
from maestro_dist.model.maestro import Maestro, Trunk
from maestro_dist.model.memory import MemoryEstimate, TrainingSetup, memory_estimate
from maestro_dist.model.pretrain import PretrainModel

__all__ = [
    "Experts",
    "ExpertsFactory",
    "Maestro",
    "MemoryEstimate",
    "OneProcess",
    "PretrainModel",
    "SequenceContext",
    "TrainingSetup",
    "Trunk",
    "count_parameters",
    "memory_estimate",
    "tokens_per_sample",
]
