"""The manifest of the samples that a run reads."""

from __future__ import annotations

from maestro_dist.config.schema import DataConfig
from maestro_dist.data.manifest import Manifest
from maestro_dist.data.mixture.manifest import mixed_manifest
from maestro_dist.data.recordings.cut_data import load_set


def load_data(config: DataConfig, *, expected: bool = False, run_url: str = "") -> Manifest:
    """The manifest of `data.url`, or of all `data.sources` together. The rest, and what is raised: as `load_set`."""
    if config.sources:
        return mixed_manifest(config, expected=expected)
    return load_set(config, expected=expected, run_url=run_url)
