"""Throughput and memory."""

from __future__ import annotations

import os
import resource
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class Meter:
    """Rates over the steps since the last `read`."""

    def __init__(self) -> None:
        self._reset()

    def add(self, samples: int, seconds: float, data_s: float) -> None:
        """Count a step: samples of all ranks, duration in seconds, and the part of it spent waiting for data."""
        self._steps += 1
        self._samples += samples
        self._seconds += seconds
        self._data_s += data_s

    @property
    def data_s(self) -> float:
        """Seconds spent waiting for data."""
        return self._data_s

    def read(self, tokens: float, data_s: float) -> dict[str, float]:
        """Rates since the last `read`. `tokens`: of all ranks. `data_s`: mean seconds that a rank waited for data."""
        seconds = max(self._seconds, 1e-9)
        rates = {
            "system/samples_per_s": self._samples / seconds,
            "system/tokens_per_s": tokens / seconds,
            "system/data_wait": data_s / seconds,
            "system/step_s": seconds / max(self._steps, 1),
        }
        self._reset()
        return rates

    def _reset(self) -> None:
        self._steps = self._samples = 0
        self._seconds = self._data_s = 0.0


def memory_bytes(device: torch.device) -> int:
    """Bytes: peak memory of tensors on a CUDA device, or on a CPU the resident set of this process."""
    if device.type == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    with suppress(OSError):  # only on Linux, and if it is readable
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
