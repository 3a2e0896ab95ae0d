"""The table of a data set's recordings: all that is needed to cut windows, without the values themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from maestro_dist.data.recordings.columns import (
    columns_from_bytes,
    columns_to_bytes,
    texts_from_array,
    texts_to_array,
)
from maestro_dist.data.recordings.label_times import LabelTimes
from maestro_dist.errors import DataError

TABLE_NAME = "recordings.table"

_NO_LIMIT = 1 << 62
_TEXTS = ("key", "subject", "group", "split")


@dataclass(frozen=True)
class StreamFacts:
    """One modality of a recording.

    steps    its length; 0: the recording lacks it
    start_s  time of its first step, in seconds after the recording's time 0
    gaps     steps [first, end) at which nothing was observed, int64 [G, 2]
    """

    steps: int
    start_s: float
    gaps: np.ndarray


@dataclass(frozen=True)
class RecordingFacts:
    """One recording.

    split      the split that was packed, "" if none
    length_s   seconds from time 0 to its end: windows lie inside
    whole      label of the whole recording, NaN if it has none; of K targets float64 [K]
    intervals  labels over time, float64 [L, 3]: start and end in seconds, and the label; of K targets [L, 2 + K]
    streams    one for each modality of the data set, in the order of their names
    """

    key: str
    subject: str
    group: str
    split: str
    length_s: float
    whole: float | np.ndarray
    intervals: np.ndarray
    streams: tuple[StreamFacts, ...]

    @property
    def labels(self) -> LabelTimes:
        """Its labels over time."""
        return LabelTimes(self.intervals, self.whole)


class RecordingTable:
    """Facts about R recordings, with M modalities each, in columns."""

    def __init__(self, columns: dict[str, np.ndarray]) -> None:
        """`columns` as `to_bytes` writes them.

        Raises:
            ValueError: they do not fit one another.
        """
        self._columns = columns
        try:
            self.texts = {name: texts_from_array(columns[name], len(columns["length_s"])) for name in _TEXTS}
            self._ends = {name: np.cumsum(columns[f"{name}_count"]) for name in ("intervals", "gaps")}
            recordings, modalities = columns["steps"].shape
            shapes = {
                "start_s": (recordings, modalities),
                "gaps_count": (recordings, modalities),
                "length_s": (recordings,),
                "whole": (recordings, *columns["whole"].shape[1:2]),
                "intervals_count": (recordings,),
            }
            fits = all(columns[name].shape == shape for name, shape in shapes.items())
            for name, width in (
                ("intervals", 2 + (columns["whole"].shape[1] if columns["whole"].ndim > 1 else 1)),
                ("gaps", 2),
            ):
                counts = columns[f"{name}_count"]
                fits &= bool((counts >= 0).all()) and columns[name].shape == (int(counts.sum()), width)
        except (KeyError, ValueError, UnicodeDecodeError) as error:
            raise ValueError(f"a column is missing or damaged ({error})") from error
        if not fits:
            raise ValueError("its columns do not have one row for each recording")

    @staticmethod
    def of(facts: Sequence[RecordingFacts]) -> RecordingTable:
        """The table of some recordings."""
        streams = [recording.streams for recording in facts]
        modalities = len(streams[0]) if streams else 0
        gaps = [stream.gaps for row in streams for stream in row]
        width = facts[0].intervals.shape[1] if facts else 3
        columns = {name: texts_to_array([getattr(recording, name) for recording in facts]) for name in _TEXTS}
        columns |= {
            "length_s": np.array([recording.length_s for recording in facts], dtype=np.float64),
            "whole": np.array([recording.whole for recording in facts], dtype=np.float64),
            "intervals_count": np.array([len(recording.intervals) for recording in facts], dtype=np.int64),
            "intervals": np.concatenate([np.empty((0, width)), *(recording.intervals for recording in facts)]),
            "steps": _matrix([[stream.steps for stream in row] for row in streams], modalities, np.int64),
            "start_s": _matrix([[stream.start_s for stream in row] for row in streams], modalities, np.float64),
            "gaps_count": _matrix([[len(stream.gaps) for stream in row] for row in streams], modalities, np.int64),
            "gaps": np.concatenate([np.empty((0, 2), dtype=np.int64), *gaps]),
        }
        return RecordingTable(columns)

    @staticmethod
    def joined(tables: Sequence[RecordingTable]) -> RecordingTable:
        """The recordings of several tables, in their order."""
        columns = {
            name: np.concatenate([table._columns[name] for table in tables])
            for name in tables[0]._columns
            if name not in _TEXTS
        }
        texts = {name: texts_to_array([text for table in tables for text in table.texts[name]]) for name in _TEXTS}
        return RecordingTable(texts | columns)

    @staticmethod
    def from_bytes(data: bytes, most_bytes: int) -> RecordingTable:
        """The table that `to_bytes` has written. Raises ValueError."""
        return RecordingTable(columns_from_bytes(data, most_bytes))

    def labelled_outside(self) -> np.ndarray:
        """Numbers of the recordings that have labels over time, but none within their time, int64."""
        counts, lengths = self._columns["intervals_count"], self._columns["length_s"]
        of = np.repeat(np.arange(len(counts)), counts)
        start, end = self._columns["intervals"][:, 0], self._columns["intervals"][:, 1]
        inside = np.bincount(of, weights=(start < lengths[of]) & (end > 0), minlength=len(counts))
        return np.flatnonzero((counts > 0) & (inside == 0))

    def to_bytes(self) -> bytes:
        """The table in a file. The same recordings give the same bytes."""
        return columns_to_bytes(self._columns)

    @property
    def bytes(self) -> int:
        """Bytes in memory."""
        return sum(array.nbytes for array in self._columns.values())

    def __len__(self) -> int:
        return len(self._columns["length_s"])

    def part(self, first: int, end: int) -> RecordingTable:
        """The recordings `first` <= number < `end`."""
        return RecordingTable.of([self.facts(row) for row in range(first, end)])

    def facts(self, row: int) -> RecordingFacts:
        """One recording."""
        columns, modalities = self._columns, self._columns["steps"].shape[1]
        last, whole = int(self._ends["intervals"][row]), columns["whole"][row]
        streams, ends = [], self._ends["gaps"]  # of the flattened counts
        for column in range(modalities):
            place = row * modalities + column
            count = int(columns["gaps_count"][row, column])
            gaps = columns["gaps"][int(ends[place]) - count : int(ends[place])]
            streams.append(
                StreamFacts(int(columns["steps"][row, column]), float(columns["start_s"][row, column]), gaps)
            )
        return RecordingFacts(
            **{name: self.texts[name][row] for name in _TEXTS},
            length_s=float(columns["length_s"][row]),
            whole=whole if whole.ndim else float(whole),
            intervals=columns["intervals"][last - int(columns["intervals_count"][row]) : last],
            streams=tuple(streams),
        )


def joined_tables(tables: Sequence[bytes]) -> bytes:
    """Tables in a file, as one; those that this process has packed."""
    return RecordingTable.joined([RecordingTable.from_bytes(table, _NO_LIMIT) for table in tables]).to_bytes()


def table_of_bytes(data: bytes, name: str, most_bytes: int = _NO_LIMIT) -> RecordingTable:
    """The table in a file of this name. Raises DataError if it is damaged."""
    try:
        return RecordingTable.from_bytes(data, most_bytes)
    except ValueError as error:
        raise DataError(f"{name}: damaged table of recordings ({error}); pack the data set again") from error


def _matrix(rows: list[list[int]] | list[list[float]], columns: int, dtype: type) -> np.ndarray:
    return np.array(rows, dtype=dtype).reshape(len(rows), columns)
