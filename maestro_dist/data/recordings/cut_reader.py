"""Read windows of recordings from the shards directly into the arrays of a batch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from maestro_dist.data.moments import BLOCK, statistics_at
from maestro_dist.data.open_shards import OpenShard, OpenShards
from maestro_dist.data.recordings.windowing import ShardWindows
from maestro_dist.data.sample import BadSample, DecodedSample, SampleFormat
from maestro_dist.data.shard_index import HEADER, member_name
from maestro_dist.data.storage.retry import Heartbeat
from maestro_dist.data.window_layout import npy_header
from maestro_dist.data.window_reader import Located, ShardGroup, values_are_allowed
from maestro_dist.data.windows import Empty, Windows
from maestro_dist.errors import StorageError
from maestro_dist.types import Modality

_NAME = 100  # bytes of the name in a tar header
_FLOAT32, _FLOAT64 = np.dtype("<f4"), np.dtype("<f8")
_MOMENTS = 3 * _FLOAT64.itemsize  # bytes of the moments of a variate


@dataclass(frozen=True)
class OpenWindows:
    """What an open shard knows about its n windows of R recordings; M modalities of the run.

    row      int64 [n]: the recording of each window
    first    int64 [n, M]: the first step of each modality in its stream
    steps    int64 [R, M]: length of the streams
    ahead    int64 [R, M]: bytes of the header of each stream's npy file
    moments  int64 [n, M]: where the `prefix_moments` of each modality begin in the shard (the npy file); 0: it has none
    heads    bool [R, M]: whether the headers of a stream were checked and found right
    """

    row: np.ndarray
    first: np.ndarray
    steps: np.ndarray
    ahead: np.ndarray
    moments: np.ndarray
    heads: np.ndarray

    @staticmethod
    def of(
        windows: ShardWindows, modalities: Sequence[Modality], names: Sequence[str], moments: np.ndarray
    ) -> OpenWindows:
        """For these modalities of the run; `names`: of the columns of `windows`."""
        chosen = [names.index(modality.name) for modality in modalities]
        steps = windows.steps[:, chosen]
        ahead = np.empty_like(steps)
        for column, modality in enumerate(modalities):
            ahead[:, column] = [len(npy_header((n, modality.variates), _FLOAT32)) for n in steps[:, column].tolist()]
        heads = np.zeros(steps.shape, dtype=bool)
        return OpenWindows(windows.row, windows.first[:, chosen], steps, ahead, moments, heads)

    def forget(self) -> None:
        """The headers are to be checked again."""
        self.heads[:] = False

    def places(self, row: int, column: int, offset: int, sample_format: SampleFormat) -> StreamPlaces:
        """Where window `row` has what it needs of a modality. `offset`: of the stream's npy file."""
        modality, recording = sample_format.modalities[column], int(self.row[row])
        steps, part = int(self.steps[recording, column]), sample_format.part(modality)
        first, size = int(self.first[row, column]), modality.variates * _FLOAT32.itemsize
        begin = offset + int(self.ahead[recording, column])
        low, high = (min(max(first + step, 0), steps) for step in (part.start, part.stop))
        end = min(max(first + modality.steps, 0), steps) if sample_format.recording else 0
        block = end // BLOCK
        moments = 0
        if block:
            header = npy_header((steps // BLOCK, modality.variates, 3), _FLOAT64)
            moments = int(self.moments[row, column]) + len(header) + (block - 1) * modality.variates * _MOMENTS
        return StreamPlaces(
            begin,
            (begin + low * size, begin + high * size),
            (moments, moments + modality.variates * _MOMENTS if block else moments),
            (begin + block * BLOCK * size, begin + end * size),
        )


class StreamPlaces(NamedTuple):
    """Bytes [start, end) in a shard of what a window needs of one stream.

    first    where its first step is
    values   the values of the window that this rank keeps
    moments  the moments of the recording that were stored last before the end of the window; empty if there are none
    rest     the values after them, up to the end of the window
    """

    first: int
    values: tuple[int, int]
    moments: tuple[int, int]
    rest: tuple[int, int]


@dataclass(frozen=True)
class _Places:
    """Where B windows are; M modalities.

    keys    names of the windows
    offset  int64 [B, M]: where the values begin in the shard
    size    int64 [B, M]: bytes of the values
    skip    int64 [B, M]: bytes of the steps before them, at which there is no stream
    """

    keys: list[str]
    offset: np.ndarray
    size: np.ndarray
    skip: np.ndarray


class CutReader:
    """Reads windows of recordings; has the methods of `WindowReader`."""

    def __init__(self, sample_format: SampleFormat, heartbeat: Heartbeat) -> None:
        """`heartbeat` is called for each sample."""
        self._format, self._heartbeat = sample_format, heartbeat
        self._modalities = sample_format.modalities
        ends = np.cumsum([modality.variates for modality in self._modalities]).tolist()
        self._variates = [slice(end - m.variates, end) for end, m in zip(ends, self._modalities, strict=True)]
        self._parts = [sample_format.part(modality) for modality in self._modalities]
        self._begin = np.array([part.start for part in self._parts], dtype=np.int64)
        self._length = np.array([part.stop - part.start for part in self._parts], dtype=np.int64)
        self._step = np.array([m.variates * _FLOAT32.itemsize for m in self._modalities], dtype=np.int64)

    def read(
        self, numbers: np.ndarray, located: Located, wanted: np.ndarray, shards: OpenShards, empty: Empty
    ) -> Windows | None:
        """As `WindowReader.read`; None if a window is not as expected, which `sample` explains."""
        located.open(shards)
        shapes = zip(wanted.sum(0).tolist(), self._length.tolist(), self._modalities, strict=True)
        arrays = [empty((count, length, modality.variates), _FLOAT32) for count, length, modality in shapes]
        rows = np.cumsum(wanted, axis=0) - 1
        try:
            places = self._places(located, wanted, shards)
            self._read_values(located, wanted, shards, places, arrays)
            for group in located.groups:
                self._learn(group, wanted[group.places], shards, arrays, rows[group.places])
        except BadSample:
            return None
        targets = self._format.target_array(len(numbers))
        width = sum(modality.variates for modality in self._modalities) if self._format.recording else 0
        recording = np.empty((len(numbers), width, 2), dtype=np.float32)
        for group in located.groups:
            targets[group.places] = group.shard.known.targets[group.rows]
            if width:
                recording[group.places] = group.shard.known.recording[group.rows]
        pairs = [recording[own, at] for own, at in zip(wanted.T, self._variates, strict=True)] if width else []
        return Windows(self._format, numbers, places.keys, targets, wanted, arrays, pairs)

    def _places(self, located: Located, wanted: np.ndarray, shards: OpenShards) -> _Places:
        """Where the windows are. The headers of streams that are new are checked. Raises BadSample."""
        keys = [""] * len(wanted)
        first, steps, base = (np.empty(wanted.shape, dtype=np.int64) for _ in range(3))
        for group in located.groups:
            windows, at, own = _of(group.shard), group.places, group.rows
            recording = windows.row[own]
            first[at], steps[at] = windows.first[own], windows.steps[recording]
            base[at] = located.offsets[at, 1:] + windows.ahead[recording]
            for place, row in zip(at.tolist(), own.tolist(), strict=True):
                keys[place] = group.shard.keys[row]
            new = wanted[at] & ~windows.heads[recording]
            for number, column in np.argwhere(new).tolist() if new.any() else ():
                self._check_heads(group.shard, int(own[number]), column, shards)
        start = first + self._begin
        low = np.clip(start, 0, steps)
        high = np.maximum(np.clip(start + self._length, 0, steps), low)
        return _Places(keys, base + low * self._step, (high - low) * self._step, (low - start) * self._step)

    def _read_values(
        self, located: Located, wanted: np.ndarray, shards: OpenShards, places: _Places, arrays: list[np.ndarray]
    ) -> None:
        """Read all windows. NaN where there is no stream. Raises BadSample."""
        whole = self._length * self._step
        part = wanted & (places.size < whole)
        rows = np.cumsum(wanted, axis=0) - 1
        for place, column in np.argwhere(part).tolist() if part.any() else ():
            arrays[column][rows[place, column]] = np.nan
        begin = (rows * whole + np.where(places.size > 0, places.skip, 0)).tolist()
        offsets, sizes = places.offset.tolist(), places.size.tolist()
        columns = [[column for column, own in enumerate(row) if own] for row in wanted.tolist()]
        data, heartbeat, preadv = [_bytes(array) for array in arrays], self._heartbeat, os.preadv
        for group in located.groups:
            shard, file = group.shard, shards.descriptor(group.shard)
            for place, row in zip(group.places.tolist(), group.rows.tolist(), strict=True):
                heartbeat(f"reading {shard.name}, sample {places.keys[place]}")
                offset, size, at = offsets[place], sizes[place], begin[place]
                for column in columns[place]:
                    view = data[column][at[column] : at[column] + size[column]]
                    if shard.parts is not None or preadv(file, [view], offset[column]) != size[column]:
                        self._fill(shard, row, offset[column], view, shards)

    def sample(self, number: int, shard: OpenShard, row: int, wanted: np.ndarray, shards: OpenShards) -> DecodedSample:
        """One window, with the modalities of `wanted`, bool [M].

        Raises:
            BadSample: it is damaged; the message says how.
            StorageError: the file cannot be read.
        """
        values, pairs = {}, {}
        for column in np.flatnonzero(wanted).tolist():
            part, modality = self._parts[column], self._modalities[column]
            window = np.empty((part.stop - part.start, modality.variates), dtype=_FLOAT32)
            self._window(shard, row, column, shards, window)
            if not values_are_allowed(window, self._format):
                raise BadSample(f"{self._where(shard, row)}: {modality.name} has an infinite value")
            values[modality.name] = window
            if self._format.recording:
                found = self._statistics(shard, np.array([row]), column, shards)
                pairs[modality.name] = found[0].astype(np.float32)
        target = shard.known.targets[row].tolist()
        whole = self._format.classes and self._format.targets == 1
        return DecodedSample(number, shard.keys[row], int(target) if whole else target, values, pairs)

    def _window(self, shard: OpenShard, row: int, column: int, shards: OpenShards, out: np.ndarray) -> None:
        """Read the part of a window of one modality that this rank keeps. NaN where there is no stream."""
        windows = _of(shard)
        part, steps = self._parts[column], int(windows.steps[windows.row[row], column])
        start = int(windows.first[row, column]) + part.start
        low, high = max(start, 0), min(start + len(out), steps)
        out[:] = np.nan
        if low < high:
            self._check_heads(shard, row, column, shards)
            own = _bytes(out[low - start : high - start])
            self._fill(shard, row, self._value_offset(shard, row, column, low), own, shards)

    def _value_offset(self, shard: OpenShard, row: int, column: int, step: int) -> int:
        """Where a step of a stream is in the shard."""
        windows = _of(shard)
        header = int(windows.ahead[windows.row[row], column])
        return int(shard.offsets[row, column + 1]) + header + step * int(self._step[column])

    def _check_heads(self, shard: OpenShard, row: int, column: int, shards: OpenShards) -> None:
        """Check, once for each stream of an open shard, that the index points at it. Raises BadSample."""
        windows = _of(shard)
        recording = int(windows.row[row])
        if windows.heads[recording, column]:
            return
        modality, name = self._modalities[column], shard.keys[row].rpartition("-")[0]
        steps = int(windows.steps[recording, column])
        header = npy_header((steps, modality.variates), _FLOAT32)
        size = len(header) + steps * modality.variates * _FLOAT32.itemsize
        head = np.empty(HEADER + len(header), dtype=np.uint8)
        self._fill(shard, row, int(shard.offsets[row, column + 1]) - HEADER, _bytes(head), shards)
        member = f"{name}.{member_name(modality.name)}"
        right = head[:_NAME].tobytes().rstrip(b"\0") == member.encode() and head[HEADER:].tobytes() == header
        if not right or int(shard.sizes[row, column + 1]) != size:
            raise BadSample(f"{self._where(shard, row)}: the index does not point at {member}; pack the data set again")
        windows.heads[recording, column] = True

    def _learn(
        self, group: ShardGroup, wanted: np.ndarray, shards: OpenShards, arrays: list[np.ndarray], rows: np.ndarray
    ) -> None:
        """Check the values and compute the statistics of windows that are read for the first time. Raises BadSample."""
        known = group.shard.known
        new = wanted & ~known.allowed[group.rows]
        for column in np.flatnonzero(new.any(axis=0)).tolist():
            own = new[:, column]
            if not values_are_allowed(arrays[column][rows[own, column]], self._format):
                raise BadSample("")
            if self._format.recording:
                found = self._statistics(group.shard, group.rows[own], column, shards)
                known.recording[group.rows[own], self._variates[column]] = found
            known.allowed[group.rows[own], column] = True

    def _statistics(self, shard: OpenShard, rows: np.ndarray, column: int, shards: OpenShards) -> np.ndarray:
        """Mean and std of the recordings of R windows up to their ends: float64 [R, D, 2]. Raises BadSample."""
        windows, modality = _of(shard), self._modalities[column]
        variates = modality.variates
        before = np.zeros((len(rows), variates, 3))
        rest = np.full((len(rows), BLOCK, variates), np.nan, dtype=_FLOAT32)
        for place, row in enumerate(rows.tolist()):
            places = windows.places(row, column, int(shard.offsets[row, column + 1]), self._format)
            for array, (start, end) in ((before, places.moments), (rest, places.rest)):
                if start < end:
                    self._fill(shard, row, start, _bytes(array[place])[: end - start], shards)
        found = statistics_at(before, rest)
        if not np.isfinite(found).all():
            where = self._where(shard, int(rows[np.argmin(np.isfinite(found).all(axis=(1, 2)))]))
            raise BadSample(f"{where}: the statistics of {modality.name} are damaged; pack the data set again")
        return found

    def _fill(self, shard: OpenShard, row: int, offset: int, view: memoryview, shards: OpenShards) -> None:
        """Fill memory from the file. Raises BadSample if the file ends before."""
        try:
            file = shards.fetch(shard, [(offset, offset + len(view))])
            while view:
                count = os.preadv(file, [view], offset)  # one call reads at most 2 GiB
                if not count:
                    raise BadSample(f"{self._where(shard, row)}: the shard ends before it; pack the data set again")
                view, offset = view[count:], offset + count
        except OSError as error:
            raise StorageError(f"cannot read {shard.path}: {error.strerror or error}") from error

    def _where(self, shard: OpenShard, row: int) -> str:
        return f"{shard.name}, sample {shard.keys[row]}"


def _bytes(array: np.ndarray) -> memoryview:
    data: Any = array.reshape(-1).view(np.uint8)  # reshape, because an empty array cannot be cast
    return memoryview(data)


def _of(shard: OpenShard) -> OpenWindows:
    assert isinstance(shard.windows, OpenWindows)
    return shard.windows
