"""Mutual information between expert and missing set: by hand, and its permuted control."""

from __future__ import annotations

import numpy as np
import pytest
from suite.statistics import expert_information

from maestro_dist.evaluation import Predictions

SAMPLES = 400
KEPT = np.random.default_rng(0).random((SAMPLES, 3)) < 0.6
KEPT[:, 0] |= ~KEPT.any(1)


def predictions(experts: np.ndarray | None, kept: np.ndarray = KEPT) -> Predictions:
    return Predictions(
        target=np.zeros(len(kept), np.int64),
        rate=np.array([0.4]),
        draw=np.array([0]),
        logits=np.zeros((1, len(kept), 2), np.float32),
        kept=kept[None],
        experts=experts,
    )


def test_an_expert_for_each_half_is_one_bit() -> None:
    kept = np.ones((SAMPLES, 2), bool)
    kept[::2, 1] = False
    tokens = np.zeros((1, 1, SAMPLES, 2), np.int32)
    tokens[0, 0, np.arange(SAMPLES), np.arange(SAMPLES) % 2] = 7
    found = expert_information(predictions(tokens, kept), 0.4, 99, 1)
    assert found is not None
    assert found["bits"] == pytest.approx(1.0)
    assert (found["sets"], found["p"]) == (2, 0.01)
    assert found["control"] < 0.02


def test_a_slight_lean_is_found_and_none_is_not() -> None:
    draws = np.random.default_rng(1)
    share = 0.45 + 0.1 * KEPT[:, 2]
    first = draws.binomial(20, share)
    leaning = np.stack((first, 20 - first), axis=1)[None, None]
    found = expert_information(predictions(leaning), 0.4, 199, 2)
    assert found is not None
    assert found["p"] <= 0.01
    first = draws.binomial(20, 0.5, SAMPLES)
    none = expert_information(predictions(np.stack((first, 20 - first), axis=1)[None, None]), 0.4, 199, 2)
    assert none is not None
    assert none["p"] > 0.05
    assert none["bits"] == pytest.approx(none["control"], rel=0.6)


def test_how_many_tokens_a_sample_has_says_nothing() -> None:
    tokens = np.ones((1, 2, SAMPLES, 3), np.int32) * (1 + KEPT.sum(1))[:, None]
    found = expert_information(predictions(tokens), 0.4, 49, 3)
    assert found is not None
    assert found["bits"] == pytest.approx(0.0, abs=1e-12)
    assert found["p"] == 1.0


def test_without_experts_or_with_one_set_there_is_nothing_to_tell() -> None:
    assert expert_information(predictions(None), 0.4, 9, 1) is None
    assert expert_information(predictions(np.ones((1, 1, SAMPLES, 2), np.int32)), 0.2, 9, 1) is None
    whole = np.ones((SAMPLES, 3), bool)
    assert expert_information(predictions(np.ones((1, 1, SAMPLES, 2), np.int32), whole), 0.4, 9, 1) is None
