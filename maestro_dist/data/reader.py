"""Random access to the samples of a split: `pread` by index from local(ised) shards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from maestro_dist.config.learning import AugmentConfig
from maestro_dist.config.schema import DataConfig
from maestro_dist.data.augment import augment
from maestro_dist.data.cache import Tell
from maestro_dist.data.collate import collate
from maestro_dist.data.index import HEADER, META, load_index, member_name
from maestro_dist.data.manifest import Manifest
from maestro_dist.data.missing import drop_modalities
from maestro_dist.data.mixup import Mixing, mix
from maestro_dist.data.sample import BadSample, Layout, Sample, decode_sample
from maestro_dist.data.shards import OpenShard, OpenShards
from maestro_dist.data.storage import Storage
from maestro_dist.types import Batch, Modality


def _nobody(what: str) -> None:
    """Nobody listens."""


@dataclass(frozen=True)
class Request:
    """A micro-batch to be read: a plain value, so that any process can serve it.

    numbers   int64 [B]: samples of the split, in manifest order
    keep      bool [B, M]: modalities to keep of those that are there; None: all, less those that the curriculum drops
    drop      probability of that drop, keyed by (seed, step, sample, modality)
    both      take each sample whole too, as a row of its own (`Batch.views`)
    mixing    whom these samples are mixed with; None: nobody
    fields    the bookkeeping fields of `Batch`: last, global_samples, position, epoch, step
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
    """Where the samples of a split are; a plain value that a spawned reader process gets.

    `symbols`: read SAX symbols instead of raw windows; `slices`: keep only these steps of each modality, [first, end).
    `augment`: how windows are changed after they are decoded.
    """

    url: str
    manifest: Manifest
    config: DataConfig
    modalities: tuple[Modality, ...]
    split: str
    symbols: bool = False
    slices: Mapping[str, tuple[int, int]] | None = None
    augment: AugmentConfig | None = None

    def open(self, tell: Tell = _nobody) -> SplitReader:
        """A reader; its files are opened when they are first needed. `tell` hears what it is at, sample by sample."""
        return SplitReader(self, tell)


@dataclass(frozen=True)
class Stored:
    """The bytes of a sample's members: its json, and the npy file of each modality. `where` names it for messages."""

    key: str
    where: str
    meta: bytes
    arrays: dict[str, bytes]


class SplitReader:
    """Reads micro-batches of one split. Not for use by several threads at a time."""

    def __init__(self, source: SplitSource, tell: Tell = _nobody) -> None:
        self.source = source
        self.layout = Layout.of(source.manifest, source.modalities, symbols=source.symbols, slices=source.slices)
        shards = source.manifest.split(source.split).shards
        self.starts = np.cumsum([0] + [shard.samples for shard in shards])
        self.members = [META] + [member_name(m.name, symbols=source.symbols) for m in source.modalities]
        self._tell = tell
        self._shards = OpenShards(Storage(source.url), shards, self.members, source.config, tell)

    def close(self) -> None:
        """Close all files."""
        self._shards.close()

    def batch(self, request: Request) -> Batch:
        """Read a micro-batch; bad samples are left out and named in `Batch.bad`."""
        return self.arrays(request).tensors()

    def arrays(self, request: Request) -> Batch:
        """The same with numpy's arrays in the place of tensors, without loading torch."""
        numbers, mixing, step = request.numbers, request.mixing, request.fields.get("step", 0)
        involved = numbers if mixing is None else np.concatenate([numbers, mixing.partners])
        self._shards.keep(len(np.unique(np.searchsorted(self.starts, involved, side="right"))))
        own = self._presence(numbers)
        there = own if mixing is None else own | self._presence(mixing.partners)
        keep = there if request.keep is None else there & request.keep
        names = [modality.name for modality in self.layout.modalities]
        always = [modality.always for modality in self.layout.modalities]
        left = drop_modalities(keep, numbers, names, p=request.drop, seed=request.seed, step=step, always=always)
        keep = keep if request.both else left
        found, bad = self._decoded(numbers, own & keep, request)
        changes: dict[str, Any] = request.fields | {"bad": list(bad.values()), "bad_samples": list(bad)}
        if mixing is not None:
            changes |= self._mix(found, mixing, keep, request)
        samples = list(found.values())
        if request.both:
            changes |= {name: np.tile(changes[name], 2) for name in ("mix", "partner_target") if name in changes}
            changes |= {"views": 2, "keys": [sample.key for sample in samples]}
            samples += [_some(sample, names, left[place]) for place, sample in found.items()]
        return replace(collate(samples, self.layout), **changes)

    def _presence(self, numbers: np.ndarray) -> np.ndarray:
        """bool [B, M]: which sample has which modality."""
        rows = [self._present(number) for number in numbers]
        return np.array(rows, dtype=bool).reshape(len(rows), len(self.layout.modalities))

    def _decoded(
        self, numbers: np.ndarray, wanted: np.ndarray, request: Request
    ) -> tuple[dict[int, Sample], dict[int, str]]:
        """The samples by their place among `numbers`, augmented; by number, what is wrong with those not there."""
        found: dict[int, Sample] = {}
        bad: dict[int, str] = {}
        for place, number in enumerate(numbers.tolist()):
            try:
                found[place] = self._sample(number, wanted[place])
            except BadSample as error:
                bad[number] = str(error)
        source = self.source
        if source.augment is None:
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

    def _mix(self, found: dict[int, Sample], mixing: Mixing, keep: np.ndarray, request: Request) -> dict[str, Any]:
        """Mix each of `found`, in place, with its partner. Returns what a batch says of it.

        A bad partner leaves its sample unmixed; the rank whose own sample it is names it.
        """
        places = list(found)
        numbers = mixing.partners[places]
        partners, _ = self._decoded(numbers, self._presence(numbers) & keep[places], request)
        shares = np.ones(len(places), dtype=np.float32)
        targets = [found[place].target for place in places]
        for at, partner in partners.items():
            place = places[at]
            shares[at] = float(mixing.shares[place])
            targets[at] = partner.target
            found[place] = mix(found[place], partner, float(mixing.shares[place]))
        dtype = np.int64 if self.layout.classes else np.float32
        return {"mix": shares, "partner_target": np.array(targets, dtype=dtype)}

    def _sample(self, number: int, wanted: np.ndarray) -> Sample:
        """A sample, read anew where it is bad and its file has changed since it was verified."""
        try:
            return self.decode(number, self.stored(number, wanted))
        except BadSample:
            if not self._shards.renewed(self._locate(number)[0]):
                raise
        return self.decode(number, self.stored(number, wanted))

    def _locate(self, number: int) -> tuple[OpenShard, int]:
        position = int(np.searchsorted(self.starts, number, side="right")) - 1
        return self._shards.get(position), int(number - self.starts[position])

    def _present(self, number: int) -> np.ndarray:
        shard, row = self._locate(number)
        return shard.sizes[row, 1:] > 0

    def stored(self, number: int, wanted: np.ndarray | None = None) -> Stored:
        """A sample as it is stored; `wanted`, bool [M], says which of its modalities (by default those it has).

        Raises:
            BadSample: the index does not point at its members.
        DataError, StorageError: its shard is wrong, or cannot be read.
        """
        shard, row = self._locate(number)
        wanted = shard.sizes[row, 1:] > 0 if wanted is None else wanted
        where = f"{shard.name}, sample {shard.keys[row]}"
        self._tell(f"reading {where}")
        arrays = {
            modality.name: self._member(shard, row, column, where)
            for column, modality in enumerate(self.layout.modalities, start=1)
            if wanted[column - 1]
        }
        return Stored(shard.keys[row], where, self._member(shard, row, 0, where), arrays)

    def decode(self, number: int, stored: Stored) -> Sample:
        """Its content, checked. Raises BadSample."""
        return decode_sample(number, stored.key, stored.meta, stored.arrays, self.layout, stored.where)

    def _member(self, shard: OpenShard, row: int, column: int, where: str) -> bytes:
        """Content of a member, after a look at its tar header: an index of another shard must not go unnoticed."""
        size = int(shard.sizes[row, column])
        data = self._shards.read(shard, row, column) if size else b""
        name = f"{shard.keys[row]}.{self.members[column]}"
        if data[:100].rstrip(b"\0") != name.encode() or len(data) != HEADER + size:
            raise BadSample(f"{where}: the index does not point at {name}; pack the data set again")
        return data[HEADER:]


def _some(sample: Sample, names: Sequence[str], left: np.ndarray) -> Sample:
    """The same sample with those modalities that are left, bool [M]."""
    kept = {name for name, stays in zip(names, left, strict=True) if stays}
    return replace(sample, values={name: window for name, window in sample.values.items() if name in kept})


def presence(
    url: str, manifest: Manifest, modalities: Sequence[Modality], split: str, *, symbols: bool = False
) -> np.ndarray:
    """bool [N, M]: which sample of a split has which modality, from the indexes alone."""
    storage = Storage(url)
    names = [member_name(modality.name, symbols=symbols) for modality in modalities]
    parts = [load_index(storage, shard).columns(names)[1] > 0 for shard in manifest.split(split).shards]
    return np.concatenate(parts)
