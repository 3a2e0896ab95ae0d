"""Threads and memory of a worker process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from maestro_dist.config.schema import Config
from maestro_dist.system.memory import HUGE_PAGES, keep_freed_memory

if TYPE_CHECKING:
    pass


def environment(config: Config) -> dict[str, str]:
    """Environment variables that torch wants to find before it is imported."""
    return HUGE_PAGES if config.run.device == "cpu" and config.run.allocator_cache != "none" else {}


def prepare_process(config: Config) -> None:
    """Threads and memory of this process, as the configuration wants them; before the model is built."""
    import torch

    torch.set_num_threads(config.run.cpus_per_worker)
    if config.run.device == "cpu" and config.run.allocator_cache != "none":
        keep_freed_memory(large=config.run.allocator_cache == "all")
