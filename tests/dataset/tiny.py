"""A small data set with gaps and absent modalities, packed into several shards, and tools to damage it."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import webdataset

from maestro_dist.config.schema import DataConfig
from maestro_dist.data.manifest import load_manifest
from maestro_dist.data.pack import Description, RawSample
from maestro_dist.data.reader import SplitSource
from maestro_dist.data.shard_index import index_tar
from maestro_dist.types import Modality

MODALITIES = (
    Modality("ecg", 1, 64.0, 128, "mV"),
    Modality("acc", 3, 32.0, 64, "g"),
    Modality("temp", 1, 4.0, 8, "degC"),
)
SIZES = {"train": 53, "validation": 11, "test": 17}


def describe(**changes: object) -> Description:
    fields = {
        "name": "tiny",
        "licence": "CC0",
        "citation": "none",
        "source": "made for tests",
        "task": "classification",
        "classes": ("rest", "walk", "run"),
        "target": "activity",
        "window_s": 2.0,
        "modalities": MODALITIES,
        "recording": True,
    }
    return Description(**{**fields, **changes})  # type: ignore[arg-type]


def raw_samples() -> list[RawSample]:
    generator = np.random.default_rng(5)
    samples = []
    for split, size in SIZES.items():
        for number in range(size):
            names = [m.name for m in MODALITIES if generator.random() < 0.7] or ["acc"]
            values, statistics = {}, {}
            for modality in MODALITIES:
                if modality.name in names:
                    array = generator.normal(3.0, 2.0, (modality.steps, modality.variates))
                    array[generator.random(array.shape) < 0.05] = np.nan
                    values[modality.name] = array.astype(np.float32)
                    statistics[modality.name] = generator.random((modality.variates, 2))
            label = int(generator.integers(3))
            samples.append(
                RawSample(split, f"{split}-{number:03d}", label, "p1", "r1", number * 1.0, 2.0, values, statistics)
            )
    return samples


def source_of(url: str, split: str = "train", config: DataConfig | None = None, **fields: Any) -> SplitSource:
    """A split of a packed data set with all its modalities."""
    manifest = load_manifest(url)
    return SplitSource(url, manifest, config or DataConfig(url=url), tuple(manifest.select(None)), split, **fields)


def forget_index_hashes(url: str) -> None:
    """Make the manifest one of an older version, which has no hashes of the indexes."""
    file = Path(url) / "manifest.json"
    manifest = json.loads(file.read_text())
    for split in manifest["splits"].values():
        for shard in split["shards"]:
            shard.pop("index_sha256", None)
    file.write_text(json.dumps(manifest))


def rewrite(url: str, change: Callable[[str, dict[str, bytes]], None]) -> None:
    """Change members of the training shards, with index and manifest, as a packer with a bug would write them."""
    folder = Path(url)
    manifest = json.loads((folder / "manifest.json").read_text())
    for shard in manifest["splits"]["train"]["shards"]:
        contents: dict[str, dict[str, bytes]] = {}
        with tarfile.open(folder / shard["path"]) as tar:
            for info in tar:
                key, _, name = info.name.partition(".")
                contents.setdefault(key, {})[name] = tar.extractfile(info).read()  # type: ignore[union-attr]
        buffer = io.BytesIO()
        writer = webdataset.TarWriter(buffer, encoder=False, mtime=0)
        for key, members in contents.items():
            change(key, members)
            writer.write({"__key__": key, **members})
        writer.close()
        data = buffer.getvalue()
        (folder / shard["path"]).write_bytes(data)
        index = index_tar(io.BytesIO(data)).to_bytes()
        (folder / shard["index"]).write_bytes(index)
        shard.update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        shard.update(index_sha256=hashlib.sha256(index).hexdigest())
    (folder / "manifest.json").write_text(json.dumps(manifest))
    load_manifest(url)
