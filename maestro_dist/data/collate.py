"""Decoded samples -> a ragged micro-batch: a modality has rows only for the samples that have it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from maestro_dist.data.sample import DecodedSample, SampleFormat
from maestro_dist.data.windows import Empty
from maestro_dist.types import Batch


def collate(samples: Sequence[DecodedSample], sample_format: SampleFormat, empty: Empty = np.empty) -> Batch:
    """Stack the windows of each modality, [R_j, T_j, D_j], in arrays made by `empty`; also for 0 samples.

    The batch holds numpy arrays, because reader processes do not import torch; `Batch.tensors` converts them.
    """
    names = [modality.name for modality in sample_format.modalities]
    arrays: dict[str, np.ndarray] = {}
    rows: dict[str, np.ndarray] = {}
    recording: dict[str, np.ndarray] = {}
    for modality in sample_format.modalities:
        name = modality.name
        holders = [row for row, sample in enumerate(samples) if name in sample.values]
        part = sample_format.part(modality)
        length = part.stop - part.start
        stacked = empty((len(holders), length, modality.variates), sample_format.dtype)
        for target, row in enumerate(holders):
            window = samples[row].values[name]
            stacked[target] = window if len(window) == length else window[part]
        arrays[name] = stacked
        rows[name] = np.array(holders, dtype=np.int64)
        if sample_format.recording:
            pairs = np.empty((len(holders), modality.variates, 2), dtype=np.float32)
            for target, row in enumerate(holders):
                pairs[target] = samples[row].recording[name]
            recording[name] = pairs
    targets = sample_format.target_array(len(samples))
    targets[:] = np.array([sample.target for sample in samples], dtype=targets.dtype).reshape(targets.shape)
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
        target=targets,
        recording=recording,
        keys=[sample.key for sample in samples],
    )
    return collated
