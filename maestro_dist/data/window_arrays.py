"""The windows of a micro-batch, read from the shards directly into the arrays of the batch."""

from __future__ import annotations

import io
import operator
import os
from collections.abc import Iterator, Sequence

import numpy as np

from maestro_dist.data.sample import SampleFormat
from maestro_dist.data.shard_index import HEADER, member_name


class WindowArrays:
    """Arrays [R_j, T_j, D_j] (or their part for this rank) for the windows of a micro-batch.

    A window that is stored exactly as the format says is read by one system call, without a copy. Any other is left to
    `decode_sample`, which tells what is wrong with it.
    """

    def __init__(self, sample_format: SampleFormat, counts: Sequence[int]) -> None:
        """`counts` [M]: for how many samples of the batch each modality is read."""
        self._windows = [_Windows(sample_format, number, count) for number, count in enumerate(counts)]
        self.names = [modality.name for modality in sample_format.modalities]

    def read(self, file: int, column: int, key: bytes, offset: int, size: int) -> np.ndarray | None:
        """Read a window of modality `column`, whose content of `size` bytes starts at `offset`.

        Returns a view of the next row of the modality's array; None if the window, or the headers before it, are not
        exactly as expected.

        Raises:
            OSError: the file cannot be read.
        """
        return self._windows[column].read(file, key, offset, size)

    def not_allowed(self) -> Iterator[np.ndarray]:
        """The windows that have an infinite value, or a symbol that is not of the alphabet."""
        for windows in self._windows:
            for row in windows.not_allowed():
                yield windows.rows[row]

    def joined(self, column: int, values: Sequence[np.ndarray]) -> np.ndarray | None:
        """The complete array of a modality, if `values` are all its rows in order; else None."""
        windows = self._windows[column]
        same = len(values) == len(windows.array) == len(windows.rows)
        return windows.array if same and all(map(operator.is_, values, windows.rows)) else None


class _Windows:
    """The array of one modality. `rows`: views of the rows that were read."""

    def __init__(self, sample_format: SampleFormat, number: int, count: int) -> None:
        modality = sample_format.modalities[number]
        part, shape = sample_format.part(modality), sample_format.shape(modality)
        self.array = np.empty((count, part.stop - part.start, modality.variates), dtype=sample_format.dtype)
        self.rows: list[np.ndarray] = []
        self._spec = sample_format.symbols
        self._header = _npy_header(shape, sample_format.dtype)
        self._head = bytearray(HEADER + len(self._header))
        self._ending = f".{member_name(modality.name, symbols=self._spec is not None)}\0".encode()
        row_bytes = modality.variates * self.array.itemsize
        self._skipped, self._size = part.start * row_bytes, len(self._header) + shape[0] * row_bytes

    def read(self, file: int, key: bytes, offset: int, size: int) -> np.ndarray | None:
        if size != self._size:
            return None
        head, row = self._head, self.array[len(self.rows)]
        if self._skipped:
            done = os.preadv(file, [head], offset - HEADER)
            done += os.preadv(file, [row], offset + len(self._header) + self._skipped)
        else:
            done = os.preadv(file, [head, row], offset - HEADER)
        if done != len(head) + row.nbytes:  # the file ends, or one call cannot read so much
            return None
        if not head.startswith(key + self._ending) or not head.endswith(self._header):
            return None
        self.rows.append(row)
        return row

    def not_allowed(self) -> list[int]:
        numbers = self.array[: len(self.rows)]
        if not numbers.size:
            return []
        if self._spec is not None:
            highest = self._spec.alphabet
            return [] if numbers.max() <= highest else np.flatnonzero(numbers.max((1, 2)) > highest).tolist()
        # these reductions pass over NaN, and need no memory for a mask
        if np.fmax.reduce(numbers, axis=None) < np.inf and np.fmin.reduce(numbers, axis=None) > -np.inf:
            return []
        return np.flatnonzero(np.isinf(numbers).any((1, 2))).tolist()


def _npy_header(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    """The header that `pack` writes before an array."""
    file = io.BytesIO()
    described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, described)
    return file.getvalue()
