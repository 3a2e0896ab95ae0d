"""Decoded samples -> a ragged micro-batch: a modality has rows only for the samples that have it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from maestro_dist.data.sample import DecodedSample, SampleFormat
from maestro_dist.data.window_arrays import WindowArrays
from maestro_dist.types import Batch


def collate(
    samples: Sequence[DecodedSample], sample_format: SampleFormat, windows: WindowArrays | None = None
) -> Batch:
    """Stack the windows of each modality, [R_j, T_j, D_j]; also for 0 samples.

    `windows` has the arrays that windows were read into: where they are already stacked, nothing is copied.

    The batch holds numpy arrays, because reader processes do not import torch; `Batch.tensors` converts them.
    """
    names = [modality.name for modality in sample_format.modalities]
    arrays: dict[str, np.ndarray] = {}
    rows: dict[str, np.ndarray] = {}
    recording: dict[str, np.ndarray] = {}
    for column, modality in enumerate(sample_format.modalities):
        name = modality.name
        holders = [row for row, sample in enumerate(samples) if name in sample.values]
        part = sample_format.part(modality)
        values = [samples[row].values[name] for row in holders]
        stacked = None if windows is None else windows.joined(column, values)
        if stacked is None:
            length = part.stop - part.start
            stacked = np.empty((len(holders), length, modality.variates), dtype=sample_format.dtype)
            for target, window in enumerate(values):
                stacked[target] = window if len(window) == length else window[part]
        arrays[name] = stacked
        rows[name] = np.array(holders, dtype=np.int64)
        if sample_format.recording:
            pairs = np.empty((len(holders), modality.variates, 2), dtype=np.float32)
            for target, row in enumerate(holders):
                pairs[target] = samples[row].recording[name]
            recording[name] = pairs
    present = np.zeros((len(samples), len(names)), dtype=bool)
    for row, sample in enumerate(samples):
        present[row] = [name in sample.values for name in names]
    batch: Any = Batch  # its fields are typed as tensors
    collated: Batch = batch(
        values=arrays if sample_format.symbols is None else {},
        symbols={} if sample_format.symbols is None else arrays,
        rows=rows,
        present=present,
        sample=np.array([sample.number for sample in samples], dtype=np.int64),
        target=np.array([s.target for s in samples], dtype=np.int64 if sample_format.classes else np.float32),
        recording=recording,
        keys=[sample.key for sample in samples],
    )
    return collated
