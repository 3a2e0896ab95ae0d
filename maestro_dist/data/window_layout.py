"""Where the windows of a sample are in its members, and which bytes of them a rank reads."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from maestro_dist.data.sample import SampleFormat
from maestro_dist.data.shard_index import HEADER, member_name
from maestro_dist.types import Modality


@dataclass(frozen=True)
class WindowLayout:
    """How the windows of one modality are stored, and which part of them is kept.

    variates  the columns of the modality, where the variates of all modalities are in a row
    stored    bytes of the npy file
    skipped   bytes of the steps before the part
    ending    end of the member's name in its tar header
    shape     shape of the part
    """

    name: str
    variates: slice
    header: np.ndarray
    stored: int
    skipped: int
    ending: bytes
    shape: tuple[int, int]
    dtype: np.dtype

    @staticmethod
    def of(sample_format: SampleFormat, end: int, modality: Modality) -> WindowLayout:
        """The layout of a modality. `end`: how many variates there are up to its last."""
        part, shape, dtype = sample_format.part(modality), sample_format.shape(modality), sample_format.dtype
        header = npy_header(shape, dtype)
        step_bytes = modality.variates * dtype.itemsize
        return WindowLayout(
            name=modality.name,
            variates=slice(end - modality.variates, end),
            header=np.frombuffer(header, dtype=np.uint8),
            stored=len(header) + shape[0] * step_bytes,
            skipped=part.start * step_bytes,
            ending=f".{member_name(modality.name, symbols=sample_format.symbols is not None)}".encode(),
            shape=(part.stop - part.start, modality.variates),
            dtype=dtype,
        )

    @property
    def bytes(self) -> int:
        """Bytes of the part."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def has_first_step(self) -> bool:
        """Whether the part has the first step. Of ranks that download parts, only the one that has it reads headers."""
        return not self.skipped and self.bytes > 0


class SampleParts:
    """Which bytes of a shard a rank downloads of a sample: its json member, and the rank's parts of its windows.

    Digests tell that the bytes are those that the index describes, so the headers of a window are checked once, by the
    rank with the first step.
    """

    def __init__(self, sample_format: SampleFormat) -> None:
        self._layouts = [WindowLayout.of(sample_format, 0, modality) for modality in sample_format.modalities]

    @property
    def bytes(self) -> int:
        """Bytes of a sample that has all modalities, without its json member."""
        return sum(layout.bytes for layout in self._layouts)

    def of(self, offsets: Sequence[int], sizes: Sequence[int], columns: Sequence[int]) -> list[tuple[int, int]]:
        """The parts [start, end), in bytes. `columns`: the numbers of the modalities that are wanted.

        `offsets` and `sizes` are those of the json member and then of each modality. A window that is stored in another
        way is read completely.
        """
        found = [(offsets[0] - HEADER, offsets[0] + sizes[0])]
        for column in columns:
            layout, offset, size = self._layouts[column], offsets[column + 1], sizes[column + 1]
            start = offset + len(layout.header) + layout.skipped
            if size != layout.stored:
                found.append((offset - HEADER, offset + size))
            elif layout.has_first_step:
                found.append((offset - HEADER, start + layout.bytes))
            else:
                found.append((start, start + layout.bytes))
        return found


@lru_cache(maxsize=1024)
def npy_header(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    """The header that `pack` writes before an array."""
    file = io.BytesIO()
    described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, described)
    return file.getvalue()
