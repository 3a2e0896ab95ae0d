"""Parts of a data set: their samples can be made one part after the other, or each part in another process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from maestro_dist.data.recordings.raw import RawRecording
from maestro_dist.data.sample_checks import RawSample


@dataclass
class Remarks:
    """What was found while samples were made: `warnings` (names by text), and `counts` of what was left out."""

    warnings: dict[str, list[str]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    def warn(self, text: str, name: str) -> None:
        """Something odd but usable in `name`, a file or a person. All names with one text make one warning."""
        names = self.warnings.setdefault(text, [])
        if name not in names:  # a source may be read twice
            names.append(name)

    def count(self, text: str, number: int = 1) -> None:
        """Add to the count of `text`."""
        self.counts[text] += number

    def merge_json(self, body: dict[str, Any]) -> None:
        """Add what `to_json` has written."""
        for text, names in body["warnings"].items():
            for name in names:
                self.warn(text, name)
        self.counts.update(body["counts"])

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"warnings": self.warnings, "counts": dict(self.counts)}

    def lines(self) -> list[str]:
        """The warnings, one line each."""
        return [
            f"{text}{f' ({len(names):,})' if len(names) > 1 else ''}: {join_names(names)}"
            for text, names in self.warnings.items()
        ]


class Part(Protocol):
    """A part of a data set, such as one recording, one person or a group of files: a small value that can be pickled.

    The samples of a data set are those of its parts, in the order of the parts. A part may have no samples.
    """

    @property
    def name(self) -> str:
        """Its name for messages."""
        ...

    def samples(self, remarks: Remarks) -> Iterable[RawSample | RawRecording]:
        """Make its samples or recordings, one at a time, from its own files only; the same ones each time.

        Raises:
            DataError: a file is damaged, or does not fit the others.
            StorageError: a file cannot be read at present.
        """
        ...


@dataclass(frozen=True)
class GivenSamples:
    """A part whose samples are made already, or by an iterator of the caller."""

    given: Iterable[RawSample | RawRecording]
    name: str = ""

    def samples(self, remarks: Remarks) -> Iterable[RawSample | RawRecording]:
        """The given samples."""
        return self.given


def join_names(names: Sequence[str], limit: int = 20) -> str:
    """At most `limit` names on one line, and how many more there are."""
    shown = ", ".join(names[:limit])
    return f"{shown} and {len(names) - limit:,} more" if len(names) > limit else shown
