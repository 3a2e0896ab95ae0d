"""A split as arrays, read through the project's own reader; its normalization; masked copies of training samples."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np

from maestro_dist import rng
from maestro_dist.data.manifest import Manifest
from maestro_dist.data.missing import evaluation_mask
from maestro_dist.data.reader import SplitSource, presence
from maestro_dist.data.subjects import keys_and_subjects
from maestro_dist.errors import ConfigError
from maestro_dist.types import Modality


@dataclass(frozen=True)
class Windows:
    """N samples in manifest order.

    values   float32 [N, T_j, D_j] by modality, NaN where a step or the whole modality is missing
    present  bool [N, M], modalities sorted by name
    always   bool [M]: modalities that are never removed
    target   int64 [N]
    key, subject  str [N]
    recording     float32 [N, D_j, 2] by modality: mean and std of the recording so far; empty where the data has none
    """

    names: tuple[str, ...]
    values: dict[str, np.ndarray]
    present: np.ndarray
    always: np.ndarray
    target: np.ndarray
    key: np.ndarray
    subject: np.ndarray
    recording: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.target)


def read_windows(source: SplitSource) -> Windows:
    """All samples of a split. Raises DataError where one is bad."""
    manifest, modalities = source.manifest, source.modalities
    samples = manifest.split(source.split).samples
    values = {m.name: np.full((samples, m.steps, m.variates), np.nan, np.float32) for m in modalities}
    recording = {}
    if manifest.recording:
        recording = {m.name: np.full((samples, m.variates, 2), np.nan, np.float32) for m in modalities}
    target = np.empty(samples, np.int64)
    with closing(source.open()) as reader:
        for number in range(samples):
            sample = reader.decode(number, reader.stored(number))
            target[number] = sample.target
            for name, array in sample.values.items():
                values[name][number] = array
            for name, pair in sample.recording.items():
                recording[name][number] = pair
    present = presence(source)
    key, subject = keys_and_subjects(source)
    names = tuple(m.name for m in modalities)
    always = np.array([m.always for m in modalities])
    return Windows(names, values, present, always, target, key, subject, recording)


def normalised(windows: Windows, how: str) -> Windows:
    """The windows normalized by their own mean and std or by their recording's; unchanged with `dataset`.

    A scale that is the same for all samples changes neither baseline.
    """
    if how == "dataset":
        return windows
    if how == "recording" and not windows.recording:
        raise ConfigError("baseline.normalize: recording, but the data has no statistics of recordings")
    changed = {}
    for name, values in windows.values.items():
        if how == "recording":
            mean, std = windows.recording[name][:, None, :, 0], windows.recording[name][:, None, :, 1]
        else:
            observed = ~np.isnan(values)
            count = np.maximum(observed.sum(1, keepdims=True), 1)
            mean = np.where(observed, values, 0).sum(1, keepdims=True, dtype=np.float64) / count
            spread = np.where(observed, values - mean, 0) ** 2
            std = np.sqrt(spread.sum(1, keepdims=True, dtype=np.float64) / count)
        changed[name] = ((values - mean) / np.where(std > 0, std, 1)).astype(np.float32)
    return replace(windows, values=changed)


def masked_copies(windows: Windows, drop: float, copies: int, seed: int) -> list[np.ndarray]:
    """The present modalities in each copy of the training samples, bool [N, M]: first all, then `copies` masks.

    In a copy each sample has its own missing rate p ~ U(0, drop) and loses each modality with that probability; where
    all would be lost, the present one with the largest draw stays. A draw is keyed by (seed, copy, sample, modality).
    """
    masks = [windows.present]
    if drop == 0:
        return masks
    numbers = np.arange(len(windows))
    for copy in range(copies):
        rate = drop * rng.uniform_np(rng.key(seed, "baseline", "rate", copy), numbers)
        keys = [rng.key(seed, "baseline", "missing", copy, name) for name in windows.names]
        draws = np.stack([rng.uniform_np(key, numbers) for key in keys], axis=1)
        left = windows.present & (windows.always | (draws >= rate[:, None]))
        fleeting = windows.present & ~windows.always
        lost = np.flatnonzero(fleeting.any(1) & ~(left & fleeting).any(1))
        left[lost, np.argmax(np.where(fleeting, draws, -1.0)[lost], axis=1)] = True
        masks.append(left)
    return masks


def evaluated(windows: Windows, rate: float, draw: int) -> np.ndarray:
    """The mask of the project's own evaluation at a missing rate, bool [N, M]."""
    return evaluation_mask(windows.present, rate, draw, windows.always.tolist()) if rate > 0 else windows.present


def source_of(url: str, manifest: Manifest, modalities: Sequence[Modality], split: str, config: object) -> SplitSource:
    """The samples of a split; a bad sample is an error."""
    from maestro_dist.config.schema import DataConfig

    assert isinstance(config, DataConfig)
    return SplitSource(url, manifest, config.model_copy(update={"max_bad_samples": 0}), tuple(modalities), split)
