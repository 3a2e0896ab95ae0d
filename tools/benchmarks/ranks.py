"""Functions on gloo ranks, one process each: `python -m benchmarks.ranks CASE RANK FOLDER`.

A case is `module:name`; `RANKS[name]` of that module is called on every rank with the same arguments and one thread,
inside a process group of all ranks. It returns JSON.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from benchmarks.common import python_path
from maestro_dist.system.memory import HUGE_PAGES

_COLLECTIVE_TIMEOUT = timedelta(minutes=30)
"""Ranks wait while one of them computes alone."""


def run_ranks(
    case: str, ranks: int, arguments: dict[str, Any], *, worker: bool = False, timeout_s: float = 3600
) -> list[Any]:
    """`RANKS[name](**arguments)` on `ranks` new processes; their results in rank order.

    `worker`: in the environment of a training worker. Raises `RuntimeError` with the last line of each rank that
    failed, and `TimeoutError`; it leaves no process behind. The rendezvous is a file, so no port is needed.
    """
    environment = {
        **os.environ,
        **(HUGE_PAGES if worker else {}),
        "PYTHONPATH": python_path(),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        folder = Path(name)
        (folder / "call.json").write_text(json.dumps({"ranks": ranks, "arguments": arguments}))
        processes = []
        try:
            for rank in range(ranks):
                with (folder / f"{rank}.log").open("wb") as log:
                    command = [sys.executable, "-m", "benchmarks.ranks", case, str(rank), name]
                    own = environment | {"LOCAL_RANK": str(rank)}  # DeepSpeed reads it
                    processes.append(subprocess.Popen(command, env=own, stdout=log, stderr=log))
            _wait(processes, case, folder, time.monotonic() + timeout_s)
        finally:
            for process in processes:
                process.kill()
                process.wait()
        return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(ranks)]


def _wait(processes: list[subprocess.Popen[bytes]], case: str, folder: Path, deadline: float) -> None:
    """Wait until all ranks have ended. Raises RuntimeError, TimeoutError."""
    while any(process.poll() is None for process in processes):
        if any(process.returncode for process in processes):
            break
        if time.monotonic() > deadline:
            raise TimeoutError(f"{case} on {len(processes)} ranks did not end in time")
        time.sleep(0.05)
    failed = [
        f"rank {rank}: {_last_line(folder, rank, process)}" for rank, process in enumerate(processes) if process.poll()
    ]
    if failed:
        raise RuntimeError(f"{case} on {len(processes)} ranks failed: {'; '.join(failed)}")


def _last_line(folder: Path, rank: int, process: subprocess.Popen[bytes]) -> str:
    if process.returncode == -signal.SIGKILL:
        return "killed, probably out of memory"
    lines = (folder / f"{rank}.log").read_text(errors="replace").strip().splitlines()
    return f"{lines[-1] if lines else 'no message'} (exit code {process.returncode})"


def main() -> None:
    """Run one rank."""
    import torch
    import torch.distributed as dist

    case, rank, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    call = json.loads((folder / "call.json").read_text())
    ranks = call["ranks"]
    torch.set_num_threads(1)
    module, name = case.split(":")
    function = importlib.import_module(f"benchmarks.{module}").RANKS[name]
    store = dist.FileStore(str(folder / "store"), ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=_COLLECTIVE_TIMEOUT)
    result = function(**call["arguments"])
    (folder / f"{rank}.json").write_text(json.dumps(result))
    # A rank that exits closes its connections, so all wait for all. Then they exit at once: gloo's threads may abort a
    # process during its normal shutdown.
    store.set(f"done {rank}", "")
    store.wait([f"done {other}" for other in range(ranks)], _COLLECTIVE_TIMEOUT)
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
