"""The bootstrap over test subjects, and the permutation test of experts and missing modalities.

A resample gives each subject a weight 0, 1, 2, ... Subjects are resampled, not windows, because a test set has few of
them. All models of a data set have the same resamples, so differences between models are paired.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import rel_entr

from maestro_dist import rng
from maestro_dist.evaluation import Predictions
from maestro_dist.task.classification import log_odds

_LEAST = 20  # samples of a missing set; smaller sets are joined by the number of missing modalities


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
    classes = logits.shape[1]
    if metric in ("accuracy", "macro_f1"):
        counts = np.zeros((weights.shape[1], classes, classes))
        np.add.at(counts, (subject, target, logits.argmax(1)), 1.0)
        confusion = np.tensordot(weights, counts, 1)  # [R, C, C]
        hits, both = np.diagonal(confusion, axis1=1, axis2=2), confusion.sum(1) + confusion.sum(2)
        if metric == "accuracy":
            return hits.sum(1) / confusion.sum((1, 2))
        return (2 * hits / np.where(both > 0, both, 1.0)).sum(1) / (both > 0).sum(1)
    columns = [1] if classes == 2 else range(classes)
    odds = log_odds(logits, columns).T
    values = np.array([_ranked(metric, odds[n], target == c, subject, weights) for n, c in enumerate(columns)])
    defined = ~np.isnan(values)
    return np.where(defined, values, 0.0).sum(0) / np.where(defined.any(0), defined.sum(0), np.nan)


def interval(values: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of resampled values; NaN where none is defined."""
    if np.isnan(values).all():
        return float("nan"), float("nan")
    low, high = np.nanquantile(values, [0.025, 0.975])
    return float(low), float(high)


def _ranked(
    metric: str, score: np.ndarray, positive: np.ndarray, subject: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """auroc or auprc of one class, [R], from cumulative weights of positives (hits) and negatives (alarms)."""
    order = np.argsort(-score, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)  # ties are one step
    subject, positive, found = subject[order], positive[order], np.full(len(weights), np.nan)
    for number, row in enumerate(weights):
        hits, alarms = (np.cumsum(row[subject] * chosen)[ends] for chosen in (positive, ~positive))
        if hits[-1] > 0 and alarms[-1] > 0:
            if metric == "auroc":
                found[number] = np.trapezoid(np.append(0.0, hits), np.append(0.0, alarms)) / (hits[-1] * alarms[-1])
            else:
                precision = hits / np.maximum(hits + alarms, 1e-300)
                found[number] = (np.diff(hits, prepend=0.0) * precision).sum() / hits[-1]
    return found


def expert_information(predictions: Predictions, rate: float, permutations: int, key: int) -> dict[str, Any] | None:
    """Do experts depend on the missing modalities? From the first draw at a missing rate.

    None where the model has no experts, or there is one missing set only. The tokens of a sample are not independent,
    so a sample counts once, with the shares of its tokens for each expert, and whole samples are permuted. Masks are
    drawn independently of the samples: where experts do not depend on them, each permutation is as likely as the
    observed assignment, and p is exact.

    Returns:
        bits: I(expert; missing set), mean over the layers; control: its mean over permuted missing sets; p: share of
        the permutations that reach `bits`, which is counted as one of them; sets: number of missing sets.
    """
    found = predictions.scenarios(rate)
    if predictions.experts is None or not len(found):
        return None
    tokens = predictions.experts[found[0]].astype(np.float64)  # [layers, N, E]
    total = tokens.sum(2, keepdims=True)
    some = (total[..., 0] > 0).all(0)
    sets = _missing_sets(predictions.kept[found[0]][some])
    if len(tokens) == 0 or sets.max(initial=0) == 0:
        return None
    shares = tokens[:, some] / total[:, some]
    member = (sets == np.arange(sets.max() + 1)[:, None]).astype(np.float64)  # [S, N]
    bits, numbers = _bits(member, shares), np.arange(len(sets))
    orders = (np.argsort(rng.bits_np(key, numbers, n), kind="stable") for n in range(permutations))
    drawn = np.array([_bits(member[:, order], shares) for order in orders])
    reached = int((drawn >= bits - 1e-12).sum())
    p = (1 + reached) / (1 + permutations)
    return {"bits": bits, "control": float(drawn.mean()), "p": p, "sets": len(member)}


def _missing_sets(mask: np.ndarray) -> np.ndarray:
    """The number of each sample's missing set, int [N]."""
    _, number, count = np.unique(mask, axis=0, return_inverse=True, return_counts=True)
    number = number.reshape(-1)
    named = np.where(count[number] < _LEAST, -1 - (~mask).sum(1), number)
    return np.unique(named, return_inverse=True)[1].reshape(-1)


def _bits(member: np.ndarray, shares: np.ndarray) -> float:
    """member [S, N] one-hot; shares [layers, N, E] -> mutual information of their joint, mean over layers."""
    joint = member @ shares / member.shape[1]  # [layers, S, E]
    apart = joint.sum(1, keepdims=True) * joint.sum(2, keepdims=True)
    return float(rel_entr(joint, apart).sum((1, 2)).mean() / np.log(2))
