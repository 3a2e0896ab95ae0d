"""Which words of a batch are computed: those up to the last observed one. The rest of a window costs nothing.

A sample may be shorter than the window (a night of 6 hours among some of 9), or a sensor may stop early. Its window
then ends with steps that were not observed. A batch is computed up to the last observed step of its samples, with the
results of complete windows: `ModalityTokens.halved` adds the words that observed ones reach at later depths.
"""

from __future__ import annotations

from collections.abc import Sequence

_LEAST_SAVED = 1 / 8


def observed_words(end: int, word: int, total: int) -> int:
    """How many of `total` words of `word` steps are computed, if all steps from `end` on are missing: at least one."""
    return min(total, max(1, -(-end // word)))


def kept_words(needed: Sequence[int], totals: Sequence[int], rows: Sequence[int]) -> list[int]:
    """Words to compute of each modality: those needed; or all, if little would be saved.

    Modalities of equal length are computed together, which saves more than a few words do.
    """
    most, least = (sum(n * count for n, count in zip(words, rows, strict=True)) for words in (totals, needed))
    return list(needed) if least <= (1 - _LEAST_SAVED) * most else list(totals)
