"""The index of a shard: the offset of each member, so that a sample is read without scanning the tar."""

from __future__ import annotations

import hashlib
import json
import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import IO

import numpy as np

from maestro_dist.data.block_digests import BlockDigests, digest_blocks
from maestro_dist.data.manifest import FORMAT, Shard
from maestro_dist.data.storage import ObjectDamaged, ObjectMissing, Storage
from maestro_dist.data.storage.plain_json import parse_json
from maestro_dist.errors import DataError

HEADER = 512  # bytes of a tar header; a member's content starts right after it
META = "json"
INDEX_SUFFIX = ".index"

_MAGIC = b"maestro_dist shard index\n"


def member_name(modality: str, *, symbols: bool = False) -> str:
    """Name of a member (raw windows or SAX symbols) without the sample's key: `<key>.<name>` in the tar."""
    return f"{modality}.sax.npy" if symbols else f"{modality}.npy"


@dataclass(frozen=True)
class ShardIndex:
    """N samples, K member names.

    offsets, sizes  int64 [N, K] in bytes; size 0: the sample has no such member
    targets         float64 [N]: class or target of each sample; [N, K]: K targets, NaN where one is unknown; None in an
                    index of an older version
    subjects        the person of each sample, "" where it has none; None in an index of an older version
    blocks          digests of the blocks of the shard; None: its windows are short, or the index is of an older version
    table           the shard's part of the table of recordings, as bytes; empty if it holds windows
    """

    keys: list[str]
    members: list[str]
    offsets: np.ndarray
    sizes: np.ndarray
    targets: np.ndarray | None = None
    subjects: list[str] | None = None
    blocks: BlockDigests | None = None
    table: bytes = b""

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

    def some(self, rows: np.ndarray) -> ShardIndex:
        """The index of the samples that `rows`, bool [N], selects."""
        places = np.flatnonzero(rows)
        return replace(
            self,
            keys=[self.keys[place] for place in places.tolist()],
            offsets=self.offsets[places],
            sizes=self.sizes[places],
            targets=None if self.targets is None else self.targets[places],
            subjects=None if self.subjects is None else [self.subjects[place] for place in places.tolist()],
        )

    def to_bytes(self) -> bytes:
        """The index as bytes; the same shard gives the same bytes.

        A line of JSON, then the arrays (little-endian) and the texts that it describes, then their CRC-32.
        """
        largest = int((self.offsets + self.sizes).max(initial=0))
        number = "<u4" if largest < 1 << 32 else "<u8"
        parts = [self.offsets.astype(number).tobytes(), self.sizes.astype(number).tobytes()]
        texts = [_joined(self.keys)]
        if self.targets is not None and self.subjects is not None:
            parts.append(self.targets.astype("<f8").tobytes())
            texts.append(_joined(self.subjects))
        head = {"format": FORMAT, "samples": len(self.keys), "members": self.members, "number": number}
        if len(texts) == 2 and self.targets is not None and self.targets.ndim == 2:
            head["targets"] = self.targets.shape[1]
        head["texts"] = [len(text) for text in texts]
        if self.blocks is not None:
            head["blocks"] = [self.blocks.size, len(self.blocks.digests)]
            parts.append(self.blocks.digests)
        if self.table:
            head["table"] = len(self.table)
            parts.append(self.table)
        body = b"".join((_MAGIC, json.dumps(head, separators=(",", ":")).encode(), b"\n", *parts, *texts))
        return body + zlib.crc32(body).to_bytes(4, "little")


def index_tar(file: IO[bytes]) -> ShardIndex:
    """Make the index of a tar: of its headers, and of its blocks if its windows are long."""
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for info in tar:
            key, _, name = info.name.partition(".")
            samples.setdefault(key, {})[name] = (info.offset_data, info.size)
    members = sorted({name for sample in samples.values() for name in sample})
    table = np.array([[sample.get(name, (0, 0)) for name in members] for sample in samples.values()], dtype=np.int64)
    table = table.reshape(len(samples), len(members), 2)
    file.seek(0)
    windows = [size for sample in samples.values() for name, (_, size) in sample.items() if name != META]
    return ShardIndex(list(samples), members, table[:, :, 0], table[:, :, 1], blocks=digest_blocks(file, windows))


def load_index(storage: Storage, shard: Shard) -> ShardIndex:
    """Read and check a shard's index.

    Raises:
        DataError: it is missing, not JSON, of another format, or does not fit the shard.
    """
    return read_index(storage, shard)[0]


def read_index(storage: Storage, shard: Shard) -> tuple[ShardIndex, bytes]:
    """As `load_index`, with the bytes of the index. If it is damaged, it is read again."""
    name = storage.name(shard.index)

    def parse(data: bytes) -> tuple[ShardIndex | str, bytes]:
        if not is_index(data, shard):
            raise ValueError("its sha256 is not that of the manifest")
        return _parsed(data), data

    try:
        index, data = storage.parsed(shard.index, parse, expected=True)
    except ObjectMissing as error:
        what = f"the index of shard {shard.path} is missing"
        raise DataError(f"{name}: {what}{error.asked}; pack the data set again") from error
    except ObjectDamaged as error:
        raise DataError(f"{error}; pack the data set again") from error
    return _checked(index, shard, name), data


def is_index(data: bytes, shard: Shard) -> bool:
    """Whether these are the bytes of the shard's index, as far as the manifest tells."""
    return shard.index_sha256 is None or hashlib.sha256(data).hexdigest() == shard.index_sha256


def parse_index(data: bytes, shard: Shard, name: str) -> ShardIndex:
    """Parse and check the bytes of a shard's index, which has this name.

    Raises:
        DataError: they are damaged, of another format, or do not fit the shard.
    """
    try:
        index = _parsed(data)
    except ValueError as error:
        raise DataError(f"{name}: {error}; pack the data set again") from error
    return _checked(index, shard, name)


def _parsed(data: bytes) -> ShardIndex | str:
    """The index; or the format, if it is another one. Raises ValueError if it is damaged."""
    try:
        return _from_bytes(data) if data.startswith(_MAGIC) else _from_json(data)
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"damaged index ({type(error).__name__}: {error})") from error


def _checked(index: ShardIndex | str, shard: Shard, name: str) -> ShardIndex:
    """The index, which fits the shard. Raises DataError if it does not."""
    if isinstance(index, str):
        raise DataError(f"{name}: format {index} is not {FORMAT!r}; pack the data set again")
    samples = len(index.keys)
    if samples != shard.stored:
        raise DataError(f"{name}: {samples} samples, but the manifest says {shard.stored}; pack the data set again")
    odd = next((key for key in index.keys if not key.isprintable()), None)
    if odd is not None:
        raise DataError(f"{name}: {odd!r:.80} is no key of a sample; pack the data set again")
    if len(set(index.keys)) != samples:
        again = next(key for place, key in enumerate(index.keys) if key in index.keys[:place])
        raise DataError(f"{name}: names sample {again} twice; pack the data set again")
    present = index.sizes > 0
    # subtracted, because the sum of two numbers of a damaged index may be too large
    outside = (index.offsets[present] < HEADER).any() or (index.offsets > shard.bytes - index.sizes).any()
    if (index.sizes < 0).any() or outside:
        raise DataError(f"{name}: points outside shard {shard.path}; pack the data set again")
    if index.blocks is not None and not index.blocks.fits(shard.bytes):
        raise DataError(f"{name}: its digests are not those of shard {shard.path}; pack the data set again")
    return index


def _from_bytes(data: bytes) -> ShardIndex | str:
    """The index; or the format, if it is another one. Raises ValueError, KeyError, TypeError, OverflowError."""
    if zlib.crc32(data[:-4]) != int.from_bytes(data[-4:], "little"):
        raise ValueError("its checksum is wrong")
    line, _, rest = data[len(_MAGIC) : -4].partition(b"\n")
    head = parse_json(line)
    if head["format"] != FORMAT:
        return repr(head["format"])
    members, samples = [str(member) for member in head["members"]], int(head["samples"])
    number, shape = np.dtype({"<u4": "<u4", "<u8": "<u8"}[head["number"]]), (samples, len(members))
    table = shape[0] * shape[1] * number.itemsize
    offsets, sizes = (np.frombuffer(rest[n * table : (n + 1) * table], number).reshape(shape) for n in range(2))
    targets, subjects, end = None, None, 2 * table
    texts = [int(length) for length in head["texts"]]
    if len(texts) == 2:
        each = int(head.get("targets", 1))
        targets = np.frombuffer(rest[end : end + 8 * samples * each], "<f8").astype(np.float64)
        targets = targets.reshape(samples, each) if "targets" in head else targets
        subjects = _split(rest[len(rest) - texts[1] :], samples)
        end += 8 * samples * each
    blocks = None
    if "blocks" in head:
        size, length = (int(number) for number in head["blocks"])
        blocks = BlockDigests(size, rest[end : end + length])
        end += length
    recordings = rest[end : end + int(head.get("table", 0))]
    end += len(recordings)
    keys = _split(rest[end : end + texts[0]], samples)
    if end + sum(texts) != len(rest):
        raise ValueError("its parts do not have the sizes that it says")
    return ShardIndex(
        keys, members, offsets.astype(np.int64), sizes.astype(np.int64), targets, subjects, blocks, recordings
    )


def _joined(texts: Sequence[str]) -> bytes:
    return "\0".join(texts).encode()


def _split(data: bytes, count: int) -> list[str]:
    texts = data.decode().split("\0") if count else []
    if len(texts) != count:
        raise ValueError(f"{len(texts)} names for {count} samples")
    return texts


def _from_json(data: bytes) -> ShardIndex | str:
    """An index of an older version, as `_from_bytes`."""
    raw = parse_json(data)
    if raw["format"] != FORMAT:
        return repr(raw["format"])
    keys, members = [str(key) for key in raw["keys"]], [str(member) for member in raw["members"]]
    shape = (len(keys), len(members))
    offsets = np.array(raw["offsets"], dtype=np.int64).reshape(shape)
    sizes = np.array(raw["sizes"], dtype=np.int64).reshape(shape)
    return ShardIndex(keys, members, offsets, sizes)
