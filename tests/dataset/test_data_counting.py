"""Statistics of very many windows are counted from some of them; classes and people from all."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import recordings as made

from maestro_dist.config.schema import DataConfig
from maestro_dist.config.windows import SplitConfig, WindowConfig
from maestro_dist.data.load import load_data
from maestro_dist.data.manifest import Manifest
from maestro_dist.data.pack import pack_recordings
from maestro_dist.data.recordings import counting

WINDOW_BYTES = 4 * (128 * 3 + 32 + 1)  # 8 s of acc and eda, and the age


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> str:
    url = tmp_path_factory.mktemp("many") / "data"
    pack_recordings(url, made.ABOUT, made.recordings(30), shard_bytes=100_000)
    return str(url)


def loaded(url: str, cache: Path) -> Manifest:
    split = SplitConfig(by="time", allow_shared_people=True)
    window = WindowConfig(length_s=8.0, stride_s=1.0)
    return load_data(DataConfig(url=url, cache=str(cache), split=split, window=window))


@pytest.mark.parametrize(("megabytes", "shards"), [(1.0, 512), (1.0, 4), (0.01, 2)])
def test_some_windows_tell_the_statistics_of_all(
    packed: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    megabytes: float,
    shards: int,
) -> None:
    whole = loaded(packed, tmp_path / "whole")
    count = sum(split.samples for split in whole.splits.values())
    assert count * WINDOW_BYTES > 4e6
    assert len(whole.split("train").shards) > 4
    monkeypatch.setattr(counting, "_MOST_BYTES", int(megabytes * 1e6))
    monkeypatch.setattr(counting, "_MOST_SHARDS", shards)
    caplog.set_level(logging.INFO)
    some = loaded(packed, tmp_path / "some")
    line = [record.getMessage() for record in caplog.records if "counting" in record.getMessage()][-1]
    read = int(line.split("of ")[1].split()[0].replace(",", ""))
    assert 3 <= read <= megabytes * 1e6 / WINDOW_BYTES + 3 * shards
    assert f" of {count:,} windows" in line
    assert some.splits == whole.splits
    assert some.shared_people == whole.shared_people != []
    for modality in whole.modalities:
        found = next(other for other in some.modalities if other.name == modality.name)
        if megabytes >= 1 and modality.name != "age":
            np.testing.assert_allclose(found.mean, modality.mean, atol=0.2 * max(modality.std))
            np.testing.assert_allclose(found.std, modality.std, rtol=0.1)
    assert loaded(packed, tmp_path / "again") == some
