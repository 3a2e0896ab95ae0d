"""Windows of long recordings on a real S3 server: only their bytes are downloaded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fault_proxy import FaultProxy, Rule
from long_windows import arrays, assert_same, copy

from maestro_dist.config.schema import DataConfig
from maestro_dist.config.windows import SplitConfig, WindowConfig
from maestro_dist.data import reader
from maestro_dist.data.load import load_data
from maestro_dist.data.pack import Description, RawRecording, pack_recordings
from maestro_dist.data.reader import SplitSource
from maestro_dist.data.recordings import windowing
from maestro_dist.data.stream import DataRank, TrainSchedule, TrainStream, evaluation_batches
from maestro_dist.types import Modality

HOURS, SHARD = 3, r"recordings-\d+\.tar"
MODALITIES = (Modality("acc", 3, 50.0, 0, "g"), Modality("temp", 1, 1.0, 0, "degC"))
WINDOW = WindowConfig(length_s=10, stride_s=200)  # a twentieth of the recordings
ABOUT = Description(
    "long", "CC0", "", "made for tests", task="classification", classes=("no", "yes"), target="nothing",
    window_s=10, modalities=MODALITIES, window=WINDOW,
)  # fmt: skip


def recordings() -> Iterator[RawRecording]:
    """Of one, acc begins late; each ends at another time; the last lacks temp."""
    draw = np.random.default_rng(0)
    for number in range(3):
        seconds = 3600 * HOURS + 777 * number
        values: dict[str, Any] = {m.name: draw.normal(size=(int(seconds * m.rate_hz), m.variates)) for m in MODALITIES}
        values["acc"][7000:9000] = np.nan
        if number == 2:
            values["temp"] = None
        late = {"acc": 3.0 if number == 1 else 0.0, "temp": 0.0}
        yield RawRecording(f"r{number}", values, number % 2, start_s=late, subject=f"p{number}")


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("long") / "data")
    pack_recordings(folder, ABOUT, recordings())
    return folder


def source_of(url: str, cache: Path, **more: Any) -> SplitSource:
    split = SplitConfig(by="time", test=0.2, validation=0.2, allow_shared_people=True)
    config = DataConfig.model_validate({"url": url, "cache": str(cache), "split": split, **more})
    manifest = load_data(config)
    return SplitSource(url, manifest, config, tuple(manifest.select(None)), "train")


def read(source: SplitSource, end: int) -> list[Any]:
    return arrays(TrainStream(source, TrainSchedule(3, 8, 100), DataRank()).batches(0, end))


def test_only_the_bytes_of_windows_are_downloaded(
    local: str, proxied_s3: str, proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{proxied_s3}/data"
    copy(local, url)
    here, there = source_of(local, tmp_path / "here"), source_of(url, tmp_path / "count")
    there = replace(there, config=there.config.model_copy(update={"cache": str(tmp_path / "parts")}))
    monkeypatch.setattr(reader, "_LARGE_SHARD", 1 << 20)
    assert there.downloads_parts
    size = here.manifest.split("train").samples
    proxy.forget()
    proxy.add(Rule("GET", SHARD, requests=2, fault="status", status=503))
    assert_same(read(there, 2 * size), read(here, 2 * size))
    shards = sum(shard.bytes for shard in there.manifest.split("train").shards)
    assert 0 < proxy.count("GET", SHARD).bytes < 0.35 * shards
    proxy.forget()
    tests = replace(there, split="test"), replace(here, split="test")
    found, expected = (arrays(evaluation_batches(source, 4, DataRank())) for source in tests)
    assert_same(found, expected)
    assert 0 < proxy.count("GET", SHARD).bytes < 0.2 * shards


def test_ranks_that_share_the_time_axis_download_their_parts(
    local: str, proxied_s3: str, proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{proxied_s3}/data"
    copy(local, url)
    here, there = source_of(local, tmp_path / "here"), source_of(url, tmp_path / "count")
    monkeypatch.setattr(reader, "LONG_WINDOW", 1 << 10)
    size = here.manifest.split("train").samples
    for rank in range(2):
        cut = {"acc": (0, 320, 500), "temp": (0, 6, 10)}
        slices = {name: (at[rank], at[rank + 1]) for name, at in cut.items()}
        config = there.config.model_copy(update={"cache": str(tmp_path / f"parts {rank}")})
        part = replace(there, slices=slices, config=config)
        assert part.downloads_parts
        proxy.forget()
        assert_same(read(part, size), read(replace(here, slices=slices), size))
        assert proxy.count("GET", SHARD).bytes < 0.35 * sum(s.bytes for s in part.manifest.split("train").shards)


def test_the_table_is_read_once_on_a_machine(local: str, proxied_s3: str, proxy: FaultProxy, tmp_path: Path) -> None:
    """By the process that begins, its readers, and a later run; a damaged copy is not used."""
    url = f"{proxied_s3}/data"
    copy(local, url)
    proxy.forget()
    source = source_of(url, tmp_path, loader_workers=2)
    expected = read(source, 16)
    assert proxy.count("GET", r"recordings\.table").requests == 1
    windowing._known.clear()
    (table,) = tmp_path.rglob("*.table")
    table.write_bytes(table.read_bytes()[:-1])
    assert_same(read(source_of(url, tmp_path, loader_workers=1), 16), expected)
    assert proxy.count("GET", r"recordings\.table").requests == 2
