"""The parts of reading whose cost depends on the size of a data set: order, manifest, index, start of a rank."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from benchmarks.common import Row, at_most, python_path, size_name
from benchmarks.data_set import Size, many_shards
from benchmarks.memory import peak_memory
from maestro_dist.config.schema import DataConfig
from maestro_dist.data.label_share import KeptSamples
from maestro_dist.data.manifest import Manifest, load_manifest
from maestro_dist.data.order import EpochOrder, OrderSettings
from maestro_dist.data.shard_index import load_index
from maestro_dist.data.storage import Storage

_FIRST_REQUEST = """
import sys, time
from maestro_dist.config.schema import DataConfig
from maestro_dist.data.manifest import load_manifest
from maestro_dist.data.reader import SplitSource
from maestro_dist.data.stream import DataRank, TrainSchedule, TrainStream
from maestro_dist.errors import DataError
url, workers = sys.argv[1], int(sys.argv[2])
manifest = load_manifest(url)
config = DataConfig(url=url, loader_workers=workers)
source = SplitSource(url, manifest, config, tuple(manifest.select(None)), "train")
stream = TrainStream(source, TrainSchedule(seed=0, global_batch=256, total_steps=100), DataRank(0, 8))
try:
    next(stream.batches(0, stream.samples))
except DataError:
    print(time.time())
"""
_BATCHES = 1000
_BATCH = 256
_SHARD_SAMPLES = 1000


def global_batches(shard_samples: list[int], position: int, size: int) -> Iterator[np.ndarray]:
    """The product's order of epoch 0: sample numbers of each global batch from `position` on."""
    config = DataConfig()
    settings = OrderSettings(0, size, config.shuffle_shards, config.lanes)
    order = EpochOrder(settings, 0, shard_samples, KeptSamples(0, shard_samples))
    for number in range(position // size, order.steps):
        yield order.batch(number)


def scale_rows(folder: Path, like: Manifest, size: Size, *, promised: bool) -> list[Row]:
    """Times and memory; the manifest of many shards is written to `folder`."""
    samples, shards = size.order
    name = f"data/{size_name(samples)} samples in {shards:,} shards"
    first_ms, whole_ms = _order_ms(samples, shards)
    memory = peak_memory("data_scale:order", samples, "cpu")
    written = many_shards(folder, like, samples, shards)
    begun = time.perf_counter()
    loaded = load_manifest(str(folder))
    manifest_s = time.perf_counter() - begun
    if loaded != written:
        raise RuntimeError("the manifest was not read as it was written")
    return [
        Row(f"{name}, order: first batch, in mid-epoch", first_ms, "ms"),
        at_most(
            f"{name}, order: {_BATCHES:,} batches of {_BATCH} from there, each",
            whole_ms / _BATCHES,
            "ms",
            1.0,
            promised=promised,
        ),
        at_most(f"{name}, order: memory at its peak", memory / 1e6, "MB", 200.0, promised=promised),
        at_most(f"{name}: load the manifest", manifest_s, "s", 2.0, promised=promised),
        *(
            at_most(
                f"{name}: from the start of a process to its first request for data, {workers} reader processes",
                start_s(str(folder), workers),
                "s",
                5.0,
                promised=promised,
            )
            for workers in (0, 2)
        ),
    ]


def start_s(url: str, workers: int) -> float:
    """Seconds from the start of a process until a rank asks for the first index of a data set, which is not there."""
    begun = time.time()
    command = [sys.executable, "-P", "-c", _FIRST_REQUEST, url, str(workers)]
    environment = {**os.environ, "PYTHONPATH": python_path()}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return float(done.stdout) - begun


def index_row(folder: Path, manifest: Manifest) -> Row:
    """Time to load an index from the data set in the local `folder`, median over all shards."""
    storage, seconds = Storage(str(folder)), []
    split = manifest.split("train")
    for shard in split.shards:
        begun = time.perf_counter()
        load_index(storage, shard)
        seconds.append(time.perf_counter() - begun)
    each = split.shards[0].samples
    return Row(f"data/load the index of a shard of {each} samples", 1000 * statistics.median(seconds), "ms")


def _order_ms(samples: int, shards: int) -> tuple[float, float]:
    """Milliseconds until the first batch, and until the last of `_BATCHES`."""
    sizes = [samples // shards] * shards
    begun = time.perf_counter()
    batches = global_batches(sizes, samples // 2 // _BATCH * _BATCH, _BATCH)
    next(batches)
    first = time.perf_counter()
    for _ in islice(batches, _BATCHES - 1):
        pass
    return 1000 * (first - begun), 1000 * (time.perf_counter() - begun)


def _build_order(samples: int, device: str) -> Callable[[], object]:
    return lambda: _order_ms(samples, max(1, samples // _SHARD_SAMPLES))


MEMORY = {"order": _build_order}
