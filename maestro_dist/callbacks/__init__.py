"""Optional behaviour of a run, each in a small class that the training loop calls at fixed moments."""

from maestro_dist.callbacks.base import Callback, Callbacks, State, StepRecord

__all__ = ["Callback", "Callbacks", "State", "StepRecord"]
