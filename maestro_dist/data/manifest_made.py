"""Entries of the manifest of a run: how its samples were made from packed data sets."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from maestro_dist.config.windows import SplitConfig, WindowConfig
from maestro_dist.data.manifest_findings import ManifestEntry

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Cut(ManifestEntry):
    """How the recordings were cut into the windows that the manifest describes, and divided into splits."""

    window: WindowConfig
    split: SplitConfig


class Divided(ManifestEntry):
    """How packed windows were divided into other splits. `packed`: fingerprint of the packed data set."""

    split: SplitConfig
    packed: Sha256


class MixedPart(ManifestEntry):
    """One of the data sets of a mixture, by its fingerprint, and its weight."""

    name: str
    fingerprint: Sha256
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)]
