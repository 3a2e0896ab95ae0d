"""Shared fixtures. One thread a process: two cores run several at once."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
sys.path.insert(0, str(Path(__file__).parent))  # helper modules of the tests

import pytest

from maestro_dist.system.logging_setup import LEVEL_VARIABLE, ROOT, configure_logging


@pytest.fixture(autouse=True)
def logging_of_a_command() -> None:
    """Logging as the commands set it up; records also reach pytest's `caplog`."""
    os.environ.pop(LEVEL_VARIABLE, None)
    configure_logging()
    logging.getLogger(ROOT).propagate = True


@pytest.fixture(autouse=True)
def default_storage_settings() -> Iterator[None]:
    """The defaults for each test, and afterwards for what a session needs: a run sets those of its process."""
    from maestro_dist.data.storage.settings import StorageSettings, configure

    configure(StorageSettings())
    yield
    configure(StorageSettings())


@pytest.fixture(autouse=True)
def metrics_are_sent_no_longer() -> Iterator[None]:
    """Wait for the threads of closed metric logs: what they still say must not reach the next test."""
    yield
    sending = [thread for thread in threading.enumerate() if thread.name == "metrics"]
    for thread in sending:
        thread.join(20)
    assert not [thread for thread in sending if thread.is_alive()], "a metric log was not closed"


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> str:
    """URL of the generated classification data set."""
    import synthetic as module

    url = str(tmp_path_factory.mktemp("synthetic"))
    module.write(url)
    return url


LONG = ("suite", "ray", "dist", "run")
"""Folders of few but long tests, the longest first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests first, so that no process works alone at the end. Skip tests marked `gpu` where there is none."""
    order = {folder: place for place, folder in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path.parent.name, len(LONG)))
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))
