"""Which source each place of the sequence of training samples belongs to: a fixed pattern, from the weights only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

PERIOD = 1 << 12
"""Places after which the pattern comes again; shares of the sources are multiples of 1 / PERIOD."""


class MixPattern:
    """A pattern of S sources, in which each is as evenly spread as it can be.

    shares  float64 [S]: the part of the places that each source has
    """

    def __init__(self, weights: Sequence[float]) -> None:
        """`weights`: S positive numbers."""
        wanted = np.asarray(weights, dtype=np.float64) / sum(weights) * PERIOD
        counts = np.maximum(1, np.floor(wanted)).astype(np.int64)
        rest = wanted - counts
        while counts.sum() != PERIOD:  # the largest remainders get one more; or the smallest give one
            change = 1 if counts.sum() < PERIOD else -1
            free = np.where((counts + change > 0), rest * change, -np.inf)
            at = int(np.argmax(free))
            counts[at] += change
            rest[at] -= change
        self.shares = counts / PERIOD
        self._of = _spread(counts)
        self._before = np.zeros((PERIOD + 1, len(counts)), dtype=np.int64)
        np.cumsum(self._of[:, None] == np.arange(len(counts)), axis=0, out=self._before[1:])

    def sources(self, first: int, end: int) -> np.ndarray:
        """The source of each of the places [first, end), int64 [end - first]."""
        return self._of[np.arange(first, end) % PERIOD]

    def taken(self, places: int) -> np.ndarray:
        """How many of the first `places` places each source has, int64 [S]."""
        periods, rest = divmod(places, PERIOD)
        return periods * self._before[-1] + self._before[rest]


def _spread(counts: np.ndarray) -> np.ndarray:
    """A source for each place of a period, int64 [PERIOD], each as evenly spread as it can be.

    The k-th place of a source lies near (k + 1/2) / count of the period.
    """
    ideal = np.concatenate([(np.arange(count) + 0.5) / count for count in counts])
    of = np.repeat(np.arange(len(counts)), counts)
    return of[np.lexsort((of, ideal))].astype(np.int64)
