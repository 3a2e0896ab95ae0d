"""LightGBM on statistics of each modality's window; NaN where a modality is missing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.baselines.features import statistics
from benchmarks.baselines.settings import BaselineConfig
from benchmarks.baselines.windows import Windows, masked_copies

_EVERY = 10  # trees between two validations


class Boosting:
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
        tables = _tables(train)
        masks = masked_copies(train, config.drop, config.copies, seed)
        features = np.concatenate([_joined(tables, mask, train.names) for mask in masks])
        target = np.tile(train.target, len(masks))
        found = _tables(validation)
        best: tuple[float, Any, dict[str, Any]] | None = None
        for leaves in config.leaves:
            parameters = _parameters(config, leaves, classes, seed, copies=len(masks))
            growing = _Growing(parameters, features, target, lambda mask: _joined(found, mask, validation.names))
            value, trees = growing.grow(config.trees, config.patience, score)
            if best is None or value > best[0]:
                best = value, growing.booster, {"leaves": leaves, "trees": trees}
        assert best is not None
        self.score, self._booster, self.chosen = best

    def answers(self, windows: Windows) -> Callable[[np.ndarray], np.ndarray]:
        """From a mask bool [N, M] to logits float32 [N, C] of these samples."""
        tables = _tables(windows)
        trees = self.chosen["trees"]
        return lambda mask: _logits(self._booster, _joined(tables, mask, windows.names), trees)


def _parameters(config: BaselineConfig, leaves: int, classes: int, seed: int, copies: int) -> dict[str, Any]:
    several = {"objective": "multiclass", "num_class": classes} if classes > 2 else {"objective": "binary"}
    return {
        **several,
        "learning_rate": config.rate,
        "num_leaves": leaves,
        "min_data_in_leaf": config.leaf_samples * copies,
        "feature_fraction": config.columns,
        "bagging_fraction": config.rows,
        "bagging_freq": 1,
        "seed": seed,
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": 1,
        "verbosity": -1,
    }


class _Growing:
    """A booster that grows while validation improves. Its validation logits are sums over trees, stored by mask."""

    def __init__(
        self,
        parameters: dict[str, Any],
        features: np.ndarray,
        target: np.ndarray,
        rows: Callable[[np.ndarray], np.ndarray],
    ) -> None:
        """`rows`: from a mask of the validation split to its features."""
        import lightgbm

        self.booster = lightgbm.Booster(parameters, lightgbm.Dataset(features, target))
        self._rows = rows
        self._known: dict[bytes, tuple[np.ndarray, np.ndarray, int]] = {}

    def grow(self, most: int, patience: int, score: Callable[[Callable[[np.ndarray], np.ndarray]], float]) -> Any:
        """(best score, its number of trees). The score is computed every few trees."""
        best, trees = -np.inf, 0
        for done in range(1, most + 1):
            finished = self.booster.update()
            if done % _EVERY and done < most and not finished:
                continue
            value = score(self._answer)
            if value > best:
                best, trees = value, self.booster.current_iteration()
            if finished or (patience and done - trees >= patience):
                break
        return float(best), trees

    def _answer(self, mask: np.ndarray) -> np.ndarray:
        trees = self.booster.current_iteration()
        name = mask.tobytes()
        rows, total, first = self._known.get(name) or (self._rows(mask), np.zeros(()), 0)
        if trees > first:
            total = total + _logits(self.booster, rows, trees - first, first)
        self._known[name] = rows, total, trees
        return total


def _tables(windows: Windows) -> dict[str, np.ndarray]:
    return {name: statistics(windows.values[name]) for name in windows.names}


def _joined(tables: dict[str, np.ndarray], mask: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    """The modalities side by side, float32 [N, F]; NaN where the mask is false."""
    parts = [np.where(mask[:, column, None], tables[name], np.nan) for column, name in enumerate(names)]
    return np.concatenate(parts, axis=1, dtype=np.float32)


def _logits(booster: Any, features: np.ndarray, trees: int, first: int = 0) -> np.ndarray:
    """The sum of `trees` rounds from `first` on: float32 [N, C]."""
    raw = booster.predict(features, raw_score=True, start_iteration=first, num_iteration=trees)
    raw = np.asarray(raw, dtype=np.float32)
    return raw if raw.ndim == 2 else np.stack([np.zeros_like(raw), raw], axis=1)
