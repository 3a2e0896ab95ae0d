"""Micro-batches of several sources as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from maestro_dist.data.sample import SampleFormat
from maestro_dist.data.windows import Empty
from maestro_dist.types import Batch


class SourceBatch:
    """A micro-batch of one source (numpy arrays), and where its samples go.

    places  int64 [n]: place of each of its samples in the merged micro-batch, each once
    start   number of its first sample among the samples of all sources
    """

    def __init__(self, batch: Batch, places: np.ndarray, start: int) -> None:
        self.batch, self.places, self.start = batch, places, start


def merged(parts: Sequence[SourceBatch], layout: SampleFormat, empty: Empty, fields: dict[str, Any]) -> Batch:
    """The micro-batch with the samples of all parts in the order of their places.

    layout  the modalities of all sources; a sample of a source that lacks one does not have it
    empty   makes the arrays of the windows
    fields  further fields of `Batch`
    """
    views = max((part.batch.views for part in parts), default=1)
    kept = np.sort(np.concatenate([np.empty(0, dtype=np.int64), *(part.places for part in parts)]))
    rank = [np.searchsorted(kept, part.places) for part in parts]  # of each sample, among those that are there
    at = [np.concatenate([own + view * len(kept) for view in range(views)]) for own in rank]
    total, names = views * len(kept), [modality.name for modality in layout.modalities]
    present = np.zeros((total, len(names)), dtype=bool)
    sample = np.zeros(total, dtype=np.int64)
    target = layout.target_array(total)
    keys = np.empty(len(kept), dtype=object)
    for part, own, places in zip(parts, rank, at, strict=True):
        sample[places] = np.asarray(part.batch.sample) + part.start
        target[places] = part.batch.target
        keys[own] = part.batch.keys
    values: dict[str, np.ndarray] = {}
    rows: dict[str, np.ndarray] = {}
    recording: dict[str, np.ndarray] = {}
    for column, modality in enumerate(layout.modalities):
        name = modality.name
        stored: list[Any] = [(p.batch.values or p.batch.symbols, p.batch, q) for p, q in zip(parts, at, strict=True)]
        having = [(kind[name], of_part, places) for kind, of_part, places in stored if name in kind]
        own_rows = [places[np.asarray(of_part.rows[name])] for _, of_part, places in having]
        together = np.concatenate([np.empty(0, dtype=np.int64), *own_rows])
        rows[name] = np.sort(together)
        present[together, column] = True
        length = layout.part(modality)
        values[name] = empty((len(together), length.stop - length.start, modality.variates), layout.dtype)
        if layout.recording:
            recording[name] = np.empty((len(together), modality.variates, 2), dtype=np.float32)
        for (array, of_part, _), at_rows in zip(having, own_rows, strict=True):
            to = np.searchsorted(rows[name], at_rows)
            values[name][to] = array
            if layout.recording:
                recording[name][to] = of_part.recording[name]
    batch: Any = Batch  # its fields are typed as tensors
    whole: Batch = batch(
        values=values if layout.symbols is None else {},
        symbols={} if layout.symbols is None else values,
        rows=rows,
        present=present,
        sample=sample,
        target=target,
        recording=recording,
        keys=keys.tolist(),
        bad=[line for part in parts for line in part.batch.bad],
        bad_samples=[number + part.start for part in parts for number in part.batch.bad_samples],
        views=views,
        **fields,
    )
    return whole
