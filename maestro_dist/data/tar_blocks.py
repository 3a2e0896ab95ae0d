"""The bytes of samples in a shard: a tar as webdataset writes it, so that any program can read it.

Whoever makes the bytes of a sample need not know the samples before it: a shard is its samples' bytes, one after the
other, and an end. Owner, group and time are always the same, so that the same samples give the same bytes.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping, Sequence

import numpy as np

Blocks = Sequence[bytes | memoryview]
"""The content of a member in pieces, so that a large array is not copied."""


def sample_blocks(key: str, members: Mapping[str, Blocks]) -> list[bytes | memoryview]:
    """The tar entries of a sample, in pieces; its members are sorted by name."""
    blocks: list[bytes | memoryview] = []
    for name in sorted(members):
        size = sum(len(block) for block in members[name])
        blocks += [_header(f"{key}.{name}", size), *members[name], bytes(-size % tarfile.BLOCKSIZE)]
    return blocks


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o444
    return info.tobuf(tarfile.PAX_FORMAT)  # with an extra entry for sizes from 8 GiB, else as any tar


def end_of_tar(size: int) -> bytes:
    """What follows samples of `size` bytes."""
    end = 2 * tarfile.BLOCKSIZE
    return bytes(end + -(size + end) % tarfile.RECORDSIZE)


def bytes_written(size: int) -> int:
    """How many bytes of samples of `size` bytes a stream of tarfile has written: complete records except the last.

    A shard ends with the sample with which this reaches the size of a shard.
    """
    return max(0, -(-size // tarfile.RECORDSIZE) - 1) * tarfile.RECORDSIZE


def npy_blocks(array: np.ndarray) -> Blocks:
    """An array as an npy file: its header and its values."""
    array = np.asarray(array, order="C")
    header = io.BytesIO()
    described = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False, "shape": array.shape}
    np.lib.format.write_array_header_1_0(header, described)
    return [header.getvalue(), array.reshape(-1).view(np.uint8).data]
