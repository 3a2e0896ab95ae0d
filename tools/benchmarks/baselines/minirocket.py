"""MiniRocket (Dempster, Schmidt, Webb, KDD 2021) on each modality separately, and a ridge classifier on all features.

The features of a missing modality are 0, their mean after standardization. A modality that is shorter than a kernel
(for example, values at admission) is not transformed.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.baselines.kernels import LENGTH, MiniRocket
from benchmarks.baselines.ridge import Ridge, fit_ridge
from benchmarks.baselines.settings import BaselineConfig
from benchmarks.baselines.windows import Windows, masked_copies
from maestro_dist import rng


class MiniRocketRidge:
    """Fitted by construction."""

    def __init__(
        self,
        train: Windows,
        validation: Windows,
        config: BaselineConfig,
        *,
        classes: int,
        seed: int,
        score: Callable[[Callable[[np.ndarray], np.ndarray]], float],
    ) -> None:
        """`score` rates predictions on the validation split: a function from a mask [N, M] to logits [N, C]."""
        each = config.features // len(train.names)
        self._transforms: dict[str, MiniRocket | None] = {}
        self._scale: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for name in train.names:
            there = train.values[name][train.present[:, train.names.index(name)]]
            self._transforms[name] = _fitted(there, each, rng.key(seed, "minirocket", name))
        raw = self._raw(train)
        for column, name in enumerate(train.names):
            seen = raw[name][train.present[:, column]]
            mean, std = np.nanmean(seen, axis=0, dtype=np.float64), np.nanstd(seen, axis=0, dtype=np.float64)
            self._scale[name] = np.asarray(mean), np.where(std > 0, std, 1.0)
        features = self._standardized(raw)
        masks = masked_copies(train, config.drop, config.copies, seed)
        copies = [lambda mask=mask: _joined(features, mask, train.names) for mask in masks]  # type: ignore[misc]
        fitted = fit_ridge(copies, train.target, classes, config.penalties)
        found = self._standardized(self._raw(validation))

        def rate(ridge: Ridge) -> float:
            return score(lambda mask: _logits(ridge, _joined(found, mask, validation.names)))

        scores = [rate(ridge) for ridge in fitted]
        best = int(np.argmax(scores))
        self._ridge = fitted[best]
        self.score = scores[best]
        self.chosen = {"penalty": config.penalties[best], "features": len(self._ridge.weights)}

    def answers(self, windows: Windows) -> Callable[[np.ndarray], np.ndarray]:
        """From a mask bool [N, M] to logits float32 [N, C] of these samples."""
        features = self._standardized(self._raw(windows))
        return lambda mask: _logits(self._ridge, _joined(features, mask, windows.names))

    def _raw(self, windows: Windows) -> dict[str, np.ndarray]:
        return {name: _transformed(self._transforms[name], windows.values[name]) for name in windows.names}

    def _standardized(self, raw: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {
            name: np.nan_to_num((raw[name] - mean) / std).astype(np.float32)
            for name, (mean, std) in self._scale.items()
        }


def _fitted(values: np.ndarray, features: int, seed: int) -> MiniRocket | None:
    """A transform fitted to these windows [N, T, D]; None where they are shorter than a kernel."""
    return None if values.shape[1] < LENGTH else MiniRocket.fit(_series(values), features, seed)


def _transformed(transform: MiniRocket | None, values: np.ndarray) -> np.ndarray:
    """[N, T, D] -> features float32 [N, F]; NaN only where there is no transform."""
    return values.reshape(len(values), -1) if transform is None else transform.transform(_series(values))


def _series(values: np.ndarray) -> np.ndarray:
    """[N, T, D] with gaps -> float32 [N, D, T] without: forward fill, then backward fill, then 0."""
    x = values.transpose(0, 2, 1).astype(np.float32)
    seen = ~np.isnan(x)
    if not seen.all():
        last = np.maximum.accumulate(np.where(seen, np.arange(x.shape[2]), -1), axis=2)
        place = np.where(last < 0, seen.argmax(2)[..., None], last)
        x = np.nan_to_num(np.take_along_axis(x, place, axis=2))
    return np.ascontiguousarray(x)


def _joined(features: dict[str, np.ndarray], mask: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    """The modalities side by side, float32 [N, F]; 0 where the mask is false."""
    parts = [features[name] * mask[:, column, None] for column, name in enumerate(names)]
    return np.concatenate(parts, axis=1, dtype=np.float32)


def _logits(ridge: Ridge, features: np.ndarray) -> np.ndarray:
    """The scores as logits, which are not calibrated."""
    return ridge.scores(features)
