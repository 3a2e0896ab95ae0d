"""Records of an unfinished packing, beside the shards: what a restart need not do again.

    .packing/request.json          what is packed; a restart must ask for the same
    .packing/parts/000000.json.gz  parts that are complete: sizes and labels of their samples, statistics, remarks
    .packing/shards/train-000000.SAMPLES.BYTES.SHA256.SHA256   a shard that is complete, with the hashes of its tar and
                                   of its index; the facts are in the name: one request lists a thousand of them

The parts that are complete when a shard ends are recorded before that shard is written. So the parts of all recorded
shards are known, and those whose shards are all recorded need not be converted again.
"""

from __future__ import annotations

import gzip
import json
import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from maestro_dist.data.fragments import PartEnd, SampleRows
from maestro_dist.data.manifest import Shard
from maestro_dist.data.shard_files import ShardId
from maestro_dist.data.storage import ObjectMissing, Storage
from maestro_dist.errors import DataError

RECORDS = ".packing"
"""The folder of the records, and of copies of members of compressed archives."""

_REQUEST = "request.json"
_SHARD = re.compile(r"([A-Za-z0-9_-]+)-(\d{6})\.(\d+)\.(\d+)\.([0-9a-f]{64})\.([0-9a-f]{64})")


class SampleSizes:
    """Sizes in bytes and labels of consecutive samples of a split, in few bytes each: a part may have very many."""

    def __init__(self) -> None:
        self._sizes, self._labels = array("q"), array("d")
        self._targets = 0  # numbers of a label, if it has several

    def add(self, rows: SampleRows) -> None:
        """Add samples."""
        self._sizes.extend(rows.sizes)
        for label in rows.labels:
            if not isinstance(label, int | float):
                self._targets = len(label)
                self._labels.extend(label)
            else:
                self._labels.append(label)

    def rows(self) -> SampleRows:
        """The samples, without keys and people."""
        labels: list[Any] = self._labels.tolist()
        if self._targets:
            labels = list(zip(*[iter(labels)] * self._targets, strict=True))
        return SampleRows(sizes=self._sizes.tolist(), labels=labels)


@dataclass(frozen=True)
class PartRecord:
    """A part that is complete: its samples by split, in order, and what was counted."""

    number: int
    samples: dict[str, SampleSizes]
    end: PartEnd

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        rows = {split: sizes.rows() for split, sizes in self.samples.items()}
        samples = {split: [found.sizes, found.labels] for split, found in rows.items()}
        return {"number": self.number, "samples": samples, **vars(self.end)}

    @staticmethod
    def from_json(body: dict[str, Any]) -> PartRecord:
        """The record that `to_json` has written."""
        samples = {split: SampleSizes() for split in body["samples"]}
        for split, (sizes, labels) in body["samples"].items():
            samples[split].add(SampleRows(sizes=sizes, labels=labels))
        return PartRecord(body["number"], samples, PartEnd(body["findings"], body["remarks"]))


class PackRecords:
    """The records of the packing at `url`. `request` says what is packed, in plain JSON."""

    def __init__(self, url: str, request: dict[str, Any]) -> None:
        self._place, self._request = Storage(url), request
        self._folder = self._place.join(RECORDS)
        self._waiting: list[PartRecord] = []
        self._files: list[str] = []

    def match(self) -> bool:
        """Whether there are records of the same packing."""
        return self._earlier() == self._request

    def begin(self) -> bool:
        """Start, or go on where an earlier attempt ended. Returns whether there was one.

        Raises:
            DataError: an earlier attempt packed something else; the message says what differs.
        """
        earlier = self._earlier()
        if earlier is None:
            self.forget()
            self._folder.write(_REQUEST, json.dumps(self._request, indent=1).encode())
        elif earlier != self._request:
            keys = sorted(key for key in {*earlier, *self._request} if earlier.get(key) != self._request.get(key))
            raise DataError(
                f"{self._place.name()}: an unfinished packing is there, with other {', '.join(keys) or 'records'}; "
                f"repeat its command to finish it, or start anew: with --overwrite of the packing tool, or after "
                f"removing {self._folder.name()}"
            )
        self._files = self._folder.list("parts")
        return earlier is not None

    def shards(self) -> dict[ShardId, Shard]:
        """The recorded shards whose files are there."""
        sizes, found = self._place.sizes(), {}
        for name in self._folder.list("shards"):
            match = _SHARD.fullmatch(name)
            if match is None:
                continue
            shard = ShardId(match[1], int(match[2]))
            path, index = shard.files
            if sizes.get(path) == int(match[4]) and index in sizes:
                found[shard] = Shard(
                    path=path,
                    index=index,
                    samples=int(match[3]),
                    bytes=int(match[4]),
                    sha256=match[5],
                    index_sha256=match[6],
                )
        return found

    def parts(self) -> Iterator[PartRecord]:
        """The parts that were recorded by earlier attempts, from the first one on. They are read anew each time."""
        number = 0
        for name in self._files:
            for body in json.loads(gzip.decompress(self._folder.read(f"parts/{name}", expected=True))):
                if body["number"] == number:  # two attempts at a time may have written some twice
                    yield PartRecord.from_json(body)
                    number += 1

    def add(self, part: PartRecord) -> None:
        """A part is complete. It is written with the next `flush`."""
        self._waiting.append(part)

    def flush(self) -> None:
        """Write the parts that are complete."""
        if self._waiting:
            self._files.append(f"{len(self._files):06d}.json.gz")
            body = json.dumps([part.to_json() for part in self._waiting]).encode()
            self._folder.write(f"parts/{self._files[-1]}", gzip.compress(body, 1, mtime=0))
            self._waiting = []

    def forget(self) -> None:
        """Forget an earlier attempt. The request goes last, so that a kill here leaves no records without it."""
        for name in ("parts", "shards"):
            self._folder.remove(name, recursive=True)
        self._folder.remove(_REQUEST)

    def remove_all(self) -> None:
        """Remove the records and copies: at the end, or after an error that would occur again."""
        self._folder.remove(recursive=True)

    def _earlier(self) -> dict[str, Any] | None:
        """The request of an earlier attempt; None if there was none."""
        try:
            earlier = json.loads(self._folder.read(_REQUEST))
        except ObjectMissing:
            return None
        except ValueError:
            return {}
        return earlier if isinstance(earlier, dict) else {}


def has_records(url: str) -> bool:
    """Whether there are records of an unfinished packing at `url`."""
    return Storage(url).join(RECORDS).exists(_REQUEST)


def record_shard(url: str, shard: ShardId, entry: Shard) -> None:
    """Record that a shard of the packing at `url` is complete; any process may do that."""
    name = f"{shard.stem}.{entry.samples}.{entry.bytes}.{entry.sha256}.{entry.index_sha256}"
    Storage(url).write(f"{RECORDS}/shards/{name}", b"")
