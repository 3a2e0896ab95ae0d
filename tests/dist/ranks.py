"""Run a function on n gloo ranks (spawned processes), with a time limit and the first error of any rank."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

COLLECTIVE_TIMEOUT_S = 180


def run_ranks(function: Callable[..., Any], ranks: int, *args: Any, timeout_s: float = 400) -> list[Any]:
    """`function(rank, ranks, *args)` in `ranks` new processes; their results in rank order.

    The function must be importable by name; results must pickle (numpy and plain Python, not tensors). When a rank
    fails, the others are ended and its traceback is raised here. The rendezvous is a file: no port is taken.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        readers: list[Connection] = []
        processes = []
        for rank in range(ranks):
            reader, writer = context.Pipe(duplex=False)
            process = context.Process(target=_rank_main, args=(writer, store, function, rank, ranks, args), daemon=True)
            process.start()
            writer.close()
            readers.append(reader)
            processes.append(process)
        try:
            return _collect(readers, time.monotonic() + timeout_s)
        finally:
            for process in processes:
                process.join(timeout=2)
                if process.is_alive():
                    process.kill()
                    process.join()


def _collect(readers: list[Connection], deadline: float) -> list[Any]:
    results: dict[int, Any] = {}
    while len(results) < len(readers):
        waiting = [reader for rank, reader in enumerate(readers) if rank not in results]
        ready = wait(waiting, timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            raise TimeoutError(f"ranks {[r for r in range(len(readers)) if r not in results]} did not finish in time")
        for reader in ready:
            rank = readers.index(reader)  # type: ignore[arg-type]
            try:
                ok, value = reader.recv()  # type: ignore[union-attr]
            except EOFError:
                raise RuntimeError(f"rank {rank} died without a word") from None
            if not ok:
                raise RuntimeError(f"rank {rank} failed:\n{value}")
            results[rank] = value
    return [results[rank] for rank in range(len(readers))]


def _rank_main(
    writer: Connection, store: str, function: Callable[..., Any], rank: int, ranks: int, args: tuple[Any, ...]
) -> None:
    os.environ |= {"OMP_NUM_THREADS": "1", "LOCAL_RANK": str(rank), "GLOO_SOCKET_IFNAME": "lo"}
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo",
            store=dist.FileStore(store, ranks),
            rank=rank,
            world_size=ranks,
            timeout=timedelta(seconds=COLLECTIVE_TIMEOUT_S),
        )
        writer.send((True, function(rank, ranks, *args)))
    except BaseException:  # whatever it is, the parent must hear of it
        writer.send((False, traceback.format_exc()))
        os._exit(1)
