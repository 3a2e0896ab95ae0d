"""Checkpoints: every rank writes the parameter slices that it owns; any number of ranks can read them."""

from __future__ import annotations

from maestro_dist.checkpoint.find import CheckpointInfo, best, complete_steps, find, newest
from maestro_dist.checkpoint.load import full_weights, restore
from maestro_dist.checkpoint.save import Saver

__all__ = ["CheckpointInfo", "Saver", "best", "complete_steps", "find", "full_weights", "newest", "restore"]
