"""Writes a data set: WebDataset shards, an index beside each, and the manifest last (without it nothing is there).

Streaming, one sample at a time, to any fsspec URL. The same samples give the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from maestro_dist.data.index import META, index_tar, member_name
from maestro_dist.data.manifest import MANIFEST_NAME, Manifest, ManifestModality, Shard, Split
from maestro_dist.data.moments import Moments
from maestro_dist.data.storage import Storage
from maestro_dist.errors import DataError
from maestro_dist.types import Modality

_KEY = re.compile(r"[A-Za-z0-9_-]{1,50}")  # no dots: webdataset splits there; short: a plain tar header holds 100 bytes

_SHARD = re.compile(r"[a-z0-9_]+-\d{6}\.(tar|index\.json)")


@dataclass(frozen=True)
class Description:
    """What a converter knows of a data set; the fields are those of `Manifest`. `notice`: terms a person must read."""

    name: str
    licence: str
    citation: str
    source: str
    task: Literal["classification", "regression"]
    classes: tuple[str, ...]
    target: str
    window_s: float
    modalities: tuple[Modality, ...]
    recording: bool = False
    notice: str = ""


@dataclass(frozen=True)
class RawSample:
    """One sample on its way into a shard.

    values       float [T_j, D_j] by modality, NaN = gap; an absent modality has no entry
    statistics   float [D_j, 2] by modality: mean and std of the recording up to the window's end
    start_s      start of the window in its recording, in seconds (for people; never given to a model)
    """

    split: str
    key: str
    label: int | float
    subject: str
    recording: str
    start_s: float
    duration_s: float
    values: dict[str, np.ndarray]
    statistics: dict[str, np.ndarray] = field(default_factory=dict)


def pack(
    url: str,
    description: Description,
    samples: Iterable[RawSample],
    *,
    splits: Sequence[str] = ("train", "validation", "test"),
    shard_bytes: int = 32 << 20,
    overwrite: bool = False,
) -> Manifest:
    """Write all samples below `url` and return the manifest.

    `splits` are always in the manifest, in this order, even when empty; the first is the training split, whose means
    and standard deviations the manifest keeps. A shard ends with the sample that fills `shard_bytes`.

    Raises:
        DataError: a data set is there already (and not `overwrite`), or a sample does not fit the description.
    """
    storage = make_room(url, overwrite=overwrite)
    moments = {modality.name: Moments(modality.variates) for modality in description.modalities}
    with ExitStack() as stack:
        classes, checks = len(description.classes), _Checks(description)
        writers = {name: stack.enter_context(SplitWriter(storage, name, classes, shard_bytes)) for name in splits}
        for sample in samples:
            if sample.split not in writers:
                raise DataError(f"sample {sample.key}: split '{sample.split}' is not one of {', '.join(splits)}")
            arrays = checks.checked(sample)
            members = {member_name(name): npy(array) for name, array in arrays.items()}
            writers[sample.split].add(sample.key, sample.label, _meta(sample, description), members)
            for name, values in arrays.items():
                if sample.split == splits[0]:
                    moments[name].add(values)
        finished = {name: writer.finish() for name, writer in writers.items()}
    if not finished[splits[0]].samples:
        raise DataError(f"{description.name}: no sample for split '{splits[0]}'; check source and splits")
    manifest = Manifest(
        format="maestro_dist/1",
        name=description.name,
        licence=description.licence,
        citation=description.citation,
        source=description.source,
        task=description.task,
        classes=list(description.classes),
        target=description.target,
        window_s=description.window_s,
        recording=description.recording,
        modalities=[
            ManifestModality(
                name=m.name,
                variates=m.variates,
                unit=m.unit,
                rate_hz=m.rate_hz,
                steps=m.steps,
                mean=moments[m.name].mean.tolist(),
                std=moments[m.name].std.tolist(),
                always=m.always,
            )
            for m in sorted(description.modalities, key=lambda m: m.name)
        ],
        splits=finished,
    )
    write_manifest(storage, manifest)
    return manifest


def make_room(url: str, *, overwrite: bool) -> Storage:
    """The place of a new data set, empty of any shard.

    Raises:
        DataError: a data set is there already, and not `overwrite`.
    """
    storage = Storage(url)
    if not overwrite:
        check_room(url)
    elif storage.exists(MANIFEST_NAME):
        storage.remove(MANIFEST_NAME)  # first: shards without their manifest are no data set
        for name in storage.list():
            if _SHARD.fullmatch(name):
                storage.remove(name)
    return storage


def check_room(url: str) -> None:
    """Raise `DataError` where a data set is at `url`."""
    if Storage(url).exists(MANIFEST_NAME):
        name = Storage(url).name()
        raise DataError(f"{name}: a packed data set is there already; remove it or choose another place")


def write_manifest(storage: Storage, manifest: Manifest) -> None:
    """The last step of packing."""
    storage.write(MANIFEST_NAME, (json.dumps(manifest.to_json(), indent=1) + "\n").encode())


class SplitWriter:
    """The shards of one split of `classes` classes (0: regression).

    A context manager: when packing fails, the shard being written vanishes.
    """

    def __init__(self, storage: Storage, split: str, classes: int, shard_bytes: int) -> None:
        self.storage, self.split, self.shard_bytes = storage, split, shard_bytes
        self.shards: list[Shard] = []
        self.targets = Moments(1)
        self.class_counts = [0] * classes
        self.keys: set[str] = set()
        self._open: ExitStack | None = None
        self._file: Any = None
        self._tar: Any = None

    def __enter__(self) -> SplitWriter:
        return self

    def __exit__(self, *exc: Any) -> None:
        if self._open is not None:
            self._open.__exit__(*exc)

    def add(self, key: str, label: float, meta: bytes, members: dict[str, bytes]) -> None:
        """Write a sample: its json and its other members by name.

        Raises:
            DataError: the key does not do.
        """
        if not _KEY.fullmatch(key) or key in self.keys:
            where = f"{self.split}, sample {key}"
            raise DataError(f"{where}: a key has up to 50 letters, digits, - or _, and is used once in a shard")
        if self._open is None:
            self._begin()
        self._tar.write({"__key__": key, META: meta, **members})
        self.keys.add(key)
        if self.class_counts:
            self.class_counts[int(label)] += 1
        self.targets.add(np.array([[float(label)]]))
        if self._file.tell() >= self.shard_bytes:
            self._end()

    def finish(self) -> Split:
        """Close the last shard and describe the split."""
        if self._open is not None:
            self._end()
        regression = not self.class_counts and bool(self.shards)
        return Split(
            shards=self.shards,
            samples=sum(shard.samples for shard in self.shards),
            class_counts=self.class_counts,
            target_mean=float(self.targets.mean[0]) if regression else None,
            target_std=float(self.targets.std[0]) if regression else None,
        )

    def _begin(self) -> None:
        import webdataset

        self._path = f"{self.split}-{len(self.shards):06d}"
        self._open = ExitStack()
        self._file = self._open.enter_context(self.storage.writer(f"{self._path}.tar"))
        self._tar = webdataset.TarWriter(self._file, user="", group="", mode=0o444, mtime=0, encoder=False)
        self._open.callback(self._tar.close)
        self.keys.clear()

    def _end(self) -> None:
        assert self._open is not None
        self._tar.close()
        size = self._file.tell()
        self._file.seek(0)
        digest = hashlib.file_digest(self._file, "sha256").hexdigest()
        self._file.seek(0)
        index = index_tar(self._file)
        self._open.close()
        self._open = None
        self.storage.write(f"{self._path}.index.json", index.to_json())
        shard = Shard(
            path=f"{self._path}.tar",
            index=f"{self._path}.index.json",
            samples=len(index.keys),
            bytes=size,
            sha256=digest,
        )
        self.shards.append(shard)


class _Checks:
    """What a description asks of each sample."""

    def __init__(self, description: Description) -> None:
        self.description = description
        self.modalities = {modality.name: modality for modality in description.modalities}

    def checked(self, sample: RawSample) -> dict[str, np.ndarray]:
        """The arrays of a sample as they are stored."""
        where = f"{self.description.name}, {sample.split}, sample {sample.key}"
        if self.description.task == "classification":
            if sample.label not in range(len(self.description.classes)):
                raise DataError(f"{where}: label {sample.label} is not one of 0..{len(self.description.classes) - 1}")
        elif not math.isfinite(sample.label):
            raise DataError(f"{where}: target {sample.label} is not finite")
        values = {}
        for name, array in sample.values.items():
            modality = self.modalities.get(name)
            if modality is None:
                raise DataError(f"{where}: modality '{name}' is not in the description")
            stored = np.ascontiguousarray(array, dtype="<f4")
            if stored.shape != (modality.steps, modality.variates):
                wanted = f"{modality.steps} steps x {modality.variates} variates"
                raise DataError(f"{where}: {name} has shape {stored.shape}, not {wanted}")
            if np.isinf(stored).any():
                raise DataError(f"{where}: {name} has an infinite value")
            if self.description.recording and sample.statistics[name].shape != (modality.variates, 2):
                raise DataError(f"{where}: {name} has no recording statistics of shape ({modality.variates}, 2)")
            if not np.isnan(stored).all():  # a stream without one observed step is an absent one
                values[name] = stored
        return values


def npy(array: np.ndarray) -> bytes:
    """An array as an npy file."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def _meta(sample: RawSample, description: Description) -> bytes:
    label = int(sample.label) if description.task == "classification" else float(sample.label)
    body: dict[str, Any] = {
        "label": label,
        "subject": sample.subject,
        "recording": sample.recording,
        "start_s": sample.start_s,
        "duration_s": sample.duration_s,
    }
    if description.recording:  # nine digits tell any two float32 numbers apart
        body["recording_mean"] = {n: [float(f"{x:.9g}") for x in s[:, 0]] for n, s in sample.statistics.items()}
        body["recording_std"] = {n: [float(f"{x:.9g}") for x in s[:, 1]] for n, s in sample.statistics.items()}
    return json.dumps(body, separators=(",", ":"), allow_nan=False).encode()
