"""The data sets of the benchmark `data`: one that is packed and put on a server, and manifests of very many shards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from maestro_dist.data.manifest import Manifest, ManifestSplit, Shard
from maestro_dist.data.pack import Description, RawSample, pack, write_manifest
from maestro_dist.data.storage import Storage
from maestro_dist.types import Modality

WINDOW_S = 30.0
MODALITIES = tuple(
    Modality(name, variates, rate_hz, int(rate_hz * WINDOW_S), unit)
    for name, variates, rate_hz, unit in (
        ("acc", 3, 64.0, "g"),
        ("bvp", 1, 64.0, "1"),
        ("ecg", 2, 250.0, "mV"),
        ("eeg", 8, 128.0, "uV"),
        ("temp", 1, 4.0, "degC"),
    )
)
"""A complete sample has 214 kB; without eeg, 91 kB."""
_MISSING = {"bvp": 0.2, "eeg": 0.15, "temp": 0.3}
_SEED = 20


@dataclass(frozen=True)
class Size:
    """How much is measured.

    shards, shard_bytes   the packed data set
    batch                 samples of a global batch
    repetitions           turns that the ways of reading take, on loopback and on the slow link
    warm_epochs           epochs that are timed after the first
    order                 samples and shards of the largest order and of the largest manifest
    """

    shards: int
    shard_bytes: int
    batch: int
    repetitions: tuple[int, int]
    warm_epochs: int
    order: tuple[int, int]


FULL = Size(20, 33_000_000, 64, (3, 3), 6, (10**8, 10**5))
QUICK = Size(3, 1_000_000, 4, (1, 1), 1, (10**5, 10**2))


def packed(folder: Path, size: Size) -> Manifest:
    """Pack the data set into `folder`: one split, windows of noise that no compression makes smaller."""
    about = Description(
        name="benchmark",
        licence="CC0-1.0",
        citation="none",
        source="generated",
        task="classification",
        classes=("no", "yes"),
        target="nothing",
        window_s=WINDOW_S,
        modalities=MODALITIES,
    )
    return pack(folder, about, _samples(size), splits=["train"], shard_bytes=size.shard_bytes)


def many_shards(folder: Path, like: Manifest, samples: int, shards: int) -> Manifest:
    """Write the manifest of a data set that does not exist: hashes and sizes of its shards are made up."""
    each = samples // shards
    entries = [
        Shard(
            path=f"train-{number:06d}.tar",
            index=f"train-{number:06d}.index",
            samples=each,
            bytes=200_000 * each,
            sha256=f"{number:064x}",
            index_sha256=f"{shards + number:064x}",
        )
        for number in range(shards)
    ]
    split = ManifestSplit(shards=entries, samples=shards * each, class_counts=[shards * each, 0])
    manifest = like.model_copy(update={"splits": {"train": split}})
    write_manifest(Storage(str(folder)), manifest)
    return manifest


def _samples(size: Size) -> Iterator[RawSample]:
    """As many as fill all shards but the last, and part of that: a tar is about 2 % larger than its arrays."""
    draw = np.random.default_rng(_SEED)
    noise = draw.normal(size=1 << 22).astype(np.float32)
    left, number = int((size.shards - 0.5) * size.shard_bytes), 0
    while left > 0:
        values = {}
        for modality in MODALITIES:
            if draw.random() < _MISSING.get(modality.name, 0.0):
                continue
            count = modality.steps * modality.variates
            first = int(draw.integers(len(noise) - count))
            values[modality.name] = noise[first : first + count].reshape(modality.steps, modality.variates)
        left -= sum(array.nbytes for array in values.values())
        yield RawSample("train", f"w{number:06d}", number % 2, f"p{number % 7}", "", 0.0, WINDOW_S, values)
        number += 1
