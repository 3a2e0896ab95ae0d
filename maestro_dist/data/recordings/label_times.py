"""Labels of a recording over time, and the label of each window."""

from __future__ import annotations

import numpy as np

from maestro_dist.config.windows import LabelRule

_SAME_S = 1e-9
"""Sums of seconds that differ by less are equal: they are rounded differently. Times of months are rounded more."""
_ROUNDED = 8 * np.finfo(np.float64).eps


class LabelTimes:
    """The labels of one recording.

    intervals  float64 [L, 3]: start and end in seconds, and the label (class, or a number), ascending, not overlapping.
               Of K targets [L, 2 + K]: NaN where one is unknown
    whole      the label of the whole recording, NaN if it has none; then there are no intervals. Of K targets [K]
    """

    def __init__(self, intervals: np.ndarray, whole: float | np.ndarray = np.nan) -> None:
        self._start, self._end, self._label = intervals[:, 0], intervals[:, 1], intervals[:, 2]
        self._targets: list[LabelTimes] | None = None
        if intervals.shape[1] > 3:  # each target by itself, over the time in which it is known
            columns = zip(intervals[:, 2:].T, np.asarray(whole).tolist(), strict=True)
            self._targets = [
                LabelTimes(np.column_stack([intervals[:, :2], column])[~np.isnan(column)], number)
                for column, number in columns
            ]
        else:
            self._whole = whole

    def of_windows(
        self, starts: np.ndarray, length_s: float, rule: LabelRule, min_labelled: float, *, several: bool = False
    ) -> np.ndarray:
        """The label of each window, float64 [n], or [n, K]; NaN if it has none. `starts` and `length_s` in seconds.

        `min_labelled`: the share of a window that must have a label (for the rules majority, mean and any). `several`:
        labels are sets, as in `label_sets`.
        """
        if self._targets is not None:
            return np.stack([of.of_windows(starts, length_s, rule, min_labelled) for of in self._targets], axis=1)
        if not np.isnan(self._whole):
            return np.full(len(starts), self._whole)
        if not len(self._label):
            return np.full(len(starts), np.nan)
        ends = starts + length_s
        same = self._same(ends)
        if rule == "last":  # just before the end, however that is rounded: a label that begins there does not count
            return self._at(ends - same)
        if rule in ("center", "inside"):
            return self._at(starts + length_s / 2 + same)
        labelled = self._integral(ends, np.ones_like(self._label)) - self._integral(starts, np.ones_like(self._label))
        enough = (labelled > same) & (labelled >= min_labelled * length_s - same)
        if rule == "mean":
            total = self._integral(ends, self._label) - self._integral(starts, self._label)
            return np.where(enough, total / np.maximum(labelled, same), np.nan)
        if several:
            return np.where(enough, self._sets(starts, ends, labelled, rule, same), np.nan)
        classes = np.unique(self._label)
        seconds = np.stack([self._seconds(ends, c) - self._seconds(starts, c) for c in classes])  # [C, n]
        if rule == "any":
            chosen = np.array([len(classes) - 1])[:, None] - np.argmax(seconds[::-1] > same, axis=0)
            return np.where(enough, classes[chosen[0]], np.nan)
        chosen = np.argmax(seconds >= seconds.max(axis=0) - same, axis=0)  # of equal ones the lowest class
        return np.where(enough, classes[chosen], np.nan)

    def _sets(
        self, starts: np.ndarray, ends: np.ndarray, labelled: np.ndarray, rule: LabelRule, same: float
    ) -> np.ndarray:
        """Sets of labels: those that hold at all (any), or for half of the labelled time or more. float64 [n]."""
        sets = self._label.astype(np.int64)
        found = np.zeros(len(starts), dtype=np.int64)
        for label in range(int(sets.max(initial=0)).bit_length()):
            height = (sets >> label & 1).astype(np.float64)
            seconds = self._integral(ends, height) - self._integral(starts, height)
            least = same if rule == "any" else np.maximum(labelled / 2 - same, same)
            found |= (seconds > least).astype(np.int64) << label
        return found.astype(np.float64)

    def starts_inside(self, length_s: float, stride_s: float) -> np.ndarray:
        """Starts of the windows that lie inside one interval each, counted from its start: float64 [n]."""
        if not len(self._label):
            return np.empty(0)
        counts = np.floor((self._end - self._start - length_s) / stride_s + 1e-6).astype(np.int64) + 1
        return np.concatenate(
            [start + stride_s * np.arange(n) for start, n in zip(self._start, np.maximum(counts, 0), strict=True)]
        )

    def _at(self, times: np.ndarray) -> np.ndarray:
        """The label at each time; NaN where there is none."""
        place = np.searchsorted(self._start, times, side="right") - 1
        inside = (place >= 0) & (times < self._end[place])
        return np.where(inside, self._label[place], np.nan)

    def _same(self, ends: np.ndarray) -> float:
        """Seconds that count as nothing, for windows with these ends."""
        latest = max(float(np.abs(times).max(initial=0.0)) for times in (ends, self._start, self._end))
        return max(_SAME_S, _ROUNDED * latest)

    def _seconds(self, until: np.ndarray, label: float) -> np.ndarray:
        """Seconds with this label before each time."""
        return self._integral(until, (self._label == label).astype(np.float64))

    def _integral(self, until: np.ndarray, height: np.ndarray) -> np.ndarray:
        """Integral up to each time of a function that is `height` in the intervals, and 0 elsewhere."""
        done = np.concatenate(([0.0], np.cumsum((self._end - self._start) * height)))
        place = np.searchsorted(self._start, until, side="right") - 1
        inside = np.minimum(until, self._end[place]) - self._start[place]
        return np.where(place < 0, 0.0, done[place] + inside * height[place])
