"""How long samples are: recordings may end before the windows that are cut from them."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

from maestro_dist.config.schema import DataConfig
from maestro_dist.data.manifest import Manifest
from maestro_dist.data.order import Lengths
from maestro_dist.data.reader import SplitSource
from maestro_dist.data.recordings.windowing import windowing_of
from maestro_dist.errors import ConfigError

_KEPT = 256  # shards whose lengths are kept in memory


def check_like_lengths(config: DataConfig, manifest: Manifest) -> None:
    """Raise `ConfigError` if `data.like_lengths` is set and the lengths of samples are not known."""
    if config.like_lengths > 1 and manifest.cut is None:
        what = "several data sets" if manifest.mixture is not None else "packed windows: their lengths are not known"
        raise ConfigError(f"data.like_lengths: not for {what}; pack the data set as recordings, or set it to 1")


def sample_lengths(source: SplitSource) -> Lengths:
    """Seconds of a split's samples, from the start of the window to the end of the longest of their modalities.

    The table of recordings tells them; nothing else is read. `check_like_lengths` says for which data sets.
    """
    shards = source.manifest.split(source.split).shards
    starts = np.cumsum([0, *(shard.samples for shard in shards)])
    known: OrderedDict[int, np.ndarray] = OrderedDict()

    def of_shard(place: int) -> np.ndarray:
        if place not in known:
            known[place] = _shard_lengths(source, place)
        known.move_to_end(place)
        while len(known) > _KEPT:
            known.popitem(last=False)
        return known[place]

    def lengths(numbers: np.ndarray) -> np.ndarray:
        found = np.empty(len(numbers))
        places = np.searchsorted(starts, numbers, side="right") - 1
        for place in np.unique(places).tolist():
            own = places == place
            found[own] = of_shard(place)[numbers[own] - starts[place]]
        return found

    return lengths


def _shard_lengths(source: SplitSource, place: int) -> np.ndarray:
    windowing = windowing_of(source.url, source.manifest, source.config.cache)
    windows = windowing.shard(source.split, source.manifest.split(source.split).shards[place])
    chosen = [windowing.names.index(modality.name) for modality in source.modalities]
    steps = np.array([modality.steps for modality in source.modalities])
    rate = np.array([modality.rate_hz for modality in source.modalities])
    first, present = windows.first[:, chosen], windows.present[:, chosen]
    ends = np.minimum(first + steps, windows.steps[windows.row][:, chosen]) - first
    seconds = np.where(present & (steps > 1), ends / rate, 0.0)
    return seconds.max(1, initial=0.0)
