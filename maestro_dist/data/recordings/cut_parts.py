"""Which bytes of a remote shard of recordings a rank downloads of a window."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from maestro_dist.data.recordings.cut_reader import OpenWindows
from maestro_dist.data.sample import SampleFormat
from maestro_dist.data.shard_index import HEADER


@dataclass(frozen=True)
class CutParts:
    """The parts of a shard that its windows consist of: their values, and what their statistics are made of.

    offsets, sizes  int64 [n, 1 + M] of the members of each window's recording: its json member, then each modality
    """

    sample_format: SampleFormat
    offsets: np.ndarray
    sizes: np.ndarray
    windows: OpenWindows

    def of(self, row: int) -> list[tuple[int, int]]:
        """The parts [start, end), in bytes, of window `row`. The headers of a stream belong to each of its windows."""
        found = []
        for column in np.flatnonzero(self.sizes[row, 1:]).tolist():
            offset = int(self.offsets[row, column + 1])
            places = self.windows.places(row, column, offset, self.sample_format)
            found += [(offset - HEADER, places.first), places.values, places.moments, places.rest]
        return [part for part in found if part[0] < part[1]]
