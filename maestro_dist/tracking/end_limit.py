"""One limit for all waiting for tracking at the end of a run."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from maestro_dist.tracking.client import ENVIRONMENT

T = TypeVar("T")

LIMIT_VARIABLE = "MAESTRO_TRACKING_LIMIT_S"
_LIMIT_S = 30.0
_BYTES_PER_S = 10e6  # what a server should take in of a large model
_TIMEOUT, _RETRIES = "MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES"


def limit_s() -> float:
    """Seconds for tracking at the end of a run, from MAESTRO_TRACKING_LIMIT_S; 30 if it is unset or no number."""
    try:
        return max(0.0, float(os.environ.get(LIMIT_VARIABLE, _LIMIT_S)))
    except ValueError:
        return _LIMIT_S


class EndLimit:
    """The seconds that a process may still wait for a tracking server. Only time inside `run` and `join` counts.

    A database in a file (SQLite) is no server and has no limit: the time that it takes is that of this machine.
    """

    def __init__(self, uri: str, seconds: float) -> None:
        self._local = uri.startswith(("sqlite:", "file:")) or "://" not in uri
        self._left_s = seconds

    @property
    def left_s(self) -> float:
        """Seconds that are left."""
        return max(0.0, self._left_s)

    def end(self) -> None:
        """Nothing is left: the server does not answer."""
        self._left_s = 0.0

    def allow_bytes(self, size: int) -> None:
        """Add the time in which a server takes in a large file: a second for each 10 MB."""
        self._left_s += size / _BYTES_PER_S

    def run(self, what: str, work: Callable[[], T]) -> T:
        """Return `work()`, which runs in a thread. Its error is raised here.

        Raises TimeoutError, which names `what`, when the time is over. Requests to MLflow that the thread makes after
        that fail at once, so that it ends with the request that it waits for.
        """
        if self._local:
            return work()
        outcome: list[T] = []
        failure: list[BaseException] = []

        def call() -> None:
            try:
                outcome.append(work())
            except BaseException as error:  # raised again by the caller
                failure.append(error)

        thread = threading.Thread(target=call, name="end of tracking", daemon=True)
        grace = min(4.0, self.left_s / 4)
        with _requests(retries=1, timeout_s=max(1, int(self.left_s))):
            thread.start()
            self.join(thread, keep_s=grace)
        if thread.is_alive():
            with _requests(retries=0, timeout_s=0):
                self.join(thread)
        if failure:
            raise failure[0]
        if not outcome:
            raise TimeoutError(f"{what} took longer than the limit of the end of a run ({LIMIT_VARIABLE})")
        return outcome[0]

    def join(self, thread: threading.Thread, keep_s: float = 0.0) -> None:
        """Wait for a thread until `keep_s` seconds are left."""
        began = time.monotonic()
        thread.join(max(0.0, self.left_s - keep_s))
        if not self._local:
            self._left_s -= time.monotonic() - began


@contextmanager
def _requests(*, retries: int, timeout_s: int) -> Iterator[None]:
    """Lower limits for MLflow's requests. MLflow reads the variables at each request; 0 seconds is an error at once."""
    lower = {_RETRIES: retries, _TIMEOUT: timeout_s}
    before = {name: os.environ.get(name) for name in lower}
    for name, value in lower.items():
        text = os.environ.get(name, ENVIRONMENT[name])
        os.environ[name] = str(min(value, int(text)) if text.isdigit() else value)
    try:
        yield
    finally:
        for name, text_before in before.items():
            if text_before is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = text_before
