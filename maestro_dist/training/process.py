"""Threads and memory of a worker process."""

from __future__ import annotations

from maestro_dist.config.schema import Config
from maestro_dist.system.memory import HUGE_PAGES, keep_freed_memory


def environment(config: Config) -> dict[str, str]:
    """Environment variables that must be set before torch is imported."""
    return HUGE_PAGES if config.run.device == "cpu" and config.run.allocator_cache != "none" else {}


def prepare_process(config: Config) -> None:
    """Set threads and memory of this process as configured. Call it before the model is built."""
    import torch

    torch.set_num_threads(config.run.cpus_per_worker)
    if config.run.device == "cpu" and config.run.allocator_cache != "none":
        keep_freed_memory(large=config.run.allocator_cache == "all")
