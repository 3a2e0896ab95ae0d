"""The benchmark of reading: it runs, counts what an epoch asks for, and its ways read the same samples."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
from benchmarks import data
from benchmarks.common import Options
from benchmarks.data_scale import global_batches
from benchmarks.data_set import QUICK, many_shards, packed
from benchmarks.data_ways import LocalFiles, Remote, training_stream

from maestro_dist.config.schema import DataConfig
from maestro_dist.data.manifest import load_manifest
from maestro_dist.data.reader import Request, SplitSource

pytestmark = pytest.mark.slow


def test_it_runs_and_its_rows_say_what_they_should() -> None:
    rows = data.run(Options(quick=True))
    named = {row.name: row.value for row in rows}
    assert len(named) == len(rows)
    for row in rows:
        assert row.name.startswith("data/")
        assert math.isfinite(row.value)
        assert row.reach is row.holds is row.sense is None  # nothing is promised
    assert named["data/an epoch, requests: GET of the manifest"] == 1
    assert named["data/an epoch, requests: others"] == 0
    assert 1 <= named["data/an epoch, bytes from the server, of the shards"] < 1.2
    assert 0 < named["data/an epoch, bytes from the server for a node of 4, of the shards"] <= 100
    for link in ("loopback", "30 ms and 40 MB/s a connection"):
        assert len([name for name in named if name.startswith(f"data/{link}, stream, empty cache, ")]) == 6 + 2


def test_only_a_cpu_is_measured() -> None:
    with pytest.raises(RuntimeError, match="leave --device out"):
        data.run(Options(device="cuda"))


def test_local_files_give_the_arrays_of_the_product(tmp_path: Path) -> None:
    manifest = packed(tmp_path, QUICK)
    assert len(manifest.split("train").shards) == QUICK.shards
    source = SplitSource(str(tmp_path), manifest, DataConfig(), tuple(manifest.select(None)), "train")
    remote = Remote("http://server", "bucket", manifest, batch=5)
    order, reader = training_stream(remote, tmp_path).order(0), source.open()
    for number, found in enumerate(LocalFiles(tmp_path, remote).batches()):
        expected = reader.batch(Request(order.batch(number)))
        assert found.keys() == expected.values.keys()
        for name, array in found.items():
            np.testing.assert_array_equal(array, expected.values[name].numpy())
    assert number == order.steps - 1


def test_a_manifest_of_many_shards_loads(tmp_path: Path) -> None:
    manifest = packed(tmp_path / "some", QUICK)
    many_shards(tmp_path / "many", manifest, samples=5000, shards=50)
    assert len(load_manifest(str(tmp_path / "many")).split("train").shards) == 50


def test_the_order_is_that_of_the_stream() -> None:
    batches = list(global_batches([10, 20, 30], 0, 16))
    assert [len(batch) for batch in batches] == [16, 16, 16, 12]
    assert sorted(np.concatenate(batches).tolist()) == list(range(60))
    np.testing.assert_array_equal(next(global_batches([10, 20, 30], 32, 16)), batches[2])


def test_the_environment_is_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://before")
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    with Remote("http://server", "bucket", packed(tmp_path, QUICK), 4).environment():
        assert os.environ["AWS_ENDPOINT_URL"] == "http://server"
    assert os.environ["AWS_ENDPOINT_URL"] == "http://before"
    assert "AWS_DEFAULT_REGION" not in os.environ
