"""Ranks that read a training stream, each in a process of its own that is killed at any moment."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from maestro_dist.config.learning import AugmentConfig, MissingConfig
from maestro_dist.config.schema import DataConfig
from maestro_dist.data.manifest import load_manifest
from maestro_dist.data.pack import Description, RawSample, pack
from maestro_dist.data.reader import SplitSource
from maestro_dist.data.stream import DataRank, TrainSchedule, TrainStream
from maestro_dist.types import Batch, Modality

SAMPLES, EPOCHS = 131, 3
MODALITIES = (Modality("acc", 3, 16.0, 32, "g"), Modality("long", 2, 256.0, 512, "V"), Modality("temp", 1, 4.0, 8, "K"))

_START = multiprocessing.get_context("forkserver")  # which imports torch once, for all ranks
_START.set_forkserver_preload(["torch", "scipy.special", "reading_ranks"])

Sample = tuple[str, str]
"""A sample as it was read: its key, and a hash of everything that the batch holds of it."""


@dataclass(frozen=True)
class Reading:
    """How a run reads its training data; the same for all ranks."""

    url: str
    global_batch: int
    micro_batch: int | None = None
    augment: dict[str, float] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)

    def stream(self, rank: int = 0, ranks: int = 1, readers: int = 0) -> TrainStream:
        manifest = load_manifest(self.url)
        config = DataConfig(url=self.url, loader_workers=readers, **self.data)
        augment = AugmentConfig(**self.augment) if self.augment else None
        source = SplitSource(self.url, manifest, config, tuple(manifest.select(None)), "train", augment=augment)
        steps = -(-SAMPLES // self.global_batch) * EPOCHS
        dropped = MissingConfig(max_rate=0.5, ramp_start=0.1, ramp_end=0.6)
        return TrainStream(
            source, TrainSchedule(5, self.global_batch, steps, self.micro_batch, dropped), DataRank(rank, ranks)
        )


def write(url: str) -> None:
    """Pack a data set whose shards have very different numbers of samples: only every third block has long windows."""
    draw, samples = np.random.default_rng(3), []
    for number in range(SAMPLES):
        values = {m.name: draw.normal(size=(m.steps, m.variates)).astype(np.float32) for m in MODALITIES}
        if number // 17 % 3:
            del values["long"]
        if number % 5 == 0:
            del values["temp"]
        values["acc"][: number % 7] = np.nan
        label = int(number % 9 == 0) + int(number % 27 == 0)  # two rare classes
        samples.append(RawSample("train", f"n{number:03d}", label, f"p{number % 4}", "r", number, 1.0, values))
    terms = {"licence": "CC0", "citation": "none", "source": "made for tests"}
    labels = {"task": "classification", "classes": ("a", "b", "c"), "target": "class"}
    about = Description("uneven", **terms, **labels, window_s=2.0, modalities=MODALITIES)  # type: ignore[arg-type]
    pack(url, about, samples, shard_bytes=24_000)
    counts = load_manifest(url).splits["train"].shard_samples
    assert len(counts) > 12
    assert max(counts) >= 3 * min(counts)


def rows(batch: Batch) -> list[Sample]:
    """The samples of a batch."""
    taken: dict[tuple[str, int], bytes] = {}
    for name, places in batch.rows.items():
        for at, row in enumerate(places.tolist()):
            taken[name, row] = batch.values[name][at].numpy().tobytes()
    found = []
    for row, key in enumerate(batch.keys):
        digest = hashlib.sha256()
        for name in sorted(batch.rows):
            digest.update(name.encode() + taken.get((name, row), b"absent"))
        for more in (batch.target, batch.present, batch.sample, batch.mix, batch.partner_target):
            digest.update(b"none" if more is None else more[row].numpy().tobytes())
        found.append((key, digest.hexdigest()[:16]))
    return found


def expected(reading: Reading) -> list[tuple[int, list[Sample]]]:
    """Position after each step, and its samples, as one rank reads them in this process without a stop."""
    stream = reading.stream()
    steps: dict[int, tuple[int, list[Sample]]] = {}
    for batch in stream.batches(0, EPOCHS * stream.samples):
        before = steps.get(batch.step, (0, []))[1]
        steps[batch.step] = batch.position, before + rows(batch)
    return [steps[step] for step in range(len(steps))]


def killed_ranks(
    reading: Reading, ranks: int, readers: int, position: int, *, until: int, notes: Path, pace_s: float = 0.0
) -> dict[int, tuple[int, list[Sample]]]:
    """Start ranks at a position and kill all when each has read step `until` at least.

    Returns, for each step that all ranks have read completely, the position after it and its samples in rank order.
    Ranks that come to the end of the run end by themselves.
    """
    notes.mkdir()
    files = [notes / str(rank) for rank in range(ranks)]
    environment = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    processes = [
        _START.Process(target=_read, args=(reading, rank, ranks, readers, position, files[rank], environment, pace_s))
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    try:
        deadline = time.monotonic() + 120
        while not all(until in _complete(file) for file in files):
            assert time.monotonic() < deadline, "the ranks do not get on"
            failed = [process.exitcode for process in processes if process.exitcode]
            assert not failed, f"a rank ended with {failed[0]}"
            time.sleep(0.01)
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.join()
    found = [_complete(file) for file in files]
    together = sorted(set.intersection(*(set(of_rank) for of_rank in found)))
    assert all(len({of_rank[step][0] for of_rank in found}) == 1 for step in together)
    return {
        step: (found[0][step][0], [sample for of_rank in found for sample in of_rank[step][1]]) for step in together
    }


def _read(
    reading: Reading,
    rank: int,
    ranks: int,
    readers: int,
    position: int,
    notes: Path,
    environment: dict[str, str],
    pace_s: float,
) -> None:
    os.environ |= environment
    stream = reading.stream(rank, ranks, readers)
    with notes.open("w", buffering=1) as file:
        for batch in stream.batches(position, EPOCHS * stream.samples):
            file.write(json.dumps([batch.step, batch.position, batch.last, rows(batch)]) + "\n")
            time.sleep(pace_s)


def _complete(notes: Path) -> dict[int, tuple[int, list[Sample]]]:
    """The steps that a rank has read completely; a line that was cut by the end of its process does not count."""
    steps: dict[int, tuple[int, list[Sample]]] = {}
    parts: list[Sample] = []
    for step, position, last, samples in _lines(notes):
        parts += [tuple(sample) for sample in samples]
        if last:
            steps[step], parts = (position, parts), []
    return steps


def _lines(notes: Path) -> Iterator[Any]:
    if notes.exists():
        for line in notes.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                yield json.loads(line)
