"""What the tests under Ray share."""

from __future__ import annotations

from pathlib import Path

import pytest
import runs


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory, synthetic: str) -> Path:
    """Storage of an uninterrupted run of the command on two workers under a local Ray."""
    storage = tmp_path_factory.mktemp("whole")
    printed = runs.finish(runs.start(storage, synthetic, *runs.RAY))
    assert "mesh       2 ranks = 2 data x 1 sequence" in printed
    assert printed.count("step 21/21") == 1
    assert "Traceback" not in printed
    return storage
