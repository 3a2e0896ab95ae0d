"""Read a bounded, random number of samples of a split: some are shown, all are counted."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from maestro_dist import rng
from maestro_dist.data.description import is_static
from maestro_dist.data.plain_values import person
from maestro_dist.data.preview.curves import Curves, drawn_at_random
from maestro_dist.data.preview.facts import ShardFacts, shard_facts
from maestro_dist.data.reader import Request, SplitReader, SplitSource
from maestro_dist.data.recordings.windowing import ShardWindows, windowing_of
from maestro_dist.data.sample import BadSample
from maestro_dist.errors import DataError
from maestro_dist.types import Modality

_MOST_SAMPLES = 200  # that are read, of each split
_MOST_SHARDS = 6  # that they lie in: remote shards are downloaded as a whole
_MOST_BYTES = 1 << 28  # of the windows of these samples, unless those that are shown need more
_MOST_SHOWN_BYTES = 1 << 30
_MOST_VALUES = 500  # of each window and variate that are counted in histograms
MOST_VARIATES = 12
"""Variates of a modality that get a histogram."""


@dataclass
class ValueFacts:
    """What the samples that were read say about a modality of D variates.

    samples  how many have it
    steps    how many steps these have
    seen     int64 [D]: observed steps; low, high: float64 [D] the smallest and the largest value
    values   by split: some of the values, float32 [n, D'] each
    """

    modality: Modality
    samples: int = 0
    steps: int = 0
    seen: np.ndarray = field(init=False)
    low: np.ndarray = field(init=False)
    high: np.ndarray = field(init=False)
    values: dict[str, list[np.ndarray]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count = self.modality.variates
        self.seen = np.zeros(count, dtype=np.int64)
        self.low, self.high = np.full(count, np.inf), np.full(count, -np.inf)

    def add(self, split: str, window: np.ndarray, begin: float) -> None:
        """Add a window, float32 [T, D]. `begin`, from 0 to 1, draws which of its steps count in the histogram."""
        self.samples, self.steps = self.samples + 1, self.steps + len(window)
        self.seen += (~np.isnan(window)).sum(axis=0)
        self.low = np.fmin(self.low, np.fmin.reduce(window, axis=0))
        self.high = np.fmax(self.high, np.fmax.reduce(window, axis=0))
        every = -(-len(window) // _MOST_VALUES)
        self.values.setdefault(split, []).append(window[int(begin * every) :: every, :MOST_VARIATES].copy())


@dataclass(frozen=True)
class ShownSample:
    """A sample of the page.

    number    its number in the split, in manifest order
    key       its name; "" if it is not known
    label     class number, or target; of several targets float64 [K]
    origin    the recording that it was cut from, and its start in seconds: "" and None if unknown
    curves    of each modality that it has; constants: of those that are one step, their values [D]
    absent    names of the modalities that it lacks
    broken    why it cannot be shown; "" if it can
    """

    split: str
    number: int
    key: str
    subject: str = ""
    label: float | np.ndarray | None = None
    recording: str = ""
    start_s: float | None = None
    curves: dict[str, Curves] = field(default_factory=dict)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    absent: tuple[str, ...] = ()
    broken: str = ""


@dataclass(frozen=True)
class SplitSamples:
    """The samples of a split that were read.

    read, shards  how many, and from how many shards
    broken        how many of them are broken
    """

    split: str
    shown: list[ShownSample]
    read: int
    shards: int
    broken: int


class _Reading:
    """Reads samples one by one, so that each damage concerns one sample, or one shard."""

    def __init__(self, source: SplitSource, reader: SplitReader) -> None:
        self.source, self.reader = source, reader
        self.shards = source.manifest.split(source.split).shards
        self._facts: dict[int, ShardFacts | None] = {}
        self._windows: dict[int, ShardWindows] = {}
        self._damaged: dict[int, str] = {}

    def windows(self, number: int) -> dict[str, np.ndarray] | str:
        """The windows of a sample by modality; or what is wrong with it. Raises StorageError."""
        position = self._position(number)
        if position in self._damaged:
            return self._damaged[position]
        try:
            batch: Any = self.reader.arrays(Request(np.array([number])))
        except BadSample as error:
            return str(error)
        except DataError as error:  # of a shard: its other samples are not tried
            self._damaged[position] = str(error)
            return str(error)
        if batch.bad:
            return str(batch.bad[0])
        return {name: windows[0] for name, windows in batch.values.items() if len(windows)}

    def shown(self, number: int, windows: dict[str, np.ndarray] | str) -> ShownSample:
        """The sample as it is shown."""
        position = self._position(number)
        facts, row = self._shard_facts(position), number - int(self.reader.starts[position])
        about: dict[str, Any] = {"split": self.source.split, "number": number, "key": ""}
        if facts is not None:
            about["key"] = facts.keys[row]
            about["subject"] = facts.subjects[row] if facts.subjects else ""
            label = None if facts.targets is None else facts.targets[row]
            about["label"] = label if label is None or label.ndim else float(label)
        if isinstance(windows, str):
            return ShownSample(**about, broken=windows)
        about |= self._origin(number, position, row)
        curves, constants = {}, {}
        for modality in self.source.modalities:
            if modality.name not in windows:
                continue
            if is_static(modality) or modality.steps == 1:
                constants[modality.name] = windows[modality.name][0].copy()
            else:
                curves[modality.name] = Curves.of_array(windows[modality.name], modality.rate_hz, most=360)
        absent = tuple(m.name for m in self.source.modalities if m.name not in windows)
        return ShownSample(**about, curves=curves, constants=constants, absent=absent)

    def _origin(self, number: int, position: int, row: int) -> dict[str, Any]:
        """The recording of a sample and its start there; also what an old index lacks."""
        manifest = self.source.manifest
        if manifest.cut is not None:
            windowing = windowing_of(self.source.url, manifest, self.source.config.cache)
            first = self.shards[position].first
            assert first is not None
            if position not in self._windows:
                self._windows[position] = windowing.shard(self.source.split, self.shards[position])
            windows = self._windows[position]
            recording, _, own = windows.keys[row].rpartition("-")
            cut, _ = windowing.recording(first + int(windows.row[row]))
            start = cut.start_s[np.searchsorted(cut.number, int(own))]
            return {"recording": recording, "start_s": float(start)}
        nothing = np.zeros(len(self.source.modalities), dtype=bool)
        try:
            meta = json.loads(self.reader.stored(number, nothing).meta)
            label, start = meta.get("label"), meta.get("start_s")
            found = {"subject": person(meta.get("subject")) or "", "recording": person(meta.get("recording")) or ""}
        except (DataError, ValueError, AttributeError, RecursionError):
            return {}
        numbers, targets = (int, float), manifest.targets
        if targets:
            fits = isinstance(label, list) and len(label) == len(targets)
            fits = fits and all(one is None or isinstance(one, numbers) for one in label)
            several = np.array(label, dtype=np.float64) if fits else None
            return found | {"start_s": float(start) if isinstance(start, numbers) else None, "label": several}
        return found | {
            "start_s": float(start) if isinstance(start, numbers) else None,
            "label": float(label) if isinstance(label, numbers) else None,
        }

    def _position(self, number: int) -> int:
        return int(np.searchsorted(self.reader.starts, number, side="right")) - 1

    def _shard_facts(self, position: int) -> ShardFacts | None:
        if position not in self._facts:
            try:
                found = shard_facts(self.source.config, self.source.manifest, self.source.split, self.shards[position])
            except DataError:
                found = None
            self._facts[position] = found
        return self._facts[position]


def read_samples(source: SplitSource, count: int, seed: int, values: dict[str, ValueFacts]) -> SplitSamples:
    """Read random samples of a split, and count them in `values`. `count` of them are shown, in manifest order.

    Raises:
        StorageError: they cannot be read at present.
    """
    with closing(source.open()) as reader:
        reading = _Reading(source, reader)
        numbers = _drawn(source, reader, count, seed)
        shown: list[ShownSample] = []
        begins = rng.uniform_np(rng.key(seed, "preview steps", source.split), numbers)
        size = reader.most_bytes(Request(numbers[:1]))
        shows = set(numbers[: max(1, min(count, _MOST_SHOWN_BYTES // size))].tolist())
        broken = 0
        for number, begin in sorted(zip(numbers.tolist(), begins.tolist(), strict=True)):
            windows = reading.windows(number)
            broken += isinstance(windows, str)
            for name, window in windows.items() if not isinstance(windows, str) else ():
                values[name].add(source.split, window, begin)
            if number in shows:
                shown.append(reading.shown(number, windows))
        shards = len({reading._position(number) for number in numbers.tolist()})
        return SplitSamples(source.split, shown, len(numbers), shards, broken)


def _drawn(source: SplitSource, reader: SplitReader, count: int, seed: int) -> np.ndarray:
    """The numbers of the samples to read: first those to show."""
    starts = reader.starts
    key = rng.key(seed, "preview shards", source.split)
    shards = np.sort(drawn_at_random(key, len(starts) - 1, _MOST_SHARDS))
    numbers = np.concatenate([np.arange(starts[shard], starts[shard + 1]) for shard in shards.tolist()])
    size = reader.most_bytes(Request(numbers[:1]))
    shown = max(1, min(count, _MOST_SHOWN_BYTES // size))
    most = max(shown, min(_MOST_SAMPLES, _MOST_BYTES // size))
    return numbers[drawn_at_random(rng.key(seed, "preview samples", source.split), len(numbers), most)]
