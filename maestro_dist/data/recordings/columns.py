"""Named arrays as bytes, checked when they are read: no pickle, no size that the data does not have."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from maestro_dist.data.storage.plain_json import parse_json

_MAGIC = b"maestro_dist columns\n"
_KINDS = {"<i8", "<f8", "|u1", "|b1", "<i4"}


def columns_to_bytes(columns: Mapping[str, np.ndarray]) -> bytes:
    """The arrays, in their order. The same arrays give the same bytes."""
    head, body = [], []
    for name, array in columns.items():
        array = np.ascontiguousarray(array)
        kind = array.dtype.newbyteorder("<").str
        if kind not in _KINDS:
            raise TypeError(f"column {name} is {array.dtype}")
        head.append([name, kind, list(array.shape)])
        body.append(array.astype(kind, copy=False).tobytes())
    line = json.dumps(head, separators=(",", ":")).encode()
    data = b"".join((_MAGIC, line, b"\n", zlib.compress(b"".join(body), 1)))
    return data + zlib.crc32(data).to_bytes(4, "little")


def columns_from_bytes(data: bytes, most_bytes: int) -> dict[str, np.ndarray]:
    """The arrays that `columns_to_bytes` has written. `most_bytes`: the largest sum of their sizes that is allowed.

    Raises:
        ValueError: the data is damaged, or larger than that.
    """
    if not data.startswith(_MAGIC) or zlib.crc32(data[:-4]) != int.from_bytes(data[-4:], "little"):
        raise ValueError("its checksum is wrong")
    line, _, packed = data[len(_MAGIC) : -4].partition(b"\n")
    try:
        head = [(str(name), str(kind), tuple(int(n) for n in shape)) for name, kind, shape in parse_json(line)]
    except (TypeError, ValueError) as error:
        raise ValueError("its head is damaged") from error
    if any(kind not in _KINDS or min(shape, default=0) < 0 for _, kind, shape in head):
        raise ValueError("it names arrays of an unknown kind")
    sizes = [int(np.prod(shape, dtype=object)) * np.dtype(kind).itemsize for _, kind, shape in head]
    total = sum(sizes)
    if total > most_bytes:
        raise ValueError(f"it holds {total:,} bytes, {most_bytes:,} are allowed")
    unpack = zlib.decompressobj()
    try:
        body = unpack.decompress(packed, total + 1)
    except zlib.error as error:
        raise ValueError(f"it cannot be unpacked ({error})") from error
    if len(body) != total:
        raise ValueError("its arrays do not have the sizes that it says")
    found, start = {}, 0
    for (name, kind, shape), size in zip(head, sizes, strict=True):
        found[name] = np.frombuffer(body, np.dtype(kind), size // np.dtype(kind).itemsize, start).reshape(shape)
        start += size
    return found


def texts_to_array(texts: Sequence[str]) -> np.ndarray:
    """Texts as uint8, separated by zeros."""
    return np.frombuffer("\0".join(texts).encode(), dtype=np.uint8)


def texts_from_array(array: np.ndarray, count: int) -> list[str]:
    """The `count` texts that `texts_to_array` has written. Raises ValueError."""
    texts = array.tobytes().decode().split("\0") if count else []
    if len(texts) != count:
        raise ValueError(f"{len(texts)} names for {count} recordings")
    return texts
