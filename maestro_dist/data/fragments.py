"""Fragments: the encoded samples of a part, in pieces of a few MB, and what was counted meanwhile.

A part is converted alone, in any process. The fragments of all parts, in the order of the parts, are the data set.
Where a shard ends is decided later, by the sizes of the samples alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from maestro_dist.data.description import Description, checked_description, checked_splits
from maestro_dist.data.findings import Findings
from maestro_dist.data.label_sets import ClassCounter
from maestro_dist.data.parts import Part, Remarks
from maestro_dist.data.plain_values import short_repr, whole_number
from maestro_dist.data.recordings.raw import CheckedRecording, RecordingChecker
from maestro_dist.data.sample_checks import CheckedSample, Label, SampleChecker
from maestro_dist.data.shard_index import META, member_name
from maestro_dist.data.tar_blocks import npy_blocks, sample_blocks
from maestro_dist.errors import DataError
from maestro_dist.types import MULTILABEL

_FRAGMENT_BYTES = 4 << 20
"""A fragment ends with the sample that reaches this size, or that of a shard."""


@dataclass
class SampleRows:
    """Consecutive samples of one split, without their bytes: one entry for each in every list.

    sizes  bytes of the sample in a shard
    facts  of each recording its row in the table, as bytes; empty for windows
    """

    keys: list[str] = field(default_factory=list)
    labels: list[Label] = field(default_factory=list)
    subjects: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    facts: list[bytes] = field(default_factory=list)

    def add(self, key: str, label: Label, subject: str, size: int) -> None:
        """Add a sample."""
        for values, value in zip(self._lists(), (key, label, subject, size), strict=False):
            values.append(value)

    def extend(self, others: SampleRows, first: int, last: int) -> None:
        """Add the samples `first` <= number < `last` of others."""
        for values, more in zip(self._lists(), others._lists(), strict=True):
            values += more[first:last]

    def _lists(self) -> tuple[list[Any], ...]:
        return self.keys, self.labels, self.subjects, self.sizes, self.facts


@dataclass(frozen=True)
class Fragment:
    """Consecutive samples of one split. `data`: their bytes in a shard, uint8 [sum of sizes], or where they are."""

    split: str
    rows: SampleRows
    data: Any


@dataclass(frozen=True)
class PartEnd:
    """What was counted in a complete part, as plain JSON: statistics (`Findings`) and remarks (`Remarks`)."""

    findings: dict[str, Any]
    remarks: dict[str, Any]


@dataclass(frozen=True)
class PackFormat:
    """How the samples of a data set are packed: its checked description and splits, and the size of a shard."""

    description: Description
    splits: tuple[str, ...]
    shard_bytes: int

    @property
    def counter(self) -> ClassCounter:
        """How labels are counted; those of recordings are not."""
        about = self.description
        if about.window is not None:
            return ClassCounter()
        return ClassCounter(len(about.classes), about.task == MULTILABEL, len(about.targets) or 1)

    @staticmethod
    def checked(description: Description, splits: Sequence[str], shard_bytes: int) -> PackFormat:
        """The same with plain Python values.

        Raises:
            DataError: one of them is wrong; the message names it.
        """
        description, names = checked_description(description), checked_splits(splits)
        size = whole_number(shard_bytes)
        if size is None or size < 1:
            raise DataError(f"pack: shard_bytes {short_repr(shard_bytes)} is not a whole number from 1")
        return PackFormat(description, tuple(names), size)


def part_fragments(part: Part, about: PackFormat) -> Iterator[Fragment | PartEnd]:
    """The fragments of a part, then its end. The same part gives the same.

    Raises:
        DataError: a sample does not fit the description, or what the part raises.
    """
    remarks, findings = Remarks(), Findings(about.description, about.splits)
    checker, most = _checker(about), min(_FRAGMENT_BYTES, about.shard_bytes)
    open_fragments = {split: (SampleRows(), bytearray()) for split in about.splits}
    for place, sample in enumerate(part.samples(remarks)):
        checked = checker.checked(sample, f"{place} of {part.name}" if part.name else str(place))
        rows, data = open_fragments[checked.split]
        size = len(data)
        for block in sample_blocks(checked.key, _members(checked)):
            data += block
        rows.add(checked.key, checked.label, checked.subject, len(data) - size)
        if isinstance(checked, CheckedRecording):
            rows.facts.append(checked.facts)
        findings.add(checked)
        if len(data) >= most:
            open_fragments[checked.split] = SampleRows(), bytearray()
            yield Fragment(checked.split, rows, np.frombuffer(data, dtype=np.uint8))
    for split, (rows, data) in open_fragments.items():
        if data:
            yield Fragment(split, rows, np.frombuffer(data, dtype=np.uint8))
    yield PartEnd(findings.to_json(), remarks.to_json())


def _checker(about: PackFormat) -> SampleChecker | RecordingChecker:
    if about.description.window is None:
        return SampleChecker(about.description, list(about.splits))
    return RecordingChecker(about.description)


def _members(sample: CheckedSample) -> dict[str, Any]:
    arrays = {member_name(name): array for name, array in sample.arrays.items()}
    if isinstance(sample, CheckedRecording):
        arrays |= {member_name(name): array for name, array in sample.further.items()}
    return {META: [sample.meta], **{name: npy_blocks(array) for name, array in arrays.items()}}
