"""Windows in packed splits, and the same windows divided otherwise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import recordings as made

from maestro_dist.config.schema import DataConfig
from maestro_dist.config.windows import SplitConfig
from maestro_dist.data.load import load_data
from maestro_dist.data.manifest import Manifest
from maestro_dist.data.pack import RawSample, pack, pack_recordings
from maestro_dist.data.reader import Request, SplitSource
from maestro_dist.types import Batch

NEW = {"p1": "test", "p4": "validation"}
"""Splits of people that `BY_NAME` makes; the others are in train."""
BY_NAME = SplitConfig(by="subject", test=["p1"], validation=["p4"])
OPTIONS = ["data.split.by=subject", "data.split.test=[p1]", "data.split.validation=[p4]"]


def windows() -> list[RawSample]:
    """In the order of the packed splits."""
    order = ["train", "validation", "test"]
    return sorted(made.windows(made.recordings()), key=lambda sample: order.index(sample.split))


def divided_by_hand() -> list[RawSample]:
    return [replace(sample, split=NEW.get(sample.subject, "train")) for sample in windows()]


def changed(config: DataConfig, **changes: Any) -> DataConfig:
    return config.model_copy(update=changes)


def split_by(config: DataConfig, **split: Any) -> Manifest:
    return load_data(changed(config, split=SplitConfig(**split)))


def source_of(config: DataConfig, manifest: Manifest, split: str = "train", **changes: Any) -> SplitSource:
    return SplitSource(config.url, manifest, config, tuple(manifest.select(None)), split, **changes)


def everything(config: DataConfig, manifest: Manifest, split: str, **changes: Any) -> Batch:
    source = source_of(config, manifest, split, **changes)
    return source.open().batch(Request(np.arange(manifest.split(split).samples)))


def keys_of(config: DataConfig, manifest: Manifest) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {name: [] for name in manifest.splits}
    for name, split in manifest.splits.items():
        for index in source_of(config, manifest, name).indexes() if split.samples else ():
            found[name] += index.keys
    return found


def for_tests(folder: Path) -> dict[str, str]:
    """URLs of a set of windows and of one of recordings, all in the split test, of other people."""
    people = {"p0": "q0", "p1": "q1"}
    only = [replace(s, split="test", subject=people[s.subject]) for s in windows() if s.subject in people]
    pack(folder / "windows", made.WINDOWS, only)
    given = [replace(r, split="test", subject=people[r.subject]) for r in made.recordings() if r.subject in people]
    pack_recordings(folder / "recordings", made.ABOUT, given)
    return {kind: str(folder / kind) for kind in ("windows", "recordings")}
