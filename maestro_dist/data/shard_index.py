"""The index of a shard: the offset of each member, so that a sample is read without scanning the tar."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO

import numpy as np

from maestro_dist.data.manifest import FORMAT, Shard
from maestro_dist.data.storage import ObjectMissing, Storage
from maestro_dist.errors import DataError

HEADER = 512  # bytes of a tar header; a member's content starts right after it
META = "json"


def member_name(modality: str, *, symbols: bool = False) -> str:
    """Name of a member (raw windows or SAX symbols) without the sample's key: `<key>.<name>` in the tar."""
    return f"{modality}.sax.npy" if symbols else f"{modality}.npy"


@dataclass(frozen=True)
class ShardIndex:
    """N samples, K member names: `offsets` and `sizes` int64 [N, K] in bytes; size 0: the sample has no such member."""

    keys: list[str]
    members: list[str]
    offsets: np.ndarray
    sizes: np.ndarray

    def columns(self, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Offsets and sizes of the named members, [N, len(names)] each; 0 for a name that no sample has."""
        column_of = {name: column for column, name in enumerate(self.members)}
        offsets = np.zeros((len(self.keys), len(names)), dtype=np.int64)
        sizes = np.zeros_like(offsets)
        for target, name in enumerate(names):
            if name in column_of:
                offsets[:, target] = self.offsets[:, column_of[name]]
                sizes[:, target] = self.sizes[:, column_of[name]]
        return offsets, sizes

    def to_json(self) -> bytes:
        """The index as bytes; the same tar gives the same bytes."""
        body = {
            "format": FORMAT,
            "members": self.members,
            "keys": self.keys,
            "offsets": self.offsets.tolist(),
            "sizes": self.sizes.tolist(),
        }
        return json.dumps(body, separators=(",", ":")).encode()


def index_tar(file: IO[bytes]) -> ShardIndex:
    """Make the index by reading the headers of a tar from its start."""
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for info in tar:
            key, _, name = info.name.partition(".")
            samples.setdefault(key, {})[name] = (info.offset_data, info.size)
    members = sorted({name for sample in samples.values() for name in sample})
    table = np.array([[sample.get(name, (0, 0)) for name in members] for sample in samples.values()], dtype=np.int64)
    table = table.reshape(len(samples), len(members), 2)
    return ShardIndex(list(samples), members, table[:, :, 0], table[:, :, 1])


def load_index(storage: Storage, shard: Shard) -> ShardIndex:
    """Read and check a shard's index.

    Raises:
        DataError: it is missing, not JSON, of another format, or does not fit the shard.
    """
    name = storage.name(shard.index)
    try:
        data = storage.read(shard.index, expected=True)
    except ObjectMissing as error:
        what = f"the index of shard {shard.path} is missing"
        raise DataError(f"{name}: {what}{error.asked}; pack the data set again") from error
    return parse_index(data, shard, name)


def parse_index(data: bytes, shard: Shard, name: str) -> ShardIndex:
    """Parse and check the bytes of a shard's index, which has this name.

    Raises:
        DataError: they are not JSON, of another format, or do not fit the shard.
    """
    try:
        raw = json.loads(data)
        if raw["format"] != FORMAT:
            raise DataError(f"{name}: format {raw['format']!r} is not {FORMAT!r}; pack the data set again")
        keys, members = [str(key) for key in raw["keys"]], [str(member) for member in raw["members"]]
        shape = (len(keys), len(members))
        offsets = np.array(raw["offsets"], dtype=np.int64).reshape(shape)
        sizes = np.array(raw["sizes"], dtype=np.int64).reshape(shape)
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise DataError(f"{name}: damaged index ({type(error).__name__}: {error}); pack the data set again") from error
    if len(keys) != shard.samples:
        raise DataError(f"{name}: {len(keys)} samples, but the manifest says {shard.samples}; pack the data set again")
    present = sizes > 0
    if (sizes < 0).any() or (offsets[present] < HEADER).any() or (offsets + sizes > shard.bytes).any():
        raise DataError(f"{name}: points outside shard {shard.path}; pack the data set again")
    return ShardIndex(keys, members, offsets, sizes)
