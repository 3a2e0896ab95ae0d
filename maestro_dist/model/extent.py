"""Which words of a batch are computed: those up to the last observed one. The rest of a window costs nothing.

A sample may be shorter than the window (a night of 6 hours among some of 9), or a sensor may stop early. Its window
then ends with steps that were not observed. A batch is computed up to the last observed step of its samples. The
results are those of complete windows: only words are left out that nothing observed can reach, at any depth.
"""

from __future__ import annotations

from collections.abc import Sequence

_PARTS = 64  # of a window: words are kept in whole parts, so that few shapes occur
_LEAST_SAVED = 1 / 8


def needed_words(end: int, word: int, total: int, halvings: int) -> int:
    """How many of `total` words of `word` steps must be computed, if all steps from `end` on are missing.

    Each of `halvings` layers makes word o from the words 2 o - 1, 2 o and 2 o + 1. So the last observed word may be
    the left input of a word that begins after it. That word must exist, too.
    """
    last, length = max(0, -(-end // word) - 1), total
    most = last
    for depth in range(1, halvings + 1):
        length = -(-length // 2)
        last = min((last + 1) // 2, length - 1)
        most = max(most, last << depth)
    part = -(-total // _PARTS)
    return min(total, -(-(most + 1) // part) * part)


def kept_words(needed: Sequence[int], totals: Sequence[int], rows: Sequence[int]) -> list[int]:
    """Words to compute of each modality: those needed; or all, if little would be saved.

    Modalities of equal length are computed together, which saves more than a few words do.
    """
    most, least = (sum(n * count for n, count in zip(words, rows, strict=True)) for words in (totals, needed))
    return list(needed) if least <= (1 - _LEAST_SAVED) * most else list(totals)
