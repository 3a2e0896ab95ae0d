"""Small copies of results that stay with the repository: all that a report needs, without the runs.

A suite may take several sittings, and runs with their predictions are large. Of each finished cell a folder holds the
run's `result.json` and `cell.json`, and `digest.npz`: each metric under each resample of the test subjects, what its
experts told, who was tested. Of each entry with several seeds, `ensembles/` holds what their ensemble reached.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from maestro_dist.data.storage import ObjectMissing, Storage
from maestro_dist.errors import RunError

DIGEST_FILE = "digest.npz"
_ABOUT = "about"


@dataclass(frozen=True)
class Digest:
    """about: plain JSON; numbers: float32 arrays by (metric, rate), over the resamples."""

    about: dict[str, Any]
    numbers: dict[tuple[str, float], np.ndarray]

    def to_bytes(self) -> bytes:
        """An npz file; the same digest gives the same bytes."""
        text = np.frombuffer(json.dumps(self.about, sort_keys=True).encode(), np.uint8)
        arrays = {_ABOUT: text}
        arrays |= {number_key(metric, rate): x.astype(np.float32) for (metric, rate), x in self.numbers.items()}
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in sorted(arrays):
                content = io.BytesIO()
                np.lib.format.write_array(content, arrays[name], allow_pickle=False)
                archive.writestr(zipfile.ZipInfo(name + ".npy"), content.getvalue(), zipfile.ZIP_DEFLATED)
        return buffer.getvalue()

    @classmethod
    def read(cls, place: Storage, name: str) -> Digest | None:
        """None where there is none. Raises RunError where it is damaged."""
        try:
            content = place.read(name)
        except ObjectMissing:
            return None
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as archive:
                arrays = {key: archive[key] for key in archive.files}
            about = json.loads(arrays.pop(_ABOUT).tobytes())
            return cls(about, {_place(key): value.astype(np.float64) for key, value in arrays.items()})
        except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
            raise RunError(f"{place.name(name)} is damaged ({error}); remove it") from None


def names_digest(names: Iterable[str]) -> str:
    """A short name for a list of names, in their order."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]


def number_key(metric: str, rate: float) -> str:
    """How a digest calls a metric at a missing rate: auroc@0.4."""
    return f"{metric}@{rate!r}"


def _place(key: str) -> tuple[str, float]:
    metric, _, rate = key.partition("@")
    return metric, float(rate)
