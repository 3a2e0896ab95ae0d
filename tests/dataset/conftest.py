"""The small data set of `tiny.py`, packed."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import describe, raw_samples

from maestro_dist.data.pack import RawSample, pack


@pytest.fixture(scope="session")
def samples() -> list[RawSample]:
    return raw_samples()


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory, samples: list[RawSample]) -> str:
    """URL of the data set; tests that damage it make their own copy."""
    url = str(tmp_path_factory.mktemp("packed"))
    pack(url, describe(), samples, shard_bytes=20_000)
    return url


@pytest.fixture
def fresh(tmp_path: Path, samples: list[RawSample]) -> str:
    url = str(tmp_path / "data")
    pack(url, describe(), samples, shard_bytes=20_000)
    return url
