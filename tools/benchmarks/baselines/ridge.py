"""Ridge classification for several penalties at once, from the smaller of the two Gram matrices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

_ROWS = 2048  # rows at a time: products in float32, sums in float64


@dataclass(frozen=True)
class Ridge:
    """`features @ weights + bias`: one score a class. weights float32 [F, C], bias float32 [C]."""

    weights: np.ndarray
    bias: np.ndarray

    def scores(self, features: np.ndarray) -> np.ndarray:
        """float32 [N, F] -> float32 [N, C]."""
        return features @ self.weights + self.bias


def fit_ridge(
    copies: Sequence[Callable[[], np.ndarray]], target: np.ndarray, classes: int, penalties: Sequence[float]
) -> list[Ridge]:
    """Least squares on +-1 targets with each penalty, after the means are subtracted.

    Each of `copies` makes the features float32 [N, F] of one copy of the samples; all copies have the classes `target`
    [N]. Where there are fewer features than rows, only one copy is in memory at a time.
    """
    signs = np.where(target[:, None] == np.arange(classes), 1.0, -1.0)
    samples, total = len(target), len(target) * len(copies)
    mean_y = signs.mean(0)
    y = signs - mean_y
    first = copies[0]()
    mean_x = first.mean(0, dtype=np.float64)
    for make in copies[1:]:
        mean_x = mean_x + make().mean(0, dtype=np.float64)
    mean_x /= len(copies)
    shift = mean_x.astype(np.float32)
    if first.shape[1] < total:
        return _primal(copies, shift, y, mean_y, penalties)
    x = np.concatenate([make() - shift for make in copies])
    gram = np.empty((total, total))
    for start in range(0, total, _ROWS):
        gram[start : start + _ROWS] = x[start : start + _ROWS] @ x.T
    right = np.tile(y, (len(copies), 1))
    assert len(right) == samples * len(copies)
    return [_finish(x.T @ _solve(gram, right, p).astype(np.float32), shift, mean_y) for p in penalties]


def _primal(
    copies: Sequence[Callable[[], np.ndarray]],
    shift: np.ndarray,
    y: np.ndarray,
    mean_y: np.ndarray,
    penalties: Sequence[float],
) -> list[Ridge]:
    gram = np.zeros((len(shift), len(shift)))
    right = np.zeros((len(shift), y.shape[1]))
    for make in copies:
        features = make()
        for start in range(0, len(features), _ROWS):
            block = features[start : start + _ROWS] - shift
            gram += block.T @ block
            right += block.T @ y[start : start + _ROWS]
    return [_finish(_solve(gram, right, penalty).astype(np.float32), shift, mean_y) for penalty in penalties]


def _solve(gram: np.ndarray, right: np.ndarray, penalty: float) -> np.ndarray:
    """(gram + penalty I)^-1 right, by Cholesky; float64."""
    from scipy.linalg import cho_factor, cho_solve

    matrix = gram.copy()
    matrix[np.diag_indices_from(matrix)] += penalty
    return cho_solve(cho_factor(matrix, lower=True, overwrite_a=True, check_finite=False), right, check_finite=False)


def _finish(weights: np.ndarray, shift: np.ndarray, mean_y: np.ndarray) -> Ridge:
    return Ridge(weights, (mean_y - shift.astype(np.float64) @ weights.astype(np.float64)).astype(np.float32))
