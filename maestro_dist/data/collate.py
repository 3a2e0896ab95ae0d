"""Decoded samples -> a ragged micro-batch of numpy arrays: only what is observed is carried."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from maestro_dist.data.sample import Layout, Sample
from maestro_dist.types import Batch


def collate(samples: Sequence[Sample], layout: Layout) -> Batch:
    """Stack the rows of each modality; works for 0 samples too (R_j = 0, B = 0).

    Arrays stand where `Batch` has tensors (`Batch.tensors` makes them): reader processes do without torch.
    """
    names = [modality.name for modality in layout.modalities]
    arrays: dict[str, np.ndarray] = {}
    rows: dict[str, np.ndarray] = {}
    recording: dict[str, np.ndarray] = {}
    for modality in layout.modalities:
        name = modality.name
        having = [row for row, sample in enumerate(samples) if name in sample.values]
        part = layout.part(modality)
        stacked = np.empty((len(having), part.stop - part.start, modality.variates), dtype=layout.dtype)
        for target, row in enumerate(having):
            stacked[target] = samples[row].values[name][part]
        arrays[name] = stacked
        rows[name] = np.array(having, dtype=np.int64)
        if layout.recording:
            pairs = np.empty((len(having), modality.variates, 2), dtype=np.float32)
            for target, row in enumerate(having):
                pairs[target] = samples[row].recording[name]
            recording[name] = pairs
    present = np.zeros((len(samples), len(names)), dtype=bool)
    for row, sample in enumerate(samples):
        present[row] = [name in sample.values for name in names]
    batch: Any = Batch  # whose tensors are arrays here
    made: Batch = batch(
        values=arrays if layout.symbols is None else {},
        symbols={} if layout.symbols is None else arrays,
        rows=rows,
        present=present,
        sample=np.array([sample.number for sample in samples], dtype=np.int64),
        target=np.array([s.target for s in samples], dtype=np.int64 if layout.classes else np.float32),
        recording=recording,
        keys=[sample.key for sample in samples],
    )
    return made
