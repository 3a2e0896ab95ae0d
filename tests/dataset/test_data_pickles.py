"""The reader of pickles: plain data of Python 2 and 3 is read, anything else is refused, and nothing is run."""

from __future__ import annotations

import builtins
import collections
import datetime
import os
import pickle
import struct
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import python2_pickle

from maestro_dist.data.converters.restricted_pickle import read_plain_data
from maestro_dist.errors import DataError

DRAW = np.random.default_rng(0)
SHARED = DRAW.normal(size=(4, 2))
PLAIN: dict[Any, Any] = {
    "signal": {"chest": {"ACC": DRAW.normal(size=(7, 3)), "ECG": np.asfortranarray(DRAW.normal(size=(5, 2)))}},
    "label": DRAW.integers(0, 8, size=300),
    "kinds": [np.arange(3, dtype=k) for k in ("i1", "u2", "i4", "u8", "f2", "f4")] + [np.array([True, False])],
    "twice": [SHARED, SHARED],
    "empty": np.zeros((0, 3)),
    "text": 'it\'s "S2"\\ \n \xff',
    "numbers": [0, 1, -5, 70000, -(2**31), 2.5, -1e-300, float("inf"), True, False, None],
    "nested": (1, ("a", []), {}),
}


def same(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            same(found[key], expected[key])
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            same(one, other)
    elif isinstance(expected, np.ndarray):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
    else:
        assert found == expected


@pytest.mark.parametrize("protocol", range(6))
def test_plain_data_of_python_3(protocol: int) -> None:
    more = {
        "wide": 10**300,
        "bytes": b"\xff\x00\n",
        "none": b"",
        "word": "é☃\n\U0001f600",
        "big": np.arange(3, dtype=">f8"),
    }
    same(read_plain_data("f", pickle.dumps(PLAIN | more, protocol)), PLAIN | more)
    scalars = {"a": np.float64(1.5), "b": np.int32(-4), "c": np.bool_(True)}
    same(read_plain_data("f", pickle.dumps(scalars, protocol)), {"a": 1.5, "b": -4, "c": True})


@pytest.mark.parametrize("protocol", [0, 2])
def test_plain_data_of_python_2(protocol: int) -> None:
    content = python2_pickle.dumps(PLAIN, protocol)
    same(pickle.loads(content, encoding="latin1"), PLAIN)  # what is written is a pickle
    same(read_plain_data("f", content), PLAIN)


class Calls:
    """Its pickle calls `function` when Python reads it."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    ("value", "name"),
    [
        (Calls(os.system, "touch PLACE"), "system"),
        (Calls(builtins.eval, "open('PLACE', 'w')"), "eval"),
        (Calls(builtins.exec, "open('PLACE', 'w')"), "exec"),
        (Calls(builtins.getattr, os, "system"), "getattr|refuses"),
        (Calls(subprocess.Popen, ["touch", "PLACE"]), "Popen"),
        (Calls(np.load, "PLACE"), "load"),
        (Calls(np.fromfile, "PLACE"), "fromfile"),
        (Calls(np.zeros, 10**12), "zeros"),
        (collections.OrderedDict(a=1), "OrderedDict"),
        (datetime.date(2020, 1, 1), "date"),
        ({1, 2}, "set|0x8f"),
        (slice(1), "slice"),
        (complex(1, 2), "complex"),
        (os.system, "system"),
        (DataError, "DataError"),
    ],
)
def test_other_names_are_refused(value: Any, name: str, protocol: int, tmp_path: Path) -> None:
    place = tmp_path / "made"
    if isinstance(value, Calls):
        text = [str(place) if isinstance(a, str) and a == "PLACE" else a for a in value.arguments]
        text = [a.replace("PLACE", str(place)) if isinstance(a, str) else a for a in text]
        value = Calls(
            value.function, *[[b.replace("PLACE", str(place)) for b in a] if isinstance(a, list) else a for a in text]
        )
    try:
        content = pickle.dumps({"signal": value}, protocol)
    except TypeError:  # a module cannot be pickled at all
        return
    with pytest.raises(DataError, match=rf"^f: .*({name}).*; refused") as error:
        read_plain_data("f", content)
    assert "\n" not in str(error.value)
    assert not place.exists()


ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
KIND = b"cnumpy\ndtype\n(S'f8'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntb"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps(np.array(["a", {}], dtype=object), 2), "an array of objects; only numbers can be read"),
        (pickle.dumps(np.array(["a"]), 2), "an array of dtype 'U1'"),
        (pickle.dumps(np.array([(1, 2)], dtype="i4,i4"), 2), "an array of dtype 'V8'"),
        (pickle.dumps(np.array(["2020-01-01"], dtype="M8[D]"), 2), "an array of dtype 'M8'"),
        (ARRAY + b"(I1\n(I9\nt" + KIND + b"I00\nS'12345678'\ntb.", r"an array of shape \(9,\) with 8 bytes"),
        (ARRAY + b"(I1\n(I99999999999\nt" + KIND + b"I00\nS'12345678'\ntb.", "with 8 bytes"),
        (ARRAY + b"(I1\n(I-1\nI-8\nt" + KIND + b"I00\nS'12345678'\ntb.", "whose shape is not a few whole numbers"),
        (ARRAY + b"(I1\n(((ttt" + KIND + b"I00\nS'12345678'\ntb.", "whose shape is not a few whole numbers"),
        (ARRAY + b"(I1\n(I1\nt" + KIND + b"I00\n(lp5\ntb.", "an array that holds more than plain numbers"),
        (ARRAY + b".", "an array has no numbers"),
        (
            ARRAY + b"(I1\n(I1\nt" + KIND + b"I00\nS'12345678'\ntb" + b"(I1\n(I1\nt" + KIND + b"I00\nS'12345678'\ntb.",
            "more",
        ),
        (KIND + b".", "it holds a name or a type of numpy"),
        (b"cnumpy\nndarray\n.", "it holds a name or a type of numpy"),
        (b"cnumpy\nndarray\n(I3\ntR.", "numpy's ndarray in an unusual way"),
        (b"cnumpy.core.multiarray\nscalar\n(" + KIND + b"S'123'\ntR.", "with 3 bytes"),
        (b"c_codecs\nencode\n(S'abc'\nS'zlib'\ntR.", "encode in an unusual way"),
        (b"cnumpy\ndtype\n(S'f8'\nI0\nI1\ntR(I3\nS'<'\n(S'O'\nI2\ntNNI-1\nI-1\nI0\ntb.", "more than plain numbers"),
        (b"cnumpy\ndtype\n(S'f8'\nI0\nI1\ntR(dS'text'\nS'O'\nsb.", "more than plain numbers"),
        (b"cnumpy\nndarray\n(dS'kind'\nS'array'\nsb.", "it sets the state of _PickledName"),
        (b"(dS'a'\nI1\ns(dS'b'\nI1\nsb.", "it sets the state of dict"),
        (b"cos\nsystem\n(S'true'\ntR.", "it refers to 'os'.'system', which is not plain data; refused"),
        (b"(S'true'\nios\nsystem\n.", "0x69, which plain data does not need"),
        (b"(cos\nsystem\nS'true'\no.", "it refers to 'os'.'system'"),
        (b"\x80\x02cnumpy\nndarray\n)\x81.", "0x81, which plain data does not need"),
        (b"Pname\n.", "0x50, which plain data does not need"),
        (b"\x80\x02\x82\x01.", "0x82, which plain data does not need"),
        (b"(d(tI1\ns.", "a key of type tuple"),
        (b"(d(((lttI1\ns.", "a key of type tuple"),
        (b"I" + b"9" * 2000 + b"\n.", "a number with 2,000 digits"),
        (b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"\x01.", "a number with 2,147,483,647 bytes"),
        (b"\x80\x02\x8b" + struct.pack("<i", -1) + b".", "a number with -1 bytes"),
        (b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"abc.", "it ends too early"),
        (b"T" + struct.pack("<i", -5) + b"abcdefgh.", "it ends too early"),
        (b"", "it ends too early"),
        (b"S'abc", "it ends too early"),
        (b"Sabc\n.", "a text without quotes"),
        (b".", "not a readable pickle"),
        (b"a.", "not a readable pickle"),
        (b"s.", "not a readable pickle"),
        (b"t.", "not a readable pickle"),
        (b"\x85.", "not a readable pickle"),
        (b"g7\n.", "not a readable pickle"),
        (b"(lI1\nI2\na.", "int stands where list belongs"),
        (b"(I1\nd.", "a key without a value"),
        (b"\x80\x09N.", "unknown protocol"),
        (b"Ixyz\n.", "not a readable pickle"),
        (b"\x80\x04\x8c\x02\xff\xfe.", "not a readable pickle"),
        (b"PK\x03\x04 an archive", "0x50|ends too early"),
    ],
)
def test_odd_pickles_are_refused(content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        read_plain_data("S2.pkl", content)
    assert str(error.value).startswith("S2.pkl: ")
    assert len(str(error.value)) < 300
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("protocol", [0, 2])
def test_every_cut_is_noticed(protocol: int) -> None:
    content = python2_pickle.dumps({"a": np.arange(3.0), "b": [1, "two"], "c": (None, {})}, protocol)
    for end in range(len(content)):
        with pytest.raises(DataError):
            read_plain_data("f", content[:end])


@pytest.mark.parametrize("protocol", [0, 2])
def test_flipped_bytes_make_data_or_a_data_error(protocol: int) -> None:
    content = python2_pickle.dumps({"a": np.arange(3.0), "b": [1, "two", 2.5], "c": (None, {})}, protocol)
    refused = 0
    for place in range(len(content)):
        for value in (0, ord("."), ord("("), ord("R"), ord("b"), ord("g"), 255, content[place] ^ 1):
            try:
                read_plain_data("f", content[:place] + bytes([value]) + content[place + 1 :])
            except DataError:
                refused += 1
    assert refused > len(content)


BOMBS = {
    "a list for each byte": b"(" + b"]" * 3_000_000 + b"t.",
    "a place far away": b"N" + b"".join(b"r" + struct.pack("<I", 2**32 - 1 - n) for n in range(1000)) + b".",
    "tuples in tuples": b")" + b"\x85" * 300_000 + b".",
    "doubled tuples": b")" + b"".join(b"q%c0h%ch%c\x86" % ((n,) * 3) for n in range(200)) + b".",
    "a list in itself": b"]q\x01h\x01a.",
}


@pytest.mark.parametrize("name", BOMBS)
def test_small_files_take_little_memory_and_time(name: str, tmp_path: Path) -> None:
    (tmp_path / "bomb.pkl").write_bytes(BOMBS[name])
    program = f"""
        import resource
        from maestro_dist.data.converters.restricted_pickle import read_plain_data
        from maestro_dist.errors import DataError
        content = open({str(tmp_path / "bomb.pkl")!r}, "rb").read()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            read_plain_data("bomb", content)
        except DataError as error:
            print(error)
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) < 300  # MB
    if name == "a list for each byte":
        assert "more than 1,000,000 values outside of arrays; refused" in done.stdout
