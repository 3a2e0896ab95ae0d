"""Shared fixtures. One thread a process: two cores run several at once."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
sys.path.insert(0, str(Path(__file__).parent))  # helper modules of the tests

import pytest


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> str:
    """URL of the generated classification data set."""
    import synthetic as module

    url = str(tmp_path_factory.mktemp("synthetic"))
    module.write(url)
    return url
