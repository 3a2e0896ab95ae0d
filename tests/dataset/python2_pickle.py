"""Writes values as Python 2 pickled them (protocols 0 and 2), which Python 3 cannot: text and arrays as bytes."""

from __future__ import annotations

import re
import struct
from typing import Any

import numpy as np


def dumps(value: Any, protocol: int = 0) -> bytes:
    """Dictionaries, lists, tuples, text, numbers and numpy arrays, as `cPickle.dumps` of Python 2 writes them."""
    writer = _Writer(protocol)
    writer.write(value)
    return (b"\x80\x02" if protocol else b"") + b"".join(writer.out) + b"."


class _Writer:
    def __init__(self, protocol: int) -> None:
        self.protocol, self.out, self.memo = protocol, [], 0
        self.array_kind: dict[str, int] = {}

    def put(self) -> int:
        self.memo += 1
        if self.protocol == 0:
            self.out.append(b"p%d\n" % self.memo)
        elif self.memo < 256:
            self.out.append(b"q" + bytes([self.memo]))
        else:
            self.out.append(b"r" + struct.pack("<I", self.memo))
        return self.memo

    def get(self, place: int) -> None:
        short = b"h" + bytes([place & 255]) if place < 256 else b"j" + struct.pack("<I", place)
        self.out.append(b"g%d\n" % place if self.protocol == 0 else short)

    def text(self, data: bytes) -> None:
        if self.protocol == 0:
            self.out.append(b"S" + repr(data)[1:].encode() + b"\n")
        elif len(data) < 256:
            self.out.append(b"U" + bytes([len(data)]) + data)
        else:
            self.out.append(b"T" + struct.pack("<i", len(data)) + data)
        self.put()

    def items(self, values: Any) -> None:
        self.out.append(b"(")
        for value in values:
            self.write(value)
        self.out.append(b"t")
        self.put()

    def write(self, value: Any) -> None:
        if isinstance(value, dict):
            self.out.append(b"(d" if self.protocol == 0 else b"}")
            self.put()
            for key, item in value.items():
                self.write(key)
                self.write(item)
                self.out.append(b"s")
        elif isinstance(value, list):
            self.out.append(b"(l" if self.protocol == 0 else b"]")
            self.put()
            for item in value:
                self.write(item)
                self.out.append(b"a")
        elif isinstance(value, tuple):
            self.items(value)
        elif isinstance(value, str):
            self.text(value.encode("latin-1"))
        elif isinstance(value, bool):
            self.out.append(b"I01\n" if value else b"I00\n")
        elif value is None:
            self.out.append(b"N")
        elif isinstance(value, int):
            self.out.append(b"I%d\n" % value)
        elif isinstance(value, float):
            self.out.append(b"F%s\n" % repr(value).encode() if self.protocol == 0 else b"G" + struct.pack(">d", value))
        elif isinstance(value, np.ndarray):
            self.array(value)
        else:
            raise TypeError(type(value))

    def array(self, value: np.ndarray) -> None:
        self.out.append(b"cnumpy.core.multiarray\n_reconstruct\n")
        self.put()
        self.out.append(b"(cnumpy\nndarray\n")
        self.put()
        self.items((0,))
        self.text(b"b")
        self.out.append(b"t")
        self.put()
        self.out.append(b"R")
        self.put()
        self.out.append(b"(I1\n")
        self.items(value.shape)
        kind = re.sub("[<>=|]", "", value.dtype.str)
        if kind in self.array_kind:
            self.get(self.array_kind[kind])
        else:
            self.out.append(b"cnumpy\ndtype\n")
            self.put()
            self.items((kind, 0, 1))
            self.out.append(b"R")
            self.array_kind[kind] = self.put()
            self.items((3, "<", None, None, None, -1, -1, 0))
            self.out.append(b"b")
        fortran = value.flags.f_contiguous and not value.flags.c_contiguous
        self.write(fortran)
        self.text(value.tobytes("F" if fortran else "C"))
        self.out.append(b"t")
        self.put()
        self.out.append(b"b")
