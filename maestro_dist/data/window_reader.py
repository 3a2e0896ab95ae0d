"""Read the windows of a micro-batch from the shards directly into the arrays of the batch."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import itemgetter
from typing import Any

import numpy as np

from maestro_dist.data.open_shards import OpenShard, OpenShards
from maestro_dist.data.sample import BadSample, SampleFormat, decode_meta
from maestro_dist.data.shard_index import HEADER, META
from maestro_dist.data.storage.retry import Heartbeat
from maestro_dist.data.window_layout import SampleParts, WindowLayout
from maestro_dist.data.windows import Empty, Windows

_NAME = 100  # bytes of the name in a tar header
_GAP = 4096  # bytes between two pieces of a file that are rather read than left to another system call
_LARGE = 1 << 14  # bytes of a window from which it costs less to read it alone than to skip what is before it
_MOST_BUFFERS = 1000  # of one system call; Linux allows 1,024
_SKIPPED = memoryview(bytearray(_GAP))  # where the bytes between two pieces go


@dataclass(frozen=True)
class ShardGroup:
    """The samples of a micro-batch that are in one shard: their places in the batch, and their rows in the shard."""

    shard: OpenShard
    places: np.ndarray
    rows: np.ndarray


@dataclass(frozen=True)
class Located:
    """Where the B samples of a micro-batch are; M modalities, and the json member before them.

    offsets, sizes  [B, 1 + M], as in `OpenShard`
    read, allowed   bool [B] and [B, M], as in `KnownSamples`
    """

    groups: list[ShardGroup]
    offsets: np.ndarray
    sizes: np.ndarray
    read: np.ndarray
    allowed: np.ndarray

    @staticmethod
    def of(groups: list[ShardGroup], samples: int, members: int) -> Located:
        """Look all of them up at once: every look into a small array takes microseconds."""
        offsets, sizes = (np.empty((samples, members), dtype=np.int64) for _ in range(2))
        read, allowed = np.empty(samples, dtype=bool), np.empty((samples, members - 1), dtype=bool)
        for group in groups:
            places, rows, shard = group.places, group.rows, group.shard
            offsets[places], sizes[places] = shard.offsets[rows], shard.sizes[rows]
            read[places], allowed[places] = shard.known.read[rows], shard.known.allowed[rows]
        return Located(groups, offsets, sizes, read, allowed)

    def open(self, shards: OpenShards) -> None:
        """Open the files, as far as they are not. What was known about a file that has changed does not hold."""
        for group in self.groups:
            known = group.shard.known
            before = known.forgotten
            shards.descriptor(group.shard)
            if known.forgotten != before:
                self.read[group.places], self.allowed[group.places] = False, False

    @property
    def present(self) -> np.ndarray:
        """bool [B, M]: which samples have which modalities."""
        return self.sizes[:, 1:] > 0


class WindowReader:
    """Reads windows exactly as `pack` writes them, with one system call for a sample and without a copy.

    Anything else, damage too, is left to `decode_sample`, which tells what is wrong. What was found to be right is not
    checked again while the shard is kept open.
    """

    def __init__(self, sample_format: SampleFormat, heartbeat: Heartbeat) -> None:
        """`heartbeat` is called for each sample."""
        self._format, self._heartbeat = sample_format, heartbeat
        modalities = sample_format.modalities
        ends = accumulate(modality.variates for modality in modalities)
        self._layouts = [WindowLayout.of(sample_format, end, m) for end, m in zip(ends, modalities, strict=True)]
        self._parts = SampleParts(sample_format)
        self._lengths = np.array([layout.stored for layout in self._layouts], dtype=np.int64)

    def read(
        self,
        numbers: np.ndarray,
        located: Located,
        wanted: np.ndarray,
        shards: OpenShards,
        empty: Empty,
    ) -> Windows | None:
        """The windows of `wanted`, bool [B, M], of the samples `numbers` [B]; None if any is not exactly as expected.

        `shards` gives the open files; what is missing of a shard that is read in parts is downloaded.

        Raises:
            OSError: a file cannot be read.
            DataError, StorageError: as from `shards`.
        """
        if ((located.sizes[:, 1:] != self._lengths) & wanted).any():
            return None
        located.open(shards)
        keys = [""] * len(numbers)
        new = wanted & ~located.allowed
        arrays = _Arrays(self._layouts, wanted, empty, heads=not located.read.all() or bool(new.any()))
        offsets = located.offsets.tolist()
        for group in located.groups:
            places, rows = group.places.tolist(), group.rows.tolist()
            for place, row in zip(places, rows, strict=True):
                keys[place] = group.shard.keys[row]
            if not self._read_shard(group.shard, zip(places, rows, strict=True), shards, offsets, arrays):
                return None
        if not arrays.heads_are_right(keys) or not self._values_are_right(located, new, arrays):
            return None
        return self._windows(numbers, keys, located, arrays)

    def _read_shard(
        self,
        shard: OpenShard,
        samples: Iterable[tuple[int, int]],
        shards: OpenShards,
        offsets: Sequence[Sequence[int]],
        arrays: _Arrays,
    ) -> bool:
        """Read samples (place, row) of one shard. Whether their json members are right, and no member is cut."""
        file, heartbeat, in_parts = shards.descriptor(shard), self._heartbeat, shard.parts is not None
        for place, row in samples:
            heartbeat(f"reading {shard.name}, sample {shard.keys[row]}")
            offset = offsets[place]
            if shard.blocks is not None:
                columns = arrays.columns[place]
                file = shards.fetch(shard, self._parts.of(offset, shard.sizes[row].tolist(), columns))
            known = shard.known.read[row]
            if known and arrays.reads_one_by_one:
                if not arrays.read(file, place, offset):
                    return False
                continue
            pieces = arrays.pieces(place, offset, in_parts=in_parts)
            if known:
                if not _read(file, pieces):
                    return False
                continue
            if not arrays.reads_heads:
                return False  # the file was replaced just now
            meta = bytearray(HEADER + int(shard.sizes[row, 0]))
            pieces.append((offset[0] - HEADER, memoryview(meta)))
            if not _read(file, sorted(pieces, key=itemgetter(0))):
                return False
            if not self._learn(shard, row, bytes(meta)):
                return False
        return True

    def _learn(self, shard: OpenShard, row: int, meta: bytes) -> bool:
        """Remember what the json member of a sample says. Whether it is right."""
        key = shard.keys[row]
        if meta[:_NAME].rstrip(b"\0") != f"{key}.{META}".encode():
            return False
        present = shard.sizes[row, 1:].tolist()
        names = [layout.name for layout, size in zip(self._layouts, present, strict=True) if size]
        try:
            sample = decode_meta(row, key, meta[HEADER:], names, self._format, shard.name)
        except BadSample:
            return False
        known = shard.known
        known.targets[row] = sample.target
        for layout in self._layouts:
            if layout.name in sample.recording:
                known.recording[row, layout.variates] = sample.recording[layout.name]
        known.read[row] = True
        return True

    def _values_are_right(self, located: Located, new: np.ndarray, arrays: _Arrays) -> bool:
        """Whether all values are allowed. Each window of an open shard is checked once; `new`, bool [B, M]: now."""
        for column in np.flatnonzero(new.any(0)).tolist():
            if not values_are_allowed(arrays.values[column], self._format):
                return False
        for group in located.groups if new.any() else ():
            group.shard.known.allowed[group.rows] |= arrays.wanted[group.places]
        return True

    def _windows(self, numbers: np.ndarray, keys: list[str], located: Located, arrays: _Arrays) -> Windows:
        sample_format, wanted = self._format, arrays.wanted
        targets = sample_format.target_array(len(numbers))
        width = sum(layout.shape[1] for layout in self._layouts) if sample_format.recording else 0
        recording = np.empty((len(numbers), width, 2), dtype=np.float32)
        for group in located.groups:
            targets[group.places] = group.shard.known.targets[group.rows]
            if width:
                recording[group.places] = group.shard.known.recording[group.rows]
        pairs = [recording[wanted[:, n], layout.variates] for n, layout in enumerate(self._layouts)] if width else []
        return Windows(sample_format, numbers, keys, targets, wanted, arrays.values, pairs)


Piece = tuple[int, memoryview]
"""An offset in a file, and where the bytes from there on go."""


class _Arrays:
    """The arrays of a micro-batch: values and headers of the windows `wanted`, bool [B, M].

    values   M arrays [R_j, T_j, D_j]
    columns  for each sample, the numbers of the modalities that are wanted
    """

    def __init__(self, layouts: Sequence[WindowLayout], wanted: np.ndarray, empty: Empty, *, heads: bool) -> None:
        """`heads`: read the headers, too."""
        self.wanted, self._layouts = wanted, layouts
        counts = wanted.sum(0).tolist()
        self.values = [empty((n, *layout.shape), layout.dtype) for n, layout in zip(counts, layouts, strict=True)]
        sizes = [HEADER + len(layout.header) for layout in layouts]
        self._heads = [np.empty((n * heads, size), dtype=np.uint8) for n, size in zip(counts, sizes, strict=True)]
        self._bytes = [_bytes(array) for array in self.values]
        self._head_bytes = [_bytes(array) for array in self._heads]
        self._lengths = [
            (head, math.prod(layout.shape) * layout.dtype.itemsize, layout.skipped)
            for head, layout in zip(sizes, layouts, strict=True)
        ]
        self._ahead = [head - HEADER + skipped for head, _, skipped in self._lengths]
        self._sizes = [length for _, length, _ in self._lengths]
        self.reads_one_by_one = not heads and sum(self._sizes) >= _LARGE * len(self._sizes)
        self.columns = [[column for column, own in enumerate(row) if own] for row in wanted.tolist()]
        self._rows = (np.cumsum(wanted, axis=0) - 1).tolist()
        self._has_head = wanted.copy() if heads else np.zeros_like(wanted)
        self.reads_heads = heads

    def pieces(self, place: int, offsets: Sequence[int], *, in_parts: bool) -> list[Piece]:
        """The pieces of a file that hold the sample at `place`; `offsets`: of its members, the json member first.

        `in_parts`: the file has the bytes of `SampleParts` only, which leaves out some headers.
        """
        rows, sizes, data = self._rows[place], self._sizes, self._bytes
        if not self.reads_heads:
            return [
                (offsets[n + 1] + self._ahead[n], data[n][rows[n] * sizes[n] : (rows[n] + 1) * sizes[n]])
                for n in self.columns[place]
            ]
        pieces = []
        for column in self.columns[place]:
            row, (head, length, skipped) = rows[column], self._lengths[column]
            at = offsets[column + 1] - HEADER
            if in_parts and not self._layouts[column].has_first_step:
                self._has_head[place, column] = False
            else:
                pieces.append((at, self._head_bytes[column][row * head : (row + 1) * head]))
            pieces.append((at + head + skipped, data[column][row * length : (row + 1) * length]))
        return pieces

    def read(self, file: int, place: int, offsets: Sequence[int]) -> bool:
        """Read the windows of the sample at `place`, without headers; `offsets` as in `pieces`. Whether none is cut."""
        rows, sizes, data, ahead, read = self._rows[place], self._sizes, self._bytes, self._ahead, os.preadv
        for n in self.columns[place]:
            size, row = sizes[n], rows[n]
            if read(file, [data[n][row * size : row * size + size]], offsets[n + 1] + ahead[n]) != size:
                return False
        return True

    def heads_are_right(self, keys: Sequence[str]) -> bool:
        """Whether each window has its name in the tar header, and the header of its npy file, where they were read."""
        if not self.reads_heads:
            return True
        encoded = [key.encode() for key in keys]
        for column, layout in enumerate(self._layouts):
            heads, own = self._heads[column], self._has_head[:, column]
            if not own.all():
                heads = heads[own[self.wanted[:, column]]]
            names = [(encoded[n] + layout.ending).ljust(_NAME, b"\0") for n in np.flatnonzero(own).tolist()]
            if heads[:, :_NAME].tobytes() != b"".join(names) or (heads[:, HEADER:] != layout.header).any():
                return False
        return True


def _bytes(array: np.ndarray) -> memoryview:
    data: Any = array.reshape(-1).view(np.uint8)  # reshape, because an empty array cannot be cast
    return memoryview(data)


def _read(file: int, pieces: Sequence[Piece]) -> bool:
    """Fill all pieces from a file, with as few system calls as possible. Whether it was long enough.

    One call may read fewer bytes than it is asked for (it ends at 2 GiB); the answer is false then, too.
    """
    buffers: list[memoryview] = []
    start = end = 0
    for offset, buffer in pieces:
        gap = offset - end
        if buffers and (gap < 0 or gap > _GAP or len(buffers) > _MOST_BUFFERS):
            if os.preadv(file, buffers, start) != end - start:
                return False
            buffers = []
        if not buffers:
            start = offset
        elif gap:
            buffers.append(_SKIPPED[:gap])
        buffers.append(buffer)
        end = offset + len(buffer)
    return not buffers or os.preadv(file, buffers, start) == end - start


def values_are_allowed(values: np.ndarray, sample_format: SampleFormat) -> bool:
    """Whether no value is infinite, and each symbol is of the alphabet."""
    if not values.size:
        return True
    if sample_format.symbols is not None:
        return bool(values.max() <= sample_format.symbols.alphabet)
    values = values.reshape(-1)
    with np.errstate(all="ignore"):
        if np.isfinite(np.add.reduce(values)):  # one pass; a missing value (NaN) makes two more necessary
            return True
    # these reductions pass over NaN, and need no memory for a mask
    return bool(np.fmax.reduce(values) != np.inf and np.fmin.reduce(values) != -np.inf)
