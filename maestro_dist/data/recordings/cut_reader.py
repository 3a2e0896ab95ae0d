"""Read windows of recordings from the shards directly into the arrays of a batch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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

_NAME = 100  # bytes of the name in a tar header
_FLOAT32, _FLOAT64 = np.dtype("<f4"), np.dtype("<f8")


@dataclass(frozen=True)
class OpenWindows:
    """What an open shard knows about its n windows of R recordings; M modalities of the run.

    row      int64 [n]: the recording of each window
    first    int64 [n, M]: the first step of each modality in its stream
    steps    int64 [R, M]: length of the streams
    moments  int64 [n, M]: where the `prefix_moments` of each modality begin in the shard (the npy file); 0: it has none
    heads    bool [R, M]: whether the headers of a stream were checked and found right
    """

    row: np.ndarray
    first: np.ndarray
    steps: np.ndarray
    moments: np.ndarray
    heads: np.ndarray

    @staticmethod
    def of(windows: ShardWindows, columns: Sequence[int], moments: np.ndarray) -> OpenWindows:
        """For the modalities in these `columns` of `windows`."""
        chosen = list(columns)
        steps = windows.steps[:, chosen]
        return OpenWindows(windows.row, windows.first[:, chosen], steps, moments, np.zeros(steps.shape, dtype=bool))

    def forget(self) -> None:
        """The headers are to be checked again."""
        self.heads[:] = False


class CutReader:
    """Reads windows of recordings; has the methods of `WindowReader`."""

    def __init__(self, sample_format: SampleFormat, heartbeat: Heartbeat) -> None:
        """`heartbeat` is called for each sample."""
        self._format, self._heartbeat = sample_format, heartbeat
        self._modalities = sample_format.modalities
        ends = np.cumsum([modality.variates for modality in self._modalities]).tolist()
        self._variates = [slice(end - m.variates, end) for end, m in zip(ends, self._modalities, strict=True)]
        self._parts = [sample_format.part(modality) for modality in self._modalities]

    def read(
        self, numbers: np.ndarray, located: Located, wanted: np.ndarray, shards: OpenShards, empty: Empty
    ) -> Windows | None:
        """As `WindowReader.read`; None if a window is not as expected, which `sample` explains."""
        located.open(shards)
        keys = [""] * len(numbers)
        arrays = [
            empty((int(own.sum()), part.stop - part.start, modality.variates), _FLOAT32)
            for own, part, modality in zip(wanted.T, self._parts, self._modalities, strict=True)
        ]
        rows = np.cumsum(wanted, axis=0) - 1
        try:
            for group in located.groups:
                for place, row in zip(group.places.tolist(), group.rows.tolist(), strict=True):
                    keys[place] = group.shard.keys[row]
                    self._heartbeat(f"reading {group.shard.name}, sample {keys[place]}")
                    for column in np.flatnonzero(wanted[place]).tolist():
                        self._window(group.shard, row, column, shards, arrays[column][rows[place, column]])
                self._learn(group, wanted[group.places], shards, arrays, rows[group.places])
        except BadSample:
            return None
        targets = np.empty(len(numbers), dtype=np.int64 if self._format.classes else np.float32)
        width = sum(modality.variates for modality in self._modalities) if self._format.recording else 0
        recording = np.empty((len(numbers), width, 2), dtype=np.float32)
        for group in located.groups:
            targets[group.places] = group.shard.known.targets[group.rows]
            if width:
                recording[group.places] = group.shard.known.recording[group.rows]
        pairs = [recording[own, at] for own, at in zip(wanted.T, self._variates, strict=True)] if width else []
        return Windows(self._format, numbers, keys, targets, wanted, arrays, pairs)

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
        target = float(shard.known.targets[row])
        return DecodedSample(number, shard.keys[row], int(target) if self._format.classes else target, values, pairs)

    def _window(self, shard: OpenShard, row: int, column: int, shards: OpenShards, out: np.ndarray) -> None:
        """Read the part of a window of one modality that this rank keeps. NaN where there is no stream."""
        windows = _of(shard)
        part, steps = self._parts[column], int(windows.steps[windows.row[row], column])
        start = int(windows.first[row, column]) + part.start
        low, high = max(start, 0), min(start + len(out), steps)
        if low >= high:
            out[:] = np.nan
            return
        self._check_heads(shard, row, column, shards)
        out[: low - start], out[high - start :] = np.nan, np.nan
        self._fill(shard, row, self._value_offset(shard, row, column, low), out[low - start : high - start], shards)

    def _value_offset(self, shard: OpenShard, row: int, column: int, step: int) -> int:
        """Where a step of a stream is in the shard."""
        windows, modality = _of(shard), self._modalities[column]
        steps = int(windows.steps[windows.row[row], column])
        header = len(npy_header((steps, modality.variates), _FLOAT32))
        return int(shard.offsets[row, column + 1]) + header + step * modality.variates * _FLOAT32.itemsize

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
        self._fill(shard, row, int(shard.offsets[row, column + 1]) - HEADER, head, shards)
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
        """Mean and std of the recordings of R windows up to their ends: float64 [R, D, 2]."""
        windows, modality = _of(shard), self._modalities[column]
        steps = windows.steps[windows.row[rows], column]
        ends = np.clip(windows.first[rows, column] + modality.steps, 0, steps)
        blocks, variates = ends // BLOCK, modality.variates
        before = np.zeros((len(rows), variates, 3))
        rest = np.full((len(rows), BLOCK, variates), np.nan, dtype=_FLOAT32)
        for place, row in enumerate(rows.tolist()):
            block, end = int(blocks[place]), int(ends[place])
            if block:
                at = int(windows.moments[row, column])
                header = npy_header((int(steps[place]) // BLOCK, variates, 3), _FLOAT64)
                offset = at + len(header) + (block - 1) * variates * 3 * _FLOAT64.itemsize
                self._fill(shard, row, offset, before[place], shards)
            if end > block * BLOCK:
                offset = self._value_offset(shard, row, column, block * BLOCK)
                self._fill(shard, row, offset, rest[place, : end - block * BLOCK], shards)
        return statistics_at(before, rest)

    def _fill(self, shard: OpenShard, row: int, offset: int, out: np.ndarray, shards: OpenShards) -> None:
        """Fill an array from the file. Raises BadSample if the file ends before."""
        data: Any = out.reshape(-1).view(np.uint8)
        view = memoryview(data)
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


def _of(shard: OpenShard) -> OpenWindows:
    assert isinstance(shard.windows, OpenWindows)
    return shard.windows
