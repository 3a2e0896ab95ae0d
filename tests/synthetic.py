"""A small generated data set for tests of whole runs: three modalities of different rates, gaps, absent modalities."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from maestro_dist import rng
from maestro_dist.data.manifest import Manifest
from maestro_dist.data.pack import Description, RawSample, pack
from maestro_dist.types import Modality

MODALITIES = (
    Modality("acc", 2, 16.0, 64, "g"),
    Modality("bvp", 1, 32.0, 128, "1"),
    Modality("temp", 1, 4.0, 16, "K"),
)
SAMPLES = {"train": 101, "validation": 30, "test": 37}  # no multiple of any batch


def describe(task: str = "classification") -> Description:
    """What the generated data set says of itself."""
    return Description(
        name="synthetic",
        licence="CC0-1.0",
        citation="none",
        source="generated",
        task=task,
        classes=("slow", "middle", "fast") if task == "classification" else (),
        target="frequency (Hz)",
        window_s=4.0,
        modalities=MODALITIES,
    )


def samples(task: str = "classification") -> Iterator[RawSample]:
    """Sine waves: the class is their frequency; every modality alone tells it. About 15 % of modalities are absent."""
    for split, count in SAMPLES.items():
        for number in range(count):
            draw = rng.uniform_np(rng.key(7, split), number, np.arange(8))
            label = number % 3
            frequency = (0.5, 1.0, 1.7)[label]
            values = {}
            for index, modality in enumerate(MODALITIES):
                t = np.arange(modality.steps)[:, None] / modality.rate_hz
                phase = 2 * np.pi * (draw[index] + np.arange(modality.variates)[None] / 3)
                noise = rng.uniform_np(rng.key(8, split, modality.name), number, np.arange(t.size * modality.variates))
                wave = np.sin(2 * np.pi * frequency * t + phase) + 0.5 * (noise.reshape(phase.shape[1], -1).T - 0.5)
                if draw[3 + index] < 0.15 and index != number % 3:
                    continue
                if draw[6] < 0.3:
                    wave[: modality.steps // 4] = np.nan
                values[modality.name] = wave
            yield RawSample(
                split=split,
                key=f"{split}_{number:04d}",
                label={"classification": label, "regression": frequency, "none": math.nan}[task],
                subject=f"s{number % 5}",
                recording=f"r{number % 5}",
                start_s=4.0 * number,
                duration_s=4.0,
                values=values,
            )


def write(url: str, task: str = "classification") -> Manifest:
    """Pack the data set below `url`, in several shards a split."""
    return pack(url, describe(task), samples(task), shard_bytes=24_000)
