"""Weighted metrics for the bootstrap over test subjects, without a second evaluation.

A resample gives each subject a weight 0, 1, 2, ... Subjects are resampled, not windows, because a test set has few of
them. All models of a data set have the same resamples, so differences between models are paired.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from maestro_dist import rng
from maestro_dist.task.classification import log_odds, log_softmax

_BLOCK = 4_000_000  # numbers in a block of weights


def subject_weights(subjects: int, resamples: int, key: int) -> np.ndarray:
    """float64 [resamples, subjects]: how often each subject is drawn; as many draws as subjects, with replacement."""
    rows = np.arange(resamples)[:, None]
    drawn = (rng.uniform_np(key, rows, np.arange(subjects)[None]) * subjects).astype(np.int64)
    counts = np.bincount((rows * subjects + drawn).ravel(), minlength=resamples * subjects)
    return counts.reshape(resamples, subjects).astype(np.float64)


def weighted_metric(
    metric: str, logits: np.ndarray, target: np.ndarray, subject: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """A metric of the split under each row of weights: float64 [R]; NaN where it is undefined.

    logits [N, C]; target int [N]; subject int [N]: each sample's column of `weights` [R, S]. With weights of 1 the
    values are those of `maestro_dist.task.classification`.
    """
    classes, subjects = logits.shape[1], weights.shape[1]
    if metric in ("accuracy", "loss"):
        if metric == "accuracy":
            each = (logits.argmax(1) == target).astype(np.float64)
        else:
            each = -log_softmax(logits)[np.arange(len(target)), target]
        sums = np.bincount(subject, each, minlength=subjects)
        return weights @ sums / (weights @ np.bincount(subject, minlength=subjects))
    if metric == "macro_f1":
        counts = np.zeros((subjects, classes, classes))
        np.add.at(counts, (subject, target, logits.argmax(1)), 1.0)
        return _macro_f1((weights @ counts.reshape(subjects, -1)).reshape(-1, classes, classes))
    columns = [1] if classes == 2 else range(classes)
    curve = _auroc if metric == "auroc" else _auprc
    with np.errstate(invalid="ignore"):
        odds = zip(columns, log_odds(logits, columns).T, strict=True)
        values = [_ranked(score, target == c, subject, weights, curve) for c, score in odds]
    defined = ~np.isnan(values)
    return np.where(defined, values, 0.0).sum(0) / np.where(defined.any(0), defined.sum(0), np.nan)


def interval(values: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of resampled values; NaN where none is defined."""
    if np.isnan(values).all():
        return float("nan"), float("nan")
    low, high = np.nanquantile(values, [0.025, 0.975])
    return float(low), float(high)


def _macro_f1(confusion: np.ndarray) -> np.ndarray:
    """[R, C, C] -> [R]: the mean over the classes that occur in targets or predictions."""
    hits = np.diagonal(confusion, axis1=1, axis2=2)
    both = confusion.sum(1) + confusion.sum(2)
    occurs = both > 0
    f1 = np.where(occurs, 2 * hits / np.where(occurs, both, 1.0), 0.0)
    return f1.sum(1) / occurs.sum(1)


def _ranked(
    score: np.ndarray, positive: np.ndarray, subject: np.ndarray, weights: np.ndarray, curve: object
) -> np.ndarray:
    """A metric of the ranking, [R]: `curve` computes it from cumulative counts of positives and negatives."""
    assert callable(curve)
    order = np.argsort(-score, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)  # ties are one step
    parts = []
    for block in _blocks(weights, len(score)):
        rows = block[:, subject[order]]
        hits = np.cumsum(rows * positive[order], axis=1)[:, ends]
        alarms = np.cumsum(rows * ~positive[order], axis=1)[:, ends]
        parts.append(curve(hits, alarms))
    return np.concatenate(parts)


def _auroc(hits: np.ndarray, alarms: np.ndarray) -> np.ndarray:
    steps = np.diff(alarms, axis=1, prepend=0.0)
    before = np.concatenate((np.zeros((len(hits), 1)), hits[:, :-1]), axis=1)
    return (steps * (hits + before) / 2).sum(1) / (hits[:, -1] * alarms[:, -1])


def _auprc(hits: np.ndarray, alarms: np.ndarray) -> np.ndarray:
    steps = np.diff(hits, axis=1, prepend=0.0)
    precision = hits / np.maximum(hits + alarms, 1e-300)
    return np.where(alarms[:, -1] > 0, (steps * precision).sum(1) / hits[:, -1], np.nan)


def _blocks(weights: np.ndarray, samples: int) -> Iterator[np.ndarray]:
    size = max(1, _BLOCK // samples)
    for start in range(0, len(weights), size):
        yield weights[start : start + size]
