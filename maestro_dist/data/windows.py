"""The windows of a micro-batch, in the arrays of the batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from maestro_dist.data.sample import DecodedSample, SampleFormat
from maestro_dist.types import Batch

Empty = Callable[[tuple[int, ...], np.dtype], np.ndarray]
"""Makes an array that is not yet filled, as `np.empty(shape, dtype)`."""


@dataclass(frozen=True)
class Windows:
    """The windows and targets of a micro-batch of B samples, M modalities; R_j samples have modality j.

    present    bool [B, M]
    arrays     M arrays [R_j, T_j, D_j], or the part of the steps that this rank keeps
    recording  M arrays [R_j, D_j, 2]: mean and std of the recording; empty if the data set has none
    """

    format: SampleFormat
    numbers: np.ndarray
    keys: list[str]
    targets: np.ndarray
    present: np.ndarray
    arrays: list[np.ndarray]
    recording: list[np.ndarray]

    def batch(self) -> Batch:
        """The micro-batch, with numpy arrays."""
        names = [modality.name for modality in self.format.modalities]
        values = dict(zip(names, self.arrays, strict=True))
        batch: Any = Batch  # its fields are typed as tensors
        whole: Batch = batch(
            values=values if self.format.symbols is None else {},
            symbols={} if self.format.symbols is None else values,
            rows={name: np.flatnonzero(column) for name, column in zip(names, self.present.T, strict=True)},
            present=self.present,
            sample=self.numbers,
            target=self.targets,
            recording=dict(zip(names, self.recording, strict=True)) if self.recording else {},
            keys=self.keys,
        )
        return whole

    def twice(self, left: np.ndarray, empty: Empty) -> Windows:
        """The same samples twice, the second time with only the modalities of `left`, bool [B, M]; each key once.

        `empty` makes the arrays of the windows.
        """
        left = left & self.present
        kept = [left[own, number] for number, own in enumerate(self.present.T)]  # of the rows of each array
        return replace(
            self,
            numbers=np.tile(self.numbers, 2),
            targets=np.concatenate([self.targets, self.targets]),
            present=np.concatenate([self.present, left]),
            arrays=[_with_some_again(array, rows, empty) for array, rows in zip(self.arrays, kept, strict=True)],
            recording=[
                np.concatenate([p, p[rows]]) for p, rows in zip(self.recording, kept, strict=bool(self.recording))
            ],
        )

    def samples(self) -> dict[int, DecodedSample]:
        """The samples one by one, by their place; their windows are views of the arrays."""
        names = [modality.name for modality in self.format.modalities]
        row_of, targets = np.cumsum(self.present, axis=0) - 1, self.targets.tolist()
        found = {}
        for place, number in enumerate(self.numbers.tolist()):
            own = [(column, row_of[place, column]) for column in np.flatnonzero(self.present[place]).tolist()]
            values = {names[column]: self.arrays[column][row] for column, row in own}
            pairs = {names[column]: self.recording[column][row] for column, row in own} if self.recording else {}
            found[place] = DecodedSample(number, self.keys[place], targets[place], values, pairs)
        return found


def _with_some_again(array: np.ndarray, rows: np.ndarray, empty: Empty) -> np.ndarray:
    """The array, and after it its `rows`, bool [R], once more."""
    both = empty((len(array) + int(rows.sum()), *array.shape[1:]), array.dtype)
    both[: len(array)] = array
    np.compress(rows, array, axis=0, out=both[len(array) :])
    return both
