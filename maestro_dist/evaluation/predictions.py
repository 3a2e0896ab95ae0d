"""Predictions for each sample of a split, in all scenarios: `predictions.npz`.

Plain numpy arrays without pickle, in manifest order. Any metric can be computed from them, for any subset of people.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass, field, fields

import numpy as np

from maestro_dist.data.storage import Storage
from maestro_dist.errors import DataError

PREDICTIONS_FILE = "predictions.npz"


def _no_names() -> np.ndarray:
    return np.empty(0, dtype="<U1")


@dataclass(frozen=True)
class Predictions:
    """S scenarios of N samples with M modalities; C outputs.

    target      int64 [N] (class) or float64 [N] (regression); of several targets [N, K], NaN where one is unknown;
                of S labels over time float64 [N, S] or [N, S K], with NaN
    rate, draw  float64 [S], int64 [S]: the missing rate and the draw of each scenario (see `evaluation_mask`)
    logits      float32 [S, N, C]; their softmax gives class probabilities (regression: (target - mean) / std);
                over time [S, N, parts x C], those of the first part first
    kept        bool [S, N, M]: the modalities that a sample has in a scenario
    experts     int32 [S, layers, N, E]: tokens of a sample by expert; None: a model without experts
    key, subject, modalities  names of the samples [N], of their people [N], and of the modalities [M]
    """

    target: np.ndarray
    rate: np.ndarray
    draw: np.ndarray
    logits: np.ndarray
    kept: np.ndarray
    experts: np.ndarray | None = None
    key: np.ndarray = field(default_factory=_no_names)
    subject: np.ndarray = field(default_factory=_no_names)
    modalities: np.ndarray = field(default_factory=_no_names)

    def scenarios(self, rate: float) -> np.ndarray:
        """Positions of the scenarios at a missing rate, in the order of their draws."""
        return np.flatnonzero(self.rate == rate)

    def write(self, run: Storage) -> None:
        """Write `predictions.npz`; the same predictions give the same bytes."""
        arrays = {item.name: getattr(self, item.name) for item in fields(self)}
        file = io.BytesIO()
        np.savez_compressed(file, **{name: array for name, array in arrays.items() if array is not None})
        run.write(PREDICTIONS_FILE, file.getvalue())

    @classmethod
    def read(cls, run: Storage) -> Predictions:
        """Read `predictions.npz`. Raises DataError if the file is damaged, ObjectMissing if it does not exist."""
        content = run.read(PREDICTIONS_FILE)
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as file:
                predictions = cls(**{name: file[name] for name in file.files})
        except (ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise DataError(f"{run.name(PREDICTIONS_FILE)} is damaged ({error}); `evaluate` the run again") from error
        shape = (len(predictions.rate), len(predictions.target))
        if predictions.logits.ndim != 3 or predictions.logits.shape[:2] != shape:
            raise DataError(
                f"{run.name(PREDICTIONS_FILE)} has predictions of shape {predictions.logits.shape}, not {shape} x C"
            )
        return predictions
