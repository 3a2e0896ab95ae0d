"""Do experts depend on the missing modalities? Mutual information of expert and missing set, and a permuted control."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from maestro_dist import rng
from maestro_dist.evaluation import Predictions

_LEAST = 20  # samples of a missing set; smaller sets are joined by the number of missing modalities


@dataclass(frozen=True)
class Information:
    """bits: I(expert; missing set), mean over the layers; control: its mean over permuted missing sets; p: share of the
    permutations that reach `bits`, which is counted as one of them; sets: number of missing sets."""

    bits: float
    control: float
    p: float
    sets: int


def expert_information(predictions: Predictions, rate: float, permutations: int, key: int) -> Information | None:
    """From the first draw at a missing rate; None where the model has no experts, or there is one set only.

    The tokens of a sample are not independent, so a sample counts once, with the shares of its tokens for each expert,
    and whole samples are permuted. Masks are drawn independently of the samples: where experts do not depend on them,
    each permutation is as likely as the observed assignment, and p is exact.
    """
    found = predictions.scenarios(rate)
    if predictions.experts is None or not len(found):
        return None
    tokens = predictions.experts[found[0]].astype(np.float64)  # [layers, N, E]
    total = tokens.sum(2, keepdims=True)
    some = (total[..., 0] > 0).all(0)
    sets = _sets(predictions.kept[found[0]][some])
    if len(tokens) == 0 or sets.max(initial=0) == 0:
        return None
    shares = tokens[:, some] / total[:, some]
    member = (sets == np.arange(sets.max() + 1)[:, None]).astype(np.float64)  # [S, N]
    bits = _bits(member, shares)
    numbers = np.arange(len(sets))
    drawn = np.array(
        [
            _bits(member[:, np.argsort(rng.bits_np(key, numbers, permutation), kind="stable")], shares)
            for permutation in range(permutations)
        ]
    )
    reached = int((drawn >= bits - 1e-12).sum())
    return Information(bits, float(drawn.mean()), (1 + reached) / (1 + permutations), len(member))


def _sets(mask: np.ndarray) -> np.ndarray:
    """The number of each sample's missing set, int [N]."""
    _, number, count = np.unique(mask, axis=0, return_inverse=True, return_counts=True)
    number = number.reshape(-1)
    rare = count[number] < _LEAST
    named = np.where(rare, -1 - (~mask).sum(1), number)
    return np.unique(named, return_inverse=True)[1].reshape(-1)


def _bits(member: np.ndarray, shares: np.ndarray) -> float:
    """member [S, N] one-hot; shares [layers, N, E] -> mutual information of their joint, mean over layers."""
    joint = member @ shares / member.shape[1]  # [layers, S, E]
    apart = joint.sum(1, keepdims=True) * joint.sum(2, keepdims=True)
    ratio = np.where(joint > 0, joint, 1.0) / np.where(joint > 0, apart, 1.0)
    return float((joint * np.log2(ratio)).sum((1, 2)).mean())
