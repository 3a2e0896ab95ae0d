"""Metrics on disk: an append-only file of JSON lines.

`{"step": 12, "metrics": {"train/loss": 0.5}}` is what was measured at a step; `"local"` beside it holds numbers that
are kept here alone, for pictures. `{"resume": 8}` says that a new attempt
starts after step 8: lines of later steps that stand before it tell of work that was lost, and count no more.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

FILE = "metrics.jsonl"
History = dict[str, tuple[np.ndarray, np.ndarray]]
"""Metric name -> steps int64 [n], ascending, and values float64 [n]."""
Line = tuple[int, dict[str, float], dict[str, float]]
"""A step, its metrics, and its numbers for pictures."""


class MetricFile:
    """One attempt's view of the file: appends at the end, reads lines that count from any offset.

    A disk that is full, read-only or gone costs the lines that were to be written meanwhile, never an error.

    lost     lines that could not be written
    problem  why the last one could not; None where it was
    """

    def __init__(self, folder: Path, resume_step: int) -> None:
        self.path = folder / FILE
        self.lost = 0
        self.problem: OSError | None = None
        self._file: io.FileIO | None = None
        self._owed = _line({"resume": resume_step})  # what must stand before the next line
        self._limits: list[tuple[int, float]] | None = None
        self._write(b"")

    def append(self, step: int, metrics: dict[str, float], local: dict[str, float] | None = None) -> None:
        """Add a line. It reaches the operating system at once, so it outlives this process.

        `local` are numbers for pictures: `read_history` has them too, `read` leaves them out.
        """
        content = {"step": step, "metrics": metrics} | ({"local": local} if local else {})
        if not self._write(_line(content)):
            self.lost += 1

    def read(self, offset: int, lines: int) -> tuple[list[tuple[int, dict[str, float]]], int]:
        """Up to `lines` lines from a byte offset on that count, and the offset after them."""
        found: list[tuple[int, dict[str, float]]] = []
        if not self.path.exists():  # the disk has not taken a line yet
            return found, offset
        limits = self._limits  # another thread that writes may forget them meanwhile
        if limits is None:
            limits = self._limits = _limits(self.path)
        with self.path.open("rb") as file:
            file.seek(offset)
            for _ in range(lines):
                raw = file.readline()
                if not raw.endswith(b"\n"):
                    break
                found.extend((step, metrics) for step, metrics, _ in _counting(raw, offset, limits))
                offset += len(raw)
        return found, offset

    def close(self) -> None:
        """Close the file; nothing can be added afterwards."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()

    def _write(self, line: bytes) -> bool:
        """Write what is owed and a line. False, with `problem` set, where the disk did not take them whole."""
        written = 0
        try:
            file = self._open()
            data = self._owed + line
            while written < len(data):
                written += file.write(data[written:])
        except OSError as error:
            self.problem = error
            if written:  # what was begun stays alone, as a line that cannot be read
                self._owed = b"\n" + (self._owed.lstrip(b"\n") if written < len(self._owed) else b"")
            return False
        if self._owed:
            self._owed, self._limits = b"", None
        self.problem = None
        return True

    def _open(self) -> io.FileIO:
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if _ends_inside_a_line(self.path):  # the last attempt died while it wrote
                self._owed = b"\n" + self._owed.lstrip(b"\n")
            self._file = self.path.open("ab", buffering=0)
        return self._file


def _ends_inside_a_line(path: Path) -> bool:
    if not path.exists() or not path.stat().st_size:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() != b"\n"


def _line(content: dict[str, Any]) -> bytes:
    return json.dumps(content).encode() + b"\n"


def read_history(folder: Path) -> History:
    """All metrics of a run's folder that count. Empty where there are none."""
    path = folder / FILE
    steps: dict[str, list[int]] = {}
    values: dict[str, list[float]] = {}
    if path.exists():
        for step, metrics, local in _lines(path):
            for name, value in {**local, **metrics}.items():
                steps.setdefault(name, []).append(step)
                values.setdefault(name, []).append(value)
    return {name: (np.array(steps[name], dtype=np.int64), np.array(values[name])) for name in sorted(steps)}


def _lines(path: Path) -> Iterator[Line]:
    limits, offset = _limits(path), 0
    with path.open("rb") as file:
        for raw in file:
            yield from _counting(raw, offset, limits)
            offset += len(raw)


def _limits(path: Path) -> list[tuple[int, float]]:
    """(offset of a resume line, largest step that counts before it), in order of offset."""
    found: list[tuple[int, float]] = []
    with path.open("rb") as file:
        offset = 0
        for raw in file:
            if raw.startswith(b'{"resume"') and raw.endswith(b"\n"):
                with contextlib.suppress(ValueError, KeyError):  # a half line that the next attempt ended
                    found.append((offset, json.loads(raw)["resume"]))
            offset += len(raw)
    smallest = math.inf
    for index in range(len(found) - 1, -1, -1):
        smallest = min(smallest, found[index][1])
        found[index] = (found[index][0], smallest)
    return found


def _counting(raw: bytes, offset: int, limits: list[tuple[int, float]]) -> Iterator[Line]:
    try:
        content = json.loads(raw)
    except ValueError:  # the half line of a killed process
        return
    if not isinstance(content, dict) or "step" not in content:
        return
    limit = next((limit for place, limit in limits if place > offset), math.inf)
    if content["step"] <= limit:
        yield content["step"], content["metrics"], content.get("local", {})
