"""Labels of windows, compared with exact fractions: no rounding of seconds decides about a label."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest

from maestro_dist.config.windows import LabelRule
from maestro_dist.data.recordings.label_times import LabelTimes

Interval = tuple[Fraction, Fraction, int]


def by_definition(
    intervals: list[Interval], start: Fraction, length: Fraction, rule: LabelRule, least: Fraction
) -> float:
    """The label of one window; NaN: none."""
    end, none = start + length, float("nan")
    if rule == "last":
        return next((float(label) for a, b, label in intervals if a < end <= b), none)
    if rule == "center":
        return next((float(label) for a, b, label in intervals if a <= start + length / 2 < b), none)
    parts = [(min(b, end) - max(a, start), label) for a, b, label in intervals if a < end and b > start]
    total = sum((seconds for seconds, _ in parts), Fraction(0))
    if not total or total < least * length:
        return none
    if rule == "mean":
        return float(sum((seconds * label for seconds, label in parts), Fraction(0)) / total)
    if rule == "any":
        return float(max(label for _, label in parts))
    seconds = {label: sum((s for s, other in parts if other == label), Fraction(0)) for _, label in parts}
    return float(min(label for label, own in seconds.items() if own == max(seconds.values())))


@pytest.mark.parametrize("rule", ["last", "center", "any", "majority", "mean"])
@pytest.mark.parametrize("step", ["0.1", "0.3", "0.7", "123456.7"])
def test_labels_are_those_of_exact_times(rule: LabelRule, step: str) -> None:
    """Times are multiples of a decimal step, which float64 cannot hold: windows end where labels begin."""
    every, draw = Fraction(step), np.random.default_rng(0)
    for _ in range(8):
        edges, number, intervals = [0], 0, list[Interval]()
        while len(edges) < 40:
            number += int(draw.integers(1, 5))
            edges.append(number)
        for a, b in pairwise(edges):
            if draw.random() < 0.8:
                intervals.append((a * every, b * every, int(draw.integers(4))))
        steps, least = int(draw.integers(1, 6)), Fraction(str(draw.choice([0, 0.1, 0.5, 1])))
        stored = LabelTimes(np.array([[float(a), float(b), label] for a, b, label in intervals]))
        numbers = range(number + 4)
        starts = float(every) * np.arange(len(numbers))
        found = stored.of_windows(starts, steps * float(every), rule, float(least))
        expected = [by_definition(intervals, n * every, steps * every, rule, least) for n in numbers]
        np.testing.assert_allclose(found, expected, atol=1e-9)
