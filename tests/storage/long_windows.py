"""A data set of long windows: modalities of different rates, some missing, gaps; and the slices of sequence ranks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from maestro_dist.config.schema import DataConfig
from maestro_dist.data.manifest import Manifest, load_manifest
from maestro_dist.data.pack import Description, RawSample, pack
from maestro_dist.data.reader import Request, SplitSource
from maestro_dist.data.storage import Storage
from maestro_dist.data.stream import DataRank, TrainSchedule, TrainStream
from maestro_dist.types import Batch, Modality

WINDOW_S = 3600.0
MODALITIES = (
    Modality("acc", 3, 20.0, 72_000, "g"),  # 864 kB
    Modality("ecg", 1, 200.0, 720_000, "mV"),  # 2.9 MB
    Modality("temp", 1, 0.5, 1800, "degC"),  # 7 kB
)
UNITS = {"acc": 700, "ecg": 64_000, "temp": 900}  # steps: slices end at multiples, so they are uneven
SAMPLES, BATCH = 10, 3


def samples(count: int = SAMPLES) -> Iterator[RawSample]:
    """Training windows; each lacks other modalities."""
    draw = np.random.default_rng(3)
    noise = draw.normal(size=1 << 20).astype(np.float32)
    for number in range(count):
        present = [m for at, m in enumerate(MODALITIES) if at != number % 5]
        values = {}
        for modality in present:
            size = modality.steps * modality.variates
            start = int(draw.integers(len(noise) - size))
            values[modality.name] = noise[start : start + size].reshape(modality.steps, modality.variates).copy()
            values[modality.name][100:150] = np.nan
        yield RawSample("train", f"w{number:03d}", number % 2, f"p{number % 3}", "", 0.0, WINDOW_S, values)


def pack_long(url: str, **options: Any) -> Manifest:
    """Pack them to `url`, in shards of three samples."""
    about = Description(
        "long", "CC0-1.0", "", "made for tests", "classification", ("no", "yes"), "nothing", WINDOW_S, MODALITIES
    )
    return pack(url, about, samples(), splits=["train"], **{"shard_bytes": 8_000_000, **options})


def copy(folder: str, url: str) -> None:
    """Put a packed data set on a server."""
    storage = Storage(url)
    for file in sorted(Path(folder).iterdir()):
        storage.write(file.name, file.read_bytes())


def slices(rank: int, ranks: int, units: dict[str, int] | None = None) -> dict[str, tuple[int, int]]:
    """The steps of each modality that a sequence rank has."""
    from maestro_dist.parallel.sequence import time_cuts  # here: it imports torch

    cuts = {m.name: time_cuts(m.steps, (units or UNITS)[m.name], ranks) for m in MODALITIES}
    return {name: (at[rank], at[rank + 1]) for name, at in cuts.items()}


def source_of(url: str, part: dict[str, tuple[int, int]] | None, **config: Any) -> SplitSource:
    """The training split, as a sequence rank with these slices reads it."""
    manifest = load_manifest(url)
    return SplitSource(url, manifest, DataConfig(url=url, **config), tuple(manifest.select(None)), "train", slices=part)


def stream_of(url: str, part: dict[str, tuple[int, int]] | None, data: DataRank | None = None, **config: Any) -> Any:
    """The training stream of one rank."""
    schedule = TrainSchedule(seed=1, global_batch=BATCH, total_steps=100)
    return TrainStream(source_of(url, part, **config), schedule, data or DataRank())


def arrays(batches: Iterator[Batch]) -> list[dict[str, np.ndarray]]:
    """The values and rows of the batches."""
    return [
        {name: value.numpy() for name, value in batch.values.items()}
        | {f"{name} rows": rows.numpy() for name, rows in batch.rows.items()}
        | {"sample": batch.sample.numpy(), "target": batch.target.numpy()}
        for batch in batches
    ]


def without_torch(url: str, part: dict[str, tuple[int, int]] | None, cache: str) -> list[dict[str, np.ndarray]]:
    """The values of all samples in their order, for processes that are to start fast. Nothing is read ahead."""
    with closing(source_of(url, part, cache=cache).open()) as reader:
        return [dict(reader.arrays(Request(np.array([number]))).values) for number in range(SAMPLES)]


def assert_same(one: list[dict[str, np.ndarray]], other: list[dict[str, np.ndarray]]) -> None:
    """Bit for bit, NaN included."""
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert (a[name].shape, a[name].dtype) == (b[name].shape, b[name].dtype)
            assert a[name].tobytes() == b[name].tobytes()
