"""Random access to the samples of a split: `pread` at the offsets of the index, in local or cached shards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from maestro_dist.config.learning import AugmentConfig
from maestro_dist.config.schema import DataConfig
from maestro_dist.data.augment import augment, wanted_kinds
from maestro_dist.data.block_digests import LONG_WINDOW
from maestro_dist.data.collate import collate
from maestro_dist.data.index_copies import index_of
from maestro_dist.data.manifest import Manifest, Shard
from maestro_dist.data.missing import drop_modalities
from maestro_dist.data.mixup import Mixing, mix
from maestro_dist.data.open_shards import OpenShard, OpenShards
from maestro_dist.data.recordings.cut_parts import CutParts
from maestro_dist.data.recordings.cut_reader import CutReader, OpenWindows
from maestro_dist.data.recordings.raw import moments_name
from maestro_dist.data.recordings.windowing import window_index, windowing_of
from maestro_dist.data.sample import BadSample, DecodedSample, SampleFormat, decode_sample
from maestro_dist.data.shard_index import HEADER, META, ShardIndex, member_name
from maestro_dist.data.sparse_file import has_range_locks
from maestro_dist.data.storage import Storage
from maestro_dist.data.storage.retry import Heartbeat
from maestro_dist.data.window_layout import SampleParts
from maestro_dist.data.window_reader import Located, ShardGroup, WindowReader
from maestro_dist.data.windows import Empty, Windows
from maestro_dist.types import Batch, Modality

_INDEXES = 16  # that are read at a time
_LARGE_SHARD = 256 << 20  # bytes


def _ignore(what: str) -> None:
    """A heartbeat that nobody waits for."""


@dataclass(frozen=True)
class Request:
    """A micro-batch to read: a plain value that is sent to a reader process.

    numbers   int64 [B]: numbers of the samples in the split, in manifest order
    keep      bool [B, M]: which of the present modalities to keep; None: all
    drop      probability that the curriculum drops a modality, drawn by (seed, step, sample, modality)
    both      read each sample twice, without and with dropped modalities (`Batch.views`)
    mixing    the partners for mixup; None: no mixup
    fields    further fields of `Batch`: last, global_samples, position, epoch, step
    """

    numbers: np.ndarray
    keep: np.ndarray | None = None
    drop: float = 0.0
    seed: int = 0
    both: bool = False
    mixing: Mixing | None = None
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SplitSource:
    """The samples of a split: where they are and how they are read. A plain value that is sent to reader processes.

    modalities  the modalities to read, sorted by name
    symbols     read SAX symbols instead of raw windows (`reads_symbols` says whether a run may)
    slices      steps [first, end) of each modality to keep, where ranks share the time axis; None: all
    augment     augmentation of the decoded windows; None: none
    """

    url: str
    manifest: Manifest
    config: DataConfig
    modalities: tuple[Modality, ...]
    split: str
    symbols: bool = False
    slices: Mapping[str, tuple[int, int]] | None = None
    augment: AugmentConfig | None = None

    @property
    def format(self) -> SampleFormat:
        """How a sample is decoded."""
        return SampleFormat.of(self.manifest, self.modalities, symbols=self.symbols, slices=self.slices)

    @property
    def members(self) -> list[str]:
        """Names of the members to read: the json, then those of the modalities."""
        return [META] + [member_name(modality.name, symbols=self.symbols) for modality in self.modalities]

    @property
    def changes_windows(self) -> bool:
        """Whether windows are augmented or mixed."""
        return self.augment is not None and bool(wanted_kinds(self.augment))

    @property
    def reads_parts(self) -> bool:
        """Whether only parts of the windows are read: those of a rank that shares the time axis.

        Not if windows are changed or checked as a whole: ranks that share the time axis must find the same samples bad,
        so if bad samples are skipped, each checks the complete windows.
        """
        whole = self.changes_windows or self.config.max_bad_samples
        return self.slices is not None and not whole

    @property
    def downloads_parts(self) -> bool:
        """Whether it also downloads only parts, if the indexes have digests: not of short windows, but of large shards
        of recordings, whose first window would else wait for all the others."""
        longest = max(m.steps * m.variates * np.dtype(np.float32).itemsize for m in self.manifest.modalities)
        largest = max((shard.bytes for shard in self.manifest.split(self.split).shards), default=0)
        large = self.manifest.cut is not None and largest >= _LARGE_SHARD
        return has_range_locks() and ((self.reads_parts and longest >= LONG_WINDOW) or large)

    def indexes(self) -> Iterator[ShardIndex]:
        """The indexes of the split's shards, in their order.

        Raises:
            DataError: an index is missing or damaged.
        """
        storage = Storage(self.url)
        with ThreadPoolExecutor(_INDEXES) as pool:
            shards = self.manifest.split(self.split).shards
            stored = pool.map(lambda shard: index_of(storage, shard, self.config.cache), shards)
            if self.manifest.cut is None:
                yield from stored
                return
            for shard, index in zip(shards, stored, strict=True):
                yield self._windows(shard, index)[0]

    def sample_parts(self, shard: Shard, stored: ShardIndex) -> Callable[[int], list[tuple[int, int]]]:
        """Which bytes [start, end) of a shard a rank downloads of sample `row`, if it downloads parts."""
        if self.manifest.cut is not None:
            index, windows = self._windows(shard, stored)
            return CutParts(self.format, *index.columns(self.members), windows).of
        parts, (offsets, sizes) = SampleParts(self.format), stored.columns(self.members)

        def of(row: int) -> list[tuple[int, int]]:
            return parts.of(offsets[row].tolist(), sizes[row].tolist(), np.flatnonzero(sizes[row, 1:]).tolist())

        return of

    def _windows(self, shard: Shard, stored: ShardIndex) -> tuple[ShardIndex, OpenWindows]:
        """The index of the windows of a shard of recordings, and what their reader needs. See `WindowsOf`."""
        windowing = windowing_of(self.url, self.manifest, self.config.cache)
        windows, names = windowing.shard(self.split, shard), windowing.names
        moments = [member_name(moments_name(modality.name)) for modality in self.modalities]
        offsets, sizes = stored.columns(moments)
        offsets = np.where(sizes > 0, offsets, 0)[windows.row]
        return window_index(stored, windows, names), OpenWindows.of(windows, self.modalities, names, offsets)

    def open(self, heartbeat: Heartbeat = _ignore) -> SplitReader:
        """A reader; it opens files when it first needs them. `heartbeat` is called for each sample."""
        return SplitReader(self, heartbeat)


@dataclass(frozen=True)
class StoredSample:
    """The bytes of a sample: its json, and the npy file of each modality. `where` names the sample in messages."""

    key: str
    where: str
    meta: bytes
    arrays: dict[str, bytes]


class SplitReader:
    """Reads micro-batches of one split. Only one thread at a time may use it."""

    def __init__(self, source: SplitSource, heartbeat: Heartbeat = _ignore) -> None:
        self.source = source
        self.format, self.members = source.format, source.members
        shards = source.manifest.split(source.split).shards
        self.starts = np.cumsum([0] + [shard.samples for shard in shards])
        self._heartbeat = heartbeat
        storage = Storage(source.url, heartbeat=heartbeat)
        variates = sum(modality.variates for modality in source.modalities) if source.manifest.recording else 0
        self._shards = OpenShards(storage, shards, self.members, source.config, heartbeat, variates)
        self._shards.in_parts, self._shards.targets = source.downloads_parts, self.format.targets
        cut = source.manifest.cut is not None
        self._shards.windows_of = source._windows if cut else None
        self._cut_reader = CutReader(self.format, heartbeat) if cut else None
        self._window_reader = self._cut_reader or WindowReader(self.format, heartbeat)

    def close(self) -> None:
        """Close all files."""
        self._shards.close()

    def batch(self, request: Request) -> Batch:
        """Read a micro-batch. Bad samples are left out and named in `Batch.bad`."""
        return self.arrays(request).tensors()

    def arrays(self, request: Request, empty: Empty = np.empty) -> Batch:
        """A micro-batch with numpy arrays instead of tensors; does not import torch. Large ones are made by `empty`."""
        numbers, mixing, step = request.numbers, request.mixing, request.fields.get("step", 0)
        involved = numbers if mixing is None else np.concatenate([numbers, mixing.partners])
        self._shards.keep(len(np.unique(np.searchsorted(self.starts, involved, side="right"))))
        located = self._located(numbers)
        own = located.present
        there = own if mixing is None else own | self._located(mixing.partners).present
        keep = there if request.keep is None else there & request.keep
        modalities = self.format.modalities
        left = drop_modalities(keep, numbers, modalities, p=request.drop, seed=request.seed, step=step)
        keep = keep if request.both else left
        changed = mixing is not None or self.source.changes_windows
        windows = self._windows(numbers, located, own & keep, np.empty if changed or request.both else empty)
        if windows is not None and not changed:
            windows = windows.twice(left, empty) if request.both else windows
            return replace(windows.batch(), views=1 + request.both, **request.fields)
        found, bad = self._decoded(numbers, own & keep, request, windows)
        changes: dict[str, Any] = request.fields | {"bad": list(bad.values()), "bad_samples": list(bad)}
        if mixing is not None:
            changes |= self._mix(found, mixing, keep, request)
        samples = list(found.values())
        if request.both:
            names = [modality.name for modality in modalities]
            changes |= {
                name: np.concatenate([changes[name]] * 2) for name in ("mix", "partner_target") if name in changes
            }
            changes |= {"views": 2, "keys": [sample.key for sample in samples]}
            samples += [_some(sample, names, left[place]) for place, sample in found.items()]
        return replace(collate(samples, self.format, empty), **changes)

    def most_bytes(self, request: Request) -> int:
        """Upper bound for the bytes of the windows of a micro-batch."""
        sizes = [self.format.part(m).stop - self.format.part(m).start for m in self.format.modalities]
        steps = sum(size * m.variates for size, m in zip(sizes, self.format.modalities, strict=True))
        return len(request.numbers) * (1 + request.both) * steps * self.format.dtype.itemsize + (1 << 16)

    def _located(self, numbers: np.ndarray) -> Located:
        """Where the samples are."""
        positions = np.searchsorted(self.starts, numbers, side="right") - 1
        order = np.argsort(positions, kind="stable")
        found, first = np.unique(positions[order], return_index=True)
        groups = (
            [
                ShardGroup(self._shards.get(position), places, numbers[places] - self.starts[position])
                for position, places in zip(found.tolist(), np.split(order, first[1:]), strict=True)
            ]
            if len(numbers)
            else []
        )
        return Located.of(groups, len(numbers), len(self.members))

    def _windows(
        self, numbers: np.ndarray, located: Located, wanted: np.ndarray, empty: Empty = np.empty
    ) -> Windows | None:
        """The windows of `wanted`, bool [B, M]; None if any is unusual, or if they are needed or checked as a whole."""
        if self.source.slices is not None and not self.source.reads_parts:
            return None
        try:
            return self._window_reader.read(numbers, located, wanted, self._shards, empty)
        except OSError:  # a file may need to be opened again
            return None

    def _decoded(
        self, numbers: np.ndarray, wanted: np.ndarray, request: Request, windows: Windows | None
    ) -> tuple[dict[int, DecodedSample], dict[int, str]]:
        """The augmented samples by their place in `numbers`, and the messages of bad samples by sample number.

        `windows`: what `_windows` gave for them; if it is None, they are read one by one.
        """
        found: dict[int, DecodedSample] = {}
        bad: dict[int, str] = {}
        if windows is not None:
            found = windows.samples()
        else:
            for place, number in enumerate(numbers.tolist()):
                try:
                    found[place] = self._sample(number, wanted[place])
                except BadSample as error:
                    bad[number] = str(error)
        source = self.source
        if source.augment is None or not source.changes_windows:
            return found, bad
        changed = augment(
            list(found.values()),
            source.augment,
            source.modalities,
            source.manifest.window_s,
            seed=request.seed,
            epoch=request.fields.get("epoch", 0),
        )
        return dict(zip(found, changed, strict=True)), bad

    def _mix(
        self, found: dict[int, DecodedSample], mixing: Mixing, keep: np.ndarray, request: Request
    ) -> dict[str, Any]:
        """Mix each sample of `found` with its partner, in place. Returns the fields of `Batch` about mixup.

        A sample with a bad partner stays unmixed. The rank that owns the bad sample reports it.
        """
        places = list(found)
        numbers = mixing.partners[places]
        located = self._located(numbers)
        wanted = located.present & keep[places]
        partners, _ = self._decoded(numbers, wanted, request, self._windows(numbers, located, wanted))
        shares = np.ones(len(places), dtype=np.float32)
        targets = [found[place].target for place in places]
        for at, partner in partners.items():
            place = places[at]
            shares[at] = float(mixing.shares[place])
            targets[at] = partner.target
            found[place] = mix(found[place], partner, float(mixing.shares[place]))
        partner_target = self.format.target_array(len(targets))
        partner_target[:] = np.array(targets, dtype=partner_target.dtype).reshape(partner_target.shape)
        return {"mix": shares, "partner_target": partner_target}

    def sample(self, number: int) -> DecodedSample:
        """A sample with all modalities that it has, packed or cut.

        Raises:
            BadSample: it is damaged.
            DataError: its shard is damaged.
            StorageError: its shard cannot be read.
        """
        shard, row = self._locate(number)
        return self._sample(number, shard.sizes[row, 1:] > 0)

    def _sample(self, number: int, wanted: np.ndarray) -> DecodedSample:
        """A sample. A bad one is read again where its file has changed since it was verified."""
        try:
            return self._sample_as_it_is(number, wanted)
        except BadSample:
            if not self._shards.renewed(self._locate(number)[0]):
                raise
        return self._sample_as_it_is(number, wanted)

    def _sample_as_it_is(self, number: int, wanted: np.ndarray) -> DecodedSample:
        if self._cut_reader is None:
            return self.decode(number, self.stored(number, wanted))
        return self._cut_reader.sample(number, *self._locate(number), wanted, self._shards)

    def _locate(self, number: int) -> tuple[OpenShard, int]:
        position = int(np.searchsorted(self.starts, number, side="right")) - 1
        return self._shards.get(position), int(number - self.starts[position])

    def stored(self, number: int, wanted: np.ndarray | None = None) -> StoredSample:
        """The bytes of a sample. `wanted`, bool [M]: which of its modalities; None: all.

        Raises:
            BadSample: the index does not point at its members.
            DataError: its shard is damaged.
            StorageError: its shard cannot be read.
        """
        shard, row = self._locate(number)
        wanted = shard.sizes[row, 1:] > 0 if wanted is None else wanted
        where = f"{shard.name}, sample {shard.keys[row]}"
        self._heartbeat(f"reading {where}")
        arrays = {
            modality.name: self._member(shard, row, column, where)
            for column, modality in enumerate(self.format.modalities, start=1)
            if wanted[column - 1]
        }
        return StoredSample(shard.keys[row], where, self._member(shard, row, 0, where), arrays)

    def decode(self, number: int, stored: StoredSample) -> DecodedSample:
        """Decode and check the bytes of a sample. Raises BadSample."""
        return decode_sample(number, stored.key, stored.meta, stored.arrays, self.format, stored.where)

    def _member(self, shard: OpenShard, row: int, column: int, where: str) -> bytes:
        """Content of a member. Checks its tar header, which detects the index of another shard."""
        size = int(shard.sizes[row, column])
        data = self._shards.read(shard, row, column) if size else b""
        name = f"{shard.keys[row]}.{self.members[column]}"
        if data[:100].rstrip(b"\0") != name.encode() or len(data) != HEADER + size:
            raise BadSample(f"{where}: the index does not point at {name}; pack the data set again")
        return data[HEADER:]


def _some(sample: DecodedSample, names: Sequence[str], left: np.ndarray) -> DecodedSample:
    """The sample with the modalities that are left, bool [M]."""
    kept = {name for name, stays in zip(names, left, strict=True) if stays}
    return replace(sample, values={name: window for name, window in sample.values.items() if name in kept})


def presence(source: SplitSource) -> np.ndarray:
    """bool [N, M]: which sample of a split has which modality. Only the indexes are read."""
    names = [member_name(modality.name, symbols=source.symbols) for modality in source.modalities]
    return np.concatenate([index.columns(names)[1] > 0 for index in source.indexes()])
