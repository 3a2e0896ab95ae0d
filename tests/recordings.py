"""Recordings with gaps, several rates and unlike lengths, and the same windows made by hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from maestro_dist.config.windows import WindowConfig
from maestro_dist.data.description import Description
from maestro_dist.data.moments import causal_statistics
from maestro_dist.data.recordings.raw import RawRecording
from maestro_dist.data.sample_checks import RawSample
from maestro_dist.types import Modality

RATES = {"acc": 16.0, "eda": 4.0}
LATE_S = {"acc": 0.0, "eda": -1.3}
LENGTH_S, STRIDE_S = 8.0, 4.0
SPLITS = ("train", "train", "train", "validation", "test")

ABOUT = Description(
    name="recordings",
    licence="CC0",
    citation="",
    source="a generator",
    task="classification",
    classes=("rest", "walk"),
    target="what the person does",
    window_s=LENGTH_S,
    modalities=(
        Modality("acc", 3, RATES["acc"], 0, "g"),
        Modality("eda", 1, RATES["eda"], 0, "uS"),
        Modality("age", 1, 1.0, 1, "years", always=True),
    ),
    window=WindowConfig(length_s=LENGTH_S, stride_s=STRIDE_S),
)


def recordings(count: int = 10) -> list[RawRecording]:
    """Two for each person; each fourth one lacks eda."""
    draw, found = np.random.default_rng(0), []
    for number in range(count):
        seconds = 100 + 7 * number
        walks = np.repeat(np.arange(seconds // 10 + 1) % 2, 10)[:seconds]
        acc = draw.normal(size=(seconds * 16, 3)) + np.repeat(walks, 16)[:, None]
        eda = draw.normal(5, 2, size=(seconds * 4 + number, 1))
        eda[200:300], acc[50:53, 1], acc[700:900] = np.nan, np.nan, np.nan
        found.append(
            RawRecording(
                key=f"r{number}",
                values={"acc": acc, "eda": None if number % 4 == 3 else eda, "age": [[30 + number]]},
                labels=[(10.0 * n, 10.0 * n + 10, ABOUT.classes[n % 2]) for n in range(seconds // 10)],
                start_s=LATE_S,
                subject=f"p{number // 2}",
                split=SPLITS[number // 2 % 5],
            )
        )
    return found


WINDOWS = replace(
    ABOUT,
    window=None,
    recording=True,
    modalities=tuple(replace(m, steps=m.steps or round(m.rate_hz * LENGTH_S)) for m in ABOUT.modalities),
)
"""The description of the same windows, packed."""


def windows(given: list[RawRecording]) -> Iterator[RawSample]:
    """The windows that `ABOUT` cuts, one by one, in plain Python."""
    for recording in given:
        streams = {name: np.float32(recording.values[name]) for name in RATES if recording.values[name] is not None}
        end = max(len(stream) / RATES[name] + LATE_S[name] for name, stream in streams.items())
        for number in range(10**6):
            start = number * STRIDE_S
            if start + LENGTH_S > end + 1e-9:
                break
            age = np.array(recording.values["age"], dtype=np.float32)
            values, statistics = {"age": age}, {"age": causal_statistics(age, np.array([1]))[0]}
            for name, stream in streams.items():
                first = int(np.rint((start - LATE_S[name]) * RATES[name]))
                last = first + int(LENGTH_S * RATES[name])
                window = np.full((last - first, stream.shape[1]), np.nan, dtype=np.float32)
                part = stream[max(first, 0) : max(last, 0)]
                window[max(first, 0) - first :][: len(part)] = part
                values[name] = window
                statistics[name] = causal_statistics(stream, np.array([min(last, len(stream))]))[0]
            seconds = [0.0, 0.0]
            for begin, stop, name in recording.labels:
                overlap = min(stop, start + LENGTH_S) - max(begin, start)
                seconds[ABOUT.classes.index(name)] += max(0.0, overlap)
            if sum(seconds) < LENGTH_S / 2 or all(np.isnan(values[name]).all() for name in streams):
                continue
            yield RawSample(
                split=recording.split,
                key=f"{recording.key}-{number:06d}",
                label=int(seconds[1] > seconds[0]),
                subject=recording.subject,
                recording=recording.key,
                start_s=start,
                duration_s=LENGTH_S,
                values=values,
                statistics=statistics,
            )
