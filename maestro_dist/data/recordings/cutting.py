"""Windows of a recording: when they start, what they contain, and their labels. Values are not read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from maestro_dist.config.windows import LabelRule, WindowConfig
from maestro_dist.data.description import is_static, window_steps
from maestro_dist.data.recordings.gaps import GapCounter
from maestro_dist.data.recordings.table import RecordingFacts
from maestro_dist.data.target_numbers import is_known
from maestro_dist.errors import ConfigError
from maestro_dist.types import MULTILABEL, Modality

_MOST = 1 << 28  # windows of one recording
_SAME = 1e-6
"""Share of a stride that counts as nothing: times are rounded."""


@dataclass(frozen=True)
class CutWindows:
    """n windows of one recording, M modalities.

    number   which window of the recording it is, counted with those that are left out, int64 [n]
    start_s  start of each window, in seconds after the recording's time 0, float64 [n]
    first    the first step of each modality in its stream, int64 [n, M]; negative where the stream begins later
    present  bool [n, M]: whether the window has the modality
    label    float64 [n]; of K targets [n, K], of S labels over time [n, S] or [n, S K]; NaN where one is unknown
    """

    number: np.ndarray
    start_s: np.ndarray
    first: np.ndarray
    present: np.ndarray
    label: np.ndarray

    def __len__(self) -> int:
        return len(self.start_s)

    def some(self, chosen: np.ndarray) -> CutWindows:
        """The windows `chosen`, bool [n] or numbers."""
        return CutWindows(
            self.number[chosen], self.start_s[chosen], self.first[chosen], self.present[chosen], self.label[chosen]
        )


@dataclass(frozen=True)
class Cutter:
    """Cuts the recordings of a data set.

    modalities  those of the data set, sorted by name; `steps` is the length of a window
    task        classification, regression or none
    """

    modalities: tuple[Modality, ...]
    window: WindowConfig
    task: str

    @staticmethod
    def of(modalities: Sequence[Modality], window: WindowConfig, task: str) -> Cutter:
        """`modalities` may have other windows; those that are `is_static` keep their one step."""
        cut = tuple(replace(m, steps=window_steps(m, window)) for m in modalities)
        return Cutter(cut, window, task)

    @property
    def rule(self) -> LabelRule:
        """How a window gets its label."""
        return self.window.label or ("mean" if self.task == "regression" else "majority")

    def windows(self, recording: RecordingFacts) -> CutWindows:
        """The windows of a recording, by time."""
        starts = self._starts(recording)
        first = np.empty((len(starts), len(self.modalities)), dtype=np.int64)
        present = np.empty(first.shape, dtype=bool)
        for column, (modality, stream) in enumerate(zip(self.modalities, recording.streams, strict=True)):
            static = is_static(modality)
            first[:, column] = 0 if static else np.rint((starts - stream.start_s) * modality.rate_hz)
            counter = GapCounter(stream.steps, stream.gaps)
            observed = counter.observed(first[:, column], first[:, column] + modality.steps)
            least = 1 if static else max(1.0, self.window.min_observed * modality.steps - _SAME)
            present[:, column] = observed >= least
        always = [] if self.window.keep_empty else [modality.always for modality in self.modalities]
        streams = [column for column, known in enumerate(always) if not known]
        kept = np.any(present[:, streams or slice(None)], axis=1)
        label = np.zeros(len(starts))
        if self.task != "none":
            length = self.window.length_s
            if 0 < recording.length_s < length:  # one window, which ends with the recording
                length = recording.length_s
            label = self._labels(recording, starts, length)
            kept &= is_known(label)
        return CutWindows(np.arange(len(starts)), starts, first, present, label).some(np.flatnonzero(kept))

    def _labels(self, recording: RecordingFacts, starts: np.ndarray, length: float) -> np.ndarray:
        """The labels of windows of `length` seconds, as in `CutWindows`. A shorter length is that of the recording."""
        several, least = self.task == MULTILABEL, self.window.min_labelled
        every = self.window.label_every_s
        if every is None:
            return recording.labels.of_windows(starts, length, self.rule, least, several=several)
        steps = self.window.label_steps
        parts = (starts[:, None] + every * np.arange(steps)).reshape(-1)
        label = recording.labels.of_windows(parts, every, self.rule, least, several=several)
        if length < self.window.length_s:  # the parts of a recording that is shorter end with it, too
            beyond = parts >= length - _SAME * every
            beyond[0] = False  # however short it is
            label[beyond] = np.nan
            last = parts[~beyond][-1:]
            label[len(parts) - int(beyond.sum()) - 1] = recording.labels.of_windows(
                last, min(every, length - float(last[0])), self.rule, least, several=several
            )[0]
        return label.reshape(len(starts), -1)

    def _starts(self, recording: RecordingFacts) -> np.ndarray:
        length, every = self.window.length_s, self.window.every_s
        if self.rule == "inside" and np.isnan(recording.whole).all():
            return recording.labels.starts_inside(length, every)
        count = int(np.floor((recording.length_s - length) / every + _SAME)) + 1
        if count > _MOST:
            raise ConfigError(
                f"data.window.stride_s: {every:g} s makes {count:,} windows of recording {recording.key}; "
                f"{_MOST:,} are the most"
            )
        return every * np.arange(max(count, 1))
