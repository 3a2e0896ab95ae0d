"""Whole recordings, read from end to end in bounded memory, with their labels and the splits of their windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np

from maestro_dist import rng
from maestro_dist.config.schema import DataConfig
from maestro_dist.data.description import is_static
from maestro_dist.data.index_copies import index_of
from maestro_dist.data.manifest import Manifest, Shard
from maestro_dist.data.preview.curves import Curves, drawn_at_random
from maestro_dist.data.recordings.table import RecordingFacts, StreamFacts
from maestro_dist.data.recordings.windowing import Windowing, windowing_of
from maestro_dist.data.shard_cache import ShardCache, local_shard
from maestro_dist.data.shard_index import HEADER, ShardIndex, member_name
from maestro_dist.data.storage import Storage
from maestro_dist.data.window_layout import npy_header
from maestro_dist.errors import DataError, StorageError
from maestro_dist.types import Modality

MOST_SHOWN = 3
_MOST_LOOKED_AT = 200  # to find one of each split
_MOST_VALUES = 1 << 26  # of a stream that are read
_NAME = 100  # bytes of the name in a tar header
_FLOAT32 = np.dtype("<f4")
_COLUMNS = 1200


@dataclass(frozen=True)
class ShownRecording:
    """A recording of the page.

    windows    by split ("": in none): begin and length in seconds of each stretch of time that its windows cover
    counts     how many windows it has in each split
    curves     of each modality that it has; constants: of those that have no time, their values [D]
    absent     names of the modalities that it lacks
    cut_short  by modality: seconds that were read, of streams that are too long
    broken     why it cannot be shown; "" if it can
    """

    facts: RecordingFacts
    windows: dict[str, list[tuple[float, float]]]
    counts: dict[str, int]
    curves: dict[str, Curves] = field(default_factory=dict)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    absent: tuple[str, ...] = ()
    cut_short: dict[str, float] = field(default_factory=dict)
    broken: str = ""


def read_recordings(
    config: DataConfig, stored: Manifest, manifest: Manifest, splits: Sequence[str], count: int, seed: int
) -> list[ShownRecording]:
    """At most `MOST_SHOWN` recordings that have windows in these splits; one of each split, if there are enough.

    stored    the manifest as it is stored, whose one split has the shards of all recordings
    manifest  that of the windows
    """
    windowing = windowing_of(config.url, manifest, config.cache)
    shards = stored.split("recordings").shards
    starts = np.cumsum([0] + [shard.samples for shard in shards])
    found = []
    for row in _drawn(windowing, splits, min(count, MOST_SHOWN), seed):
        place = int(np.searchsorted(starts, row, side="right")) - 1
        found.append(_read(config, windowing, row, shards[place], row - int(starts[place])))
    return found


def _drawn(windowing: Windowing, splits: Sequence[str], count: int, seed: int) -> list[int]:
    """The rows of the recordings to show."""
    order = drawn_at_random(rng.key(seed, "preview whole recordings"), len(windowing.table), _MOST_LOOKED_AT)
    of = {row: set(windowing.recording(row)[1]) & set(splits) for row in order.tolist()}
    useful = [row for row in of if of[row]]
    first = [next((row for row in useful if split in of[row]), None) for split in splits]
    chosen = [row for row in dict.fromkeys([*first, *useful]) if row is not None]
    return chosen[:count]


def _read(config: DataConfig, windowing: Windowing, row: int, shard: Shard, own: int) -> ShownRecording:
    facts = windowing.table.facts(row)
    windows, of = windowing.recording(row)
    length = windowing.window_s
    names = np.array(of, dtype=np.str_)
    covered = {name: _stretches(windows.start_s[names == name], length) for name in dict.fromkeys(of)}
    counts = {name: of.count(name) for name in dict.fromkeys(of)}
    shown = ShownRecording(facts, covered, counts)
    chosen = {modality.name for modality in windowing_modalities(config, windowing)}
    try:
        numbers = facts.intervals[:, 2:]
        bad = np.isinf(numbers).any() or (numbers.shape[1] == 1 and np.isnan(numbers).any())  # one of several: unknown
        if bad or not np.isfinite(facts.intervals[:, :2]).all():
            raise DataError(f"recording {facts.key}: a label or its time is no number; pack the data set again")
        storage = Storage(config.url)
        index = index_of(storage, shard, config.cache)
        path = local_shard(storage, shard, ShardCache.of(config))
        with _opened(path) as file:
            for modality, stream in zip(windowing.modalities, facts.streams, strict=True):
                if modality.name in chosen and stream.steps:
                    _add(shown, _StoredStream(file, index, own, modality, stream))
    except DataError as error:
        return ShownRecording(facts, covered, counts, broken=str(error))
    absent = [n for n in sorted(chosen) if n not in shown.curves and n not in shown.constants]
    return ShownRecording(facts, covered, counts, shown.curves, shown.constants, tuple(absent), shown.cut_short)


def windowing_modalities(config: DataConfig, windowing: Windowing) -> list[Modality]:
    """The modalities that a configuration chooses."""
    return [m for m in windowing.modalities if config.modalities is None or m.name in config.modalities]


def _add(shown: ShownRecording, stream: _StoredStream) -> None:
    name, rate = stream.modality.name, stream.modality.rate_hz
    stream.check(shown.facts.key)
    steps = max(1, min(stream.facts.steps, _MOST_VALUES // stream.modality.variates))
    if is_static(stream.modality):
        shown.constants[name] = stream.values(0, 1)[0]
        return
    if steps < stream.facts.steps:
        shown.cut_short[name] = steps / rate
    shown.curves[name] = Curves.of(stream.values, steps, rate, stream.facts.start_s, most=_COLUMNS)


def _stretches(starts: np.ndarray, length: float) -> list[tuple[float, float]]:
    """Begin and length of the stretches of time that windows cover; `starts` ascending."""
    if not len(starts):
        return []
    new = np.flatnonzero(np.diff(starts) > length * (1 + 1e-9)) + 1
    first, last = np.concatenate([[0], new]), np.concatenate([new, [len(starts)]]) - 1
    return list(zip(starts[first].tolist(), (starts[last] + length - starts[first]).tolist(), strict=True))


def _opened(path: Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error


@dataclass(frozen=True)
class _StoredStream:
    """A modality of a recording in an open shard."""

    file: IO[bytes]
    index: ShardIndex
    row: int
    modality: Modality
    facts: StreamFacts

    @property
    def _header(self) -> bytes:
        return npy_header((self.facts.steps, self.modality.variates), _FLOAT32)

    @property
    def _offset(self) -> int:
        return int(self.index.columns([member_name(self.modality.name)])[0][self.row, 0])

    def check(self, key: str) -> None:
        """Raises DataError if the index does not point at the stream."""
        member = f"{key}.{member_name(self.modality.name)}"
        header = self._header
        head = self._bytes(self._offset - HEADER, HEADER + len(header)) if self._offset >= HEADER else b""
        if head[:_NAME].rstrip(b"\0") != member.encode() or head[HEADER:] != header:
            raise DataError(f"{self.file.name}: the index does not point at {member}; pack the data set again")

    def values(self, first: int, end: int) -> np.ndarray:
        """The steps [first, end), float32 [end - first, D]. Raises DataError."""
        width = self.modality.variates * _FLOAT32.itemsize
        data = self._bytes(self._offset + len(self._header) + first * width, (end - first) * width)
        values = np.frombuffer(data, _FLOAT32).reshape(-1, self.modality.variates)
        if np.isinf(values).any():
            raise DataError(f"{self.file.name}: {self.modality.name} has an infinite value; pack the data set again")
        return values

    def _bytes(self, offset: int, count: int) -> bytes:
        try:
            self.file.seek(offset)
            data = self.file.read(count)
        except OSError as error:
            raise StorageError(f"cannot read {self.file.name}: {error.strerror or error}") from error
        if len(data) != count:
            raise DataError(f"{self.file.name}: it ends too early; pack the data set again")
        return data
