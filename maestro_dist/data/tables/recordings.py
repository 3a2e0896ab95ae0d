"""From gathered rows to recordings: one part of a folder of tables."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from maestro_dist.data.parts import Remarks
from maestro_dist.data.recordings.raw import RawRecording
from maestro_dist.data.tables.gathering import (
    FACTS,
    Facts,
    Gathered,
    Named,
    gather_facts,
    gather_intervals,
    gather_signals,
)
from maestro_dist.data.tables.grid import Steps, Stream, on_grid
from maestro_dist.data.tables.labels import OPEN, Interval, LabelReader
from maestro_dist.data.tables.layout import TableLayout
from maestro_dist.data.tables.look_paths import SPLITS
from maestro_dist.data.tables.times import SECOND
from maestro_dist.errors import DataError

_KEY_LETTERS = 40


@dataclass(frozen=True)
class Shared:
    """What files say that belong to many recordings.

    intervals, facts                by the name of the recording, or of what a column names
    person_intervals, person_facts  by the name of the person
    aliases                         names in paths -> how these files write them: 01 -> sub-1
    """

    intervals: dict[str, list[Interval]] = field(default_factory=dict)
    facts: dict[str, Facts] = field(default_factory=dict)
    person_intervals: dict[str, list[Interval]] = field(default_factory=dict)
    person_facts: dict[str, Facts] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)

    def ids(self, names: Iterable[str | None]) -> list[str]:
        """The names, and how these files write them."""
        there = [name for name in names if name is not None]
        return list(dict.fromkeys(one for name in there for one in (name, self.aliases.get(name, name))))


@dataclass(frozen=True)
class TablePart:
    """The recordings of some files: those whose paths name one recording, or all files.

    files  (number of the entry in the layout, file)
    """

    name: str
    layout: TableLayout
    files: tuple[tuple[int, Named], ...]
    shared: Shared

    def samples(self, remarks: Remarks) -> Iterator[RawRecording]:
        """See `Part.samples`."""
        reader = LabelReader(self.layout)
        signals = [(number, named) for number, named in self.files if named.about.is_signal]
        gathered = gather_signals(signals, reader, remarks)
        facts: dict[str, Facts] = {}
        for _, named in self.files:
            if named.about.intervals is not None:
                for name, intervals in gather_intervals(named, reader, remarks).items():
                    if name in gathered:
                        gathered[name].intervals += intervals
                    else:
                        remarks.warn("recordings with labels but without signals, left out", name)
            elif named.about.facts:
                facts |= gather_facts(named, reader, remarks)
        for name in sorted(gathered):
            recording = gathered[name]
            path = next((named.names for _, named in signals), {})
            self._complete(name, recording, path, facts)
            made = self._recording(name, recording, reader, remarks)
            if made is not None:
                yield made

    def _complete(self, name: str, recording: Gathered, path: Mapping[str, str], facts: Mapping[str, Facts]) -> None:
        """Add what the path and the files of facts say."""
        for key in (*FACTS, "label"):
            recording.facts.add(key, path.get(key), f"recording {name}")
        names = [name, path.get("recording", name)]
        texts = recording.facts.texts
        for one in dict.fromkeys([*names, texts.get("subject", name)]):
            if one in facts:
                recording.facts.merge(facts[one], f"recording {name}")
        for one in self.shared.ids([*names, texts.get("subject")]):
            if one in self.shared.facts:
                recording.facts.merge(self.shared.facts[one], f"recording {name}")
        for one in self.shared.ids([texts["subject"]] if "subject" in texts else names):
            if one in self.shared.person_facts:
                recording.facts.merge(self.shared.person_facts[one].of(texts.get("subject")), f"recording {name}")
        for one in self.shared.ids(names):
            recording.intervals += self.shared.intervals.get(one, [])
        for one in self.shared.ids([texts["subject"]] if "subject" in texts else names):
            own = self.shared.person_intervals.get(one, [])
            (recording.of_person if "subject" in texts and texts["subject"] != name else recording.intervals).extend(
                own
            )
        if "subject" in texts:
            for one in set(self.shared.ids([texts["subject"]])) - set(self.shared.ids(names)):
                recording.of_person += self.shared.intervals.get(one, [])

    def _recording(self, name: str, recording: Gathered, reader: LabelReader, remarks: Remarks) -> RawRecording | None:
        rows = {number: of.sorted() for number, of in recording.rows.items()}
        zero = min(int(times[0]) for times, _, _ in rows.values())
        streams, notes = self._streams(rows, recording, zero)
        for text, count in notes.items():
            remarks.count(text, count)
        if not streams:
            remarks.warn("recordings without any measured value, left out", name)
            return None
        self._check_together(name, streams)
        intervals = [*recording.intervals, *self._of_person(name, recording, (zero, self._end(streams)), remarks)]
        for number, (times, _, labels) in rows.items():
            if labels:
                if intervals:
                    raise DataError(f"recording {name}: it has labels in two files; keep one of them in the layout")
                intervals = reader.of_rows(times, labels, recording.rows[number].where)
        values = {modality: stream.values for modality, stream in streams.items()}
        known = {modality: v for modality, v in recording.facts.values.items() if not np.isnan(v).all()}
        for modality in (m for file in self.layout.files for m in file.modalities):
            if modality not in values and modality not in known:
                remarks.warn(f"recordings without {modality}", name)
        return RawRecording(
            key=key_of(name),
            values={**values, **known},
            start_s={modality: (stream.start - zero) / SECOND for modality, stream in streams.items()},
            labels=self._labels(name, recording, reader, intervals, (zero, self._end(streams)), remarks),
            subject=recording.facts.texts.get("subject", ""),
            group=recording.facts.texts.get("group", ""),
            split=split_of(recording.facts.texts.get("split", "")),
        )

    def _streams(
        self, rows: Mapping[int, tuple[np.ndarray, np.ndarray, list[str | None]]], recording: Gathered, zero: int
    ) -> tuple[dict[str, Stream], Counter[str]]:
        streams, notes = {}, Counter[str]()
        for number, (times, values, _) in rows.items():
            place = 0
            for modality, spec in self.layout.files[number].modalities.items():
                own = values[:, place : place + len(spec.columns)]
                place += len(spec.columns)
                where = f"{recording.rows[number].where}: {modality}"
                stream = on_grid(times, own, Steps(spec.rate_hz, spec.grid, zero), where, notes)
                if stream is not None:
                    streams[modality] = stream
        return streams, notes

    def _check_together(self, name: str, streams: Mapping[str, Stream]) -> None:
        """Raise `DataError` if a modality has no time in common with the others: another unit, zone or clock."""
        spans = sorted((s.start, self._stream_end(m, s), m) for m, s in streams.items())
        reach = spans[0][1]
        longest = max(end - start for start, end, _ in spans)
        for (_, _, before), (start, end, modality) in pairwise(spans):
            if start - reach > 10 * longest:
                raise DataError(
                    f"recording {name}: {modality} begins {(start - reach) / SECOND:,.0f} s after the end of {before}: "
                    "another unit, zone or clock? Correct it in the layout"
                )
            reach = max(reach, end)

    def _of_person(self, name: str, recording: Gathered, span: tuple[int, int], remarks: Remarks) -> list[Interval]:
        """Those labels of the person that are in this recording; the others may be in another one."""
        inside = [i for i in recording.of_person if i[0] < span[1] and i[1] > span[0]]
        if recording.of_person and not inside:
            remarks.warn("recordings outside of all labels of their person (another clock or unit?)", name)
        return inside

    def _labels(
        self,
        name: str,
        recording: Gathered,
        reader: LabelReader,
        intervals: list[Interval],
        span: tuple[int, int],
        remarks: Remarks,
    ) -> object:
        if self.layout.task == "none":
            return None
        whole = reader.label(recording.facts.label, f"recording {name}")
        if intervals:
            if whole is not None:
                raise DataError(f"recording {name}: it has one label, and labels over time; keep one of them")
            inside = [i for i in intervals if i[0] < span[1] and i[1] > span[0]]
            known = [i for i in intervals if i[2] is not None]
            if not any(i[2] is not None for i in inside):
                apart = min(abs(i[0] - span[0]) for i in known or intervals) / SECOND
                raise DataError(
                    f"recording {name}: all labels lie outside of its signals ({apart:,.0f} s from their start): "
                    "another unit, zone or clock? Correct it in the layout"
                )
            if sum(i[2] is not None for i in inside) < len(known):
                remarks.warn("recordings with labels outside of their signals", name)
            bounded = [
                (span[0] if start == -OPEN else start, span[1] if end == OPEN else end, label)
                for start, end, label in inside
            ]
            return [((start - span[0]) / SECOND, (end - span[0]) / SECOND, label) for start, end, label in bounded]
        if whole is None:
            remarks.warn("recordings without a label", name)
        return whole

    def _end(self, streams: Mapping[str, Stream]) -> int:
        return max(self._stream_end(modality, stream) for modality, stream in streams.items())

    def _stream_end(self, modality: str, stream: Stream) -> int:
        rate = next(f.modalities[modality].rate_hz for f in self.layout.files if modality in f.modalities)
        return stream.start + round(len(stream.values) * SECOND / rate)


def split_of(text: str) -> str:
    """The name that a run uses for a split."""
    return SPLITS.get(text.lower(), text)


def key_of(name: str) -> str:
    """The name of a recording as a key: up to 40 letters, digits, - or _; different names have different keys."""
    clean = re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_") or "all"
    if clean == (name or "all") and len(clean) <= _KEY_LETTERS:
        return clean
    digest = hashlib.sha256(name.encode(errors="backslashreplace")).hexdigest()[:8]
    return f"{clean[: _KEY_LETTERS - 9]}-{digest}"
