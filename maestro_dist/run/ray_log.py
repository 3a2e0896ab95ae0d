"""Log records of workers, shown by the driver: an actor keeps them, and a thread of the driver fetches them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_POLL_S = 0.3


class LogKeeper:
    """Keeps log records until the driver fetches them. An actor."""

    def __init__(self) -> None:
        self._lines: list[tuple[str, int, str]] = []

    def say(self, logger: str, level: int, text: str) -> None:
        """Keep a record."""
        self._lines.append((logger, level, text))

    def drain(self) -> list[tuple[str, int, str]]:
        """The records since the last call."""
        lines, self._lines = self._lines, []
        return lines


@contextmanager
def log_actor(kind: type[LogKeeper], *arguments: Any) -> Iterator[Any]:
    """Context with an actor of this kind on the driver's node; its records are logged as they arrive."""
    import ray
    import ray.util.scheduling_strategies

    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )
    remote: Any = ray.remote(kind)
    actor = remote.options(num_cpus=0, scheduling_strategy=here).remote(*arguments)  # lives as long as the driver
    done = threading.Event()

    def show() -> None:
        while True:
            last = done.wait(_POLL_S)
            try:
                for logger, level, text in ray.get(actor.drain.remote()):
                    logging.getLogger(logger).log(level, "%s", text)
            except ray.exceptions.RayError:
                return
            if last:
                return

    printer = threading.Thread(target=show, name="console", daemon=True)
    printer.start()
    try:
        yield actor
    finally:
        done.set()
        printer.join(timeout=10)
