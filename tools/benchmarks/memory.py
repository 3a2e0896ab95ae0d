"""Peak memory or time of a step in its own process: `python -m benchmarks.memory CASE SIZE DEVICE [time | worker]`.

Time is measured here where a step is too large to take turns with others. A case is `module:name`; `module` is a
benchmark, whose `MEMORY[name]` takes (size, device) and returns the step. The step runs three times, so that the
optimizer's moments exist. On a CPU the peak is that of the resident set, minus its size after a first small
computation of torch; on a GPU it is what torch allocated. The C library's allocator has its default settings (gaps
between arrays that it keeps would be counted), except with `worker`: then those of a training worker.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import python_path
from maestro_dist.system.memory import HUGE_PAGES, keep_freed_memory


def peak_memory(case: str, size: int, device: str, *, threads: int = 1, worker: bool = False) -> int:
    """Bytes at the peak of `case` on `size`, measured in a new process. Raises `RuntimeError` when that fails.

    `worker`: with the allocator's settings of a training worker.
    """
    return int(_alone(case, size, device, threads, *(["worker"] if worker else []))["bytes"])


def time_alone(case: str, size: int, device: str, *, threads: int = 1) -> float:
    """Least seconds of `case` on `size` in a new process that keeps freed memory: CPU time, on a GPU wall time."""
    return float(_alone(case, size, device, threads, "time")["seconds"])


def _alone(case: str, size: int, device: str, threads: int, *more: str) -> dict[str, Any]:
    pages = HUGE_PAGES if "worker" in more else {}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", case, str(size), device, *more],
        env={
            **os.environ,
            **pages,
            "PYTHONPATH": python_path(),
            "OMP_NUM_THREADS": str(threads),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or ["killed, probably out of memory"]
        raise RuntimeError(f"{case} on {size} failed with exit code {done.returncode}: {reason[0]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> int:
    """Measure the case named on the command line and print it as JSON."""
    case, size, device = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    module, name = case.split(":")
    build = importlib.import_module(f"benchmarks.{module}").MEMORY[name]
    if sys.argv[4:] == ["time"]:
        print(json.dumps({"case": case, "size": size, "seconds": _least(build, size, device)}))
        return 0
    if sys.argv[4:] == ["worker"] and device == "cpu":
        keep_freed_memory()
    _warm_up(device)
    before = _used(device)
    step = build(size, device)
    for _ in range(3):
        step()
    print(json.dumps({"case": case, "size": size, "bytes": _peak(device) - before}))
    return 0


def _least(build: Callable[[int, str], Callable[[], object]], size: int, device: str) -> float:
    if device == "cpu":
        keep_freed_memory(large=True)
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    step, seconds = build(size, device), []
    clock = time.process_time if device == "cpu" else time.perf_counter
    for _ in range(4):  # the first two meet pages that are new
        start = clock()
        step()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(clock() - start)
    return min(seconds)


def _warm_up(device: str) -> None:
    """Make torch load what it loads at its first computation: libraries, threads, the context of the GPU."""
    layer = torch.nn.Linear(8, 8, device=device)
    torch.nn.functional.gelu(layer(torch.randn(4, 8, device=device))).sum().backward()
    torch.optim.AdamW(layer.parameters(), fused=True).step()


def _used(device: str) -> int:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    return process_memory("VmRSS")


def _peak(device: str) -> int:
    return torch.cuda.max_memory_allocated() if device == "cuda" else process_memory("VmHWM")


def process_memory(name: str) -> int:
    """A value of /proc/self/status in bytes; without that file, the peak that the system reports."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    sys.exit(main())
