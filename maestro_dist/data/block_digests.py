"""Digests of the blocks of a shard, so that a part of a remote shard can be checked without the rest.

They are in the index of a shard whose windows are long enough to be read in parts; the manifest has the sha256 of the
index. A digest is the first 8 bytes of a sha256: damage is not noticed with a probability of 2^-64. This protects less
than the sha256 of a complete shard against somebody who may write to the storage: other bytes with the digest of a
block can be found by 2^64 attempts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO

LONG_WINDOW = 128 << 10
"""Mean bytes of the windows of a shard that is read in parts. With smaller ones, a few large requests are better."""

_DIGEST = 8  # bytes
_SIZES = [4096 << step for step in range(5)]


@dataclass(frozen=True)
class BlockDigests:
    """The digests of consecutive blocks of `size` bytes; the last block of a shard may be shorter."""

    size: int
    digests: bytes

    def __len__(self) -> int:
        return len(self.digests) // _DIGEST

    @property
    def name(self) -> str:
        """A name that only these digests have."""
        return hashlib.sha256(b"%d " % self.size + self.digests).hexdigest()[:16]

    def fits(self, size: int) -> bool:
        """Whether they can be the digests of a shard of `size` bytes."""
        return self.size in _SIZES and len(self.digests) == -(-size // self.size) * _DIGEST

    def holds(self, number: int, data: bytes | memoryview) -> bool:
        """Whether `data` is block `number`."""
        return hashlib.sha256(data).digest()[:_DIGEST] == self.digests[number * _DIGEST : (number + 1) * _DIGEST]

    def runs(self, parts: Sequence[tuple[int, int]]) -> list[range]:
        """The blocks with the bytes [start, end) of each part, as sorted runs that do not touch."""
        found: list[range] = []
        for start, end in sorted(part for part in parts if part[0] < part[1]):
            run = range(start // self.size, -(-end // self.size))
            if found and run.start <= found[-1].stop:
                run = range(found[-1].start, max(found.pop().stop, run.stop))
            found.append(run)
        return found


def digest_blocks(file: IO[bytes], windows: Sequence[int]) -> BlockDigests | None:
    """The digests of a shard that is read from its start; None if its windows are too short to be read in parts.

    `windows` are the sizes in bytes of the windows in the shard. P ranks that read a part of each window share W
    windows of s bytes at a cost of (P - 1) W blocks that two ranks read, and P W s / block digests of 8 bytes. It is
    least with blocks of the square root of 8 s bytes; the next smaller power of two is taken.
    """
    mean = sum(windows) // max(1, len(windows))
    if mean < LONG_WINDOW:
        return None
    size = max((size for size in _SIZES if size * size <= 8 * mean), default=_SIZES[0])
    digests = bytearray()
    while block := file.read(size):
        digests += hashlib.sha256(block).digest()[:_DIGEST]
    return BlockDigests(size, bytes(digests))
