"""The codes of pickles that plain values need; see `restricted_pickle.py`.

Memory stays within a small multiple of the size of the file: text and bytes are as long as in the file, the number of
other values is limited, memo places are those that are filled, and whole numbers are short.
"""

from __future__ import annotations

import codecs
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

_LONGEST_NUMBER = 1000  # letters or bytes
_MOST_CODES = 1_000_000  # the files of a person have some hundreds; arrays count as one


class Refused(Exception):
    """What is wrong with a file."""


@dataclass
class PickleReader:
    """Reads the codes of one pickle.

    named     what stands for a name (module, attribute) of the file
    made      what such a thing makes of its arguments
    complete  sets the state of what was made
    marks     heights of the stack
    """

    content: bytes
    named: Callable[[str, str], Any]
    made: Callable[[Any, Any], Any]
    complete: Callable[[Any, Any], None]
    place: int = 0
    stack: list[Any] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    codes: ClassVar[dict[int, Callable[[PickleReader], None]]] = {}

    def value(self) -> Any:
        """Read up to the end.

        Raises:
            Refused: what is wrong with the file.
            ValueError, TypeError, IndexError, KeyError, struct.error, OverflowError: it is damaged.
        """
        for _ in range(_MOST_CODES):
            code = self.take(1)[0]
            if code == ord("."):
                return self.stack.pop()
            action = self.codes.get(code)
            if action is None:
                raise Refused(f"byte {self.place - 1:,} is code 0x{code:02x}, which plain data does not need; refused")
            action(self)
        raise Refused(f"more than {_MOST_CODES:,} values outside of arrays; refused")

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        if not 0 <= count <= len(self.content) - self.place:
            raise Refused("it ends too early: the file was cut short; fetch it again")
        self.place += count
        return self.content[self.place - count : self.place]

    def line(self) -> bytes:
        """The bytes up to the next line feed."""
        end = self.content.find(b"\n", self.place)
        if end < 0:
            raise Refused("it ends too early: the file was cut short; fetch it again")
        line = self.content[self.place : end]
        self.place = end + 1
        return line

    def number(self, form: str) -> Any:
        """The next number of this form of `struct`."""
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def digits(self) -> str:
        """A line with a number."""
        line = self.line()
        if len(line) > _LONGEST_NUMBER:
            raise Refused(f"a number with {len(line):,} digits; refused")
        return line.decode("ascii")

    def since_mark(self) -> list[Any]:
        """Take what is above the last mark."""
        height = self.marks.pop()
        items = self.stack[height:]
        del self.stack[height:]
        return items

    def top(self, kind: type) -> Any:
        """The top of the stack, which must be of this kind."""
        if self.marks and len(self.stack) <= self.marks[-1]:
            raise Refused("its parts are in the wrong order; fetch the file again")
        if not isinstance(self.stack[-1], kind):
            raise Refused(f"{type(self.stack[-1]).__name__} stands where {kind.__name__} belongs; fetch the file again")
        return self.stack[-1]


def _code(*codes: int | str) -> Callable[[Callable[[PickleReader], None]], Callable[[PickleReader], None]]:
    def add(action: Callable[[PickleReader], None]) -> Callable[[PickleReader], None]:
        for code in codes:
            PickleReader.codes[ord(code) if isinstance(code, str) else code] = action
        return action

    return add


def _constant(code: int | str, make: Callable[[PickleReader], Any]) -> None:
    _code(code)(lambda reader: reader.stack.append(make(reader)))


def _key(value: Any) -> Any:
    """A key of a dictionary: short, and quick to hash."""
    if not isinstance(value, str | bytes | int | float | None):
        raise Refused(f"a dictionary with a key of type {type(value).__name__}; refused")
    return value


def _text(reader: PickleReader) -> str:
    """Text of Python 2, as it is written in a program: '...' with escapes."""
    line = reader.line()
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
        raise Refused("a text without quotes; fetch the file again")
    return codecs.escape_decode(line[1:-1])[0].decode("latin-1")  # type: ignore[attr-defined]


def _whole(reader: PickleReader) -> int | bool:
    digits = reader.digits()
    return digits == "01" if digits in ("00", "01") else int(digits)


def _long(reader: PickleReader, size: int) -> int:
    if not 0 <= size <= _LONGEST_NUMBER:
        raise Refused(f"a number with {size:,} bytes; refused")
    return int.from_bytes(reader.take(size), "little", signed=True)


_constant("N", lambda reader: None)
_constant(0x88, lambda reader: True)
_constant(0x89, lambda reader: False)
_constant("I", _whole)
_constant("L", lambda reader: int(reader.digits().rstrip("L")))
_constant("J", lambda reader: reader.number("<i"))
_constant("K", lambda reader: reader.number("<B"))
_constant("M", lambda reader: reader.number("<H"))
_constant(0x8A, lambda reader: _long(reader, reader.number("<B")))
_constant(0x8B, lambda reader: _long(reader, reader.number("<i")))
_constant("F", lambda reader: float(reader.digits()))
_constant("G", lambda reader: reader.number(">d"))
_constant("S", _text)
_constant("T", lambda reader: reader.take(reader.number("<i")).decode("latin-1"))
_constant("U", lambda reader: reader.take(reader.number("<B")).decode("latin-1"))
_constant("V", lambda reader: reader.line().decode("raw-unicode-escape"))
_constant("X", lambda reader: reader.take(reader.number("<I")).decode("utf-8", "surrogatepass"))
_constant(0x8C, lambda reader: reader.take(reader.number("<B")).decode("utf-8", "surrogatepass"))
_constant(0x8D, lambda reader: reader.take(reader.number("<Q")).decode("utf-8", "surrogatepass"))
_constant("B", lambda reader: reader.take(reader.number("<I")))
_constant("C", lambda reader: reader.take(reader.number("<B")))
_constant(0x8E, lambda reader: reader.take(reader.number("<Q")))
_constant(0x96, lambda reader: reader.take(reader.number("<Q")))  # a bytearray: numpy's, of an array
_constant("}", lambda reader: {})
_constant("]", lambda reader: [])
_constant(")", lambda reader: ())
_constant("t", lambda reader: tuple(reader.since_mark()))
_constant("l", lambda reader: reader.since_mark())
_constant("g", lambda reader: reader.memo[int(reader.digits())])
_constant("h", lambda reader: reader.memo[reader.number("<B")])
_constant("j", lambda reader: reader.memo[reader.number("<I")])


@_code(0x80)
def _protocol(reader: PickleReader) -> None:
    if reader.number("<B") > 5:
        raise Refused("a pickle of an unknown protocol; refused")


@_code(0x95)
def _frame(reader: PickleReader) -> None:
    reader.take(8)


@_code("(")
def _mark(reader: PickleReader) -> None:
    reader.marks.append(len(reader.stack))


@_code("0")
def _pop(reader: PickleReader) -> None:
    reader.top(object)
    reader.stack.pop()


@_code("1")
def _pop_mark(reader: PickleReader) -> None:
    reader.since_mark()


@_code("p")
def _put(reader: PickleReader) -> None:
    reader.memo[int(reader.digits())] = reader.top(object)


@_code("q")
def _put_short(reader: PickleReader) -> None:
    reader.memo[reader.number("<B")] = reader.top(object)


@_code("r")
def _put_long(reader: PickleReader) -> None:
    reader.memo[reader.number("<I")] = reader.top(object)


@_code(0x94)
def _memoize(reader: PickleReader) -> None:
    reader.memo[len(reader.memo)] = reader.top(object)


@_code(0x85, 0x86, 0x87)
def _short_tuple(reader: PickleReader) -> None:
    size = reader.content[reader.place - 1] - 0x84
    items = reader.stack[-size:]
    if len(items) < size:
        raise IndexError("too few items")
    del reader.stack[-size:]
    reader.stack.append(tuple(items))


@_code("a")
def _append(reader: PickleReader) -> None:
    item = reader.stack.pop()
    reader.top(list).append(item)


@_code("e")
def _append_all(reader: PickleReader) -> None:
    items = reader.since_mark()
    reader.top(list).extend(items)


@_code("s")
def _set_item(reader: PickleReader) -> None:
    item, key = reader.stack.pop(), reader.stack.pop()
    reader.top(dict)[_key(key)] = item


@_code("u")
def _set_items(reader: PickleReader) -> None:
    _fill(reader.since_mark(), reader)


@_code("d")
def _dictionary(reader: PickleReader) -> None:
    items = reader.since_mark()
    reader.stack.append({})
    _fill(items, reader)


def _fill(items: list[Any], reader: PickleReader) -> None:
    if len(items) % 2:
        raise Refused("a dictionary with a key without a value; fetch the file again")
    reader.top(dict).update({_key(key): item for key, item in zip(items[::2], items[1::2], strict=True)})


@_code("c")
def _global(reader: PickleReader) -> None:
    module, attribute = reader.line().decode("utf-8"), reader.line().decode("utf-8")
    reader.stack.append(reader.named(module, attribute))


@_code(0x93)
def _stack_global(reader: PickleReader) -> None:
    attribute, module = reader.stack.pop(), reader.stack.pop()
    if not isinstance(module, str) or not isinstance(attribute, str):
        raise Refused("a name that is not text; refused")
    reader.stack.append(reader.named(module, attribute))


@_code("R")
def _reduce(reader: PickleReader) -> None:
    arguments, name = reader.stack.pop(), reader.stack.pop()
    reader.stack.append(reader.made(name, arguments))


@_code("b")
def _build(reader: PickleReader) -> None:
    state = reader.stack.pop()
    reader.complete(reader.top(object), state)
