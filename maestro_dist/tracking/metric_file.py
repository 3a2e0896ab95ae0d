"""Metrics on disk: an append-only file of JSON lines.

`{"step": 12, "metrics": {"train/loss": 0.5}}` holds the metrics of a step; an optional `"local"` holds numbers for
figures, which are not sent to MLflow. `{"resume": 8}` marks a new attempt that continues after step 8: earlier lines of
later steps belong to lost work and are ignored.
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
"""A step, its metrics, and its numbers for figures."""


class MetricFile:
    """The metrics file of one attempt: appends lines, and reads valid lines from any offset.

    If the disk is full, read-only or gone, lines are lost but nothing is raised.

    lost     number of lines that could not be written
    problem  the error of the last write; None if it succeeded
    """

    def __init__(self, folder: Path, resume_step: int) -> None:
        self.path = folder / FILE
        self.lost = 0
        self.problem: OSError | None = None
        self._file: io.FileIO | None = None
        self._pending = _line({"resume": resume_step})  # bytes to write before the next line
        self._limits: list[tuple[int, float]] | None = None
        self._write(b"")

    def append(self, step: int, metrics: dict[str, float], local: dict[str, float] | None = None) -> None:
        """Add a line. It is passed to the operating system immediately, so it survives the end of this process.

        `local` are numbers for figures: `read_history` returns them too, `read` does not.
        """
        content = {"step": step, "metrics": metrics} | ({"local": local} if local else {})
        if not self._write(_line(content)):
            self.lost += 1

    def read(self, offset: int, lines: int) -> tuple[list[tuple[int, dict[str, float]]], int]:
        """Up to `lines` lines from a byte offset, without invalid ones, and the offset after them."""
        valid: list[tuple[int, dict[str, float]]] = []
        if not self.path.exists():  # nothing has been written yet
            return valid, offset
        limits = self._limits  # a writing thread may reset them at any time
        if limits is None:
            limits = self._limits = _limits(self.path)
        with self.path.open("rb") as file:
            file.seek(offset)
            for _ in range(lines):
                raw = file.readline()
                if not raw.endswith(b"\n"):
                    break
                valid.extend((step, metrics) for step, metrics, _ in _valid(raw, offset, limits))
                offset += len(raw)
        return valid, offset

    def close(self) -> None:
        """Close the file; nothing can be added afterwards."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()

    def _write(self, line: bytes) -> bool:
        """Write the pending bytes and a line. Returns False, and sets `problem`, if the write is incomplete."""
        written = 0
        try:
            file = self._open()
            data = self._pending + line
            while written < len(data):
                written += file.write(data[written:])
        except OSError as error:
            self.problem = error
            if written:  # the incomplete line stays in the file; readers skip it
                self._pending = b"\n" + (self._pending.lstrip(b"\n") if written < len(self._pending) else b"")
            return False
        if self._pending:
            self._pending, self._limits = b"", None
        self.problem = None
        return True

    def _open(self) -> io.FileIO:
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if _ends_inside_a_line(self.path):  # the last attempt died while it wrote
                self._pending = b"\n" + self._pending.lstrip(b"\n")
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
    """All valid metrics of a run's folder. Empty if there are none."""
    path = folder / FILE
    steps: dict[str, list[int]] = {}
    values: dict[str, list[float]] = {}
    if path.exists():
        for step, metrics, local in _lines(path):
            for name, value in {**local, **metrics}.items():
                steps.setdefault(name, []).append(step)
                values.setdefault(name, []).append(value)
    return {name: (np.array(steps[name], dtype=np.int64), np.array(values[name])) for name in sorted(steps)}


def sent_lines(path: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """Step and metrics of each valid line, without the numbers for figures, which MLflow does not get."""
    for step, metrics, _ in _lines(path):
        yield step, metrics


def _lines(path: Path) -> Iterator[Line]:
    limits, offset = _limits(path), 0
    with path.open("rb") as file:
        for raw in file:
            yield from _valid(raw, offset, limits)
            offset += len(raw)


def _limits(path: Path) -> list[tuple[int, float]]:
    """(offset of a resume line, largest valid step before it), in order of offset."""
    limits: list[tuple[int, float]] = []
    with path.open("rb") as file:
        offset = 0
        for raw in file:
            if raw.startswith(b'{"resume"') and raw.endswith(b"\n"):
                with contextlib.suppress(ValueError, KeyError):  # an incomplete line that the next attempt ended
                    limits.append((offset, json.loads(raw)["resume"]))
            offset += len(raw)
    smallest = math.inf
    for index in range(len(limits) - 1, -1, -1):
        smallest = min(smallest, limits[index][1])
        limits[index] = (limits[index][0], smallest)
    return limits


def _valid(raw: bytes, offset: int, limits: list[tuple[int, float]]) -> Iterator[Line]:
    try:
        content = json.loads(raw)
    except ValueError:  # the incomplete line of a killed process
        return
    if not isinstance(content, dict) or "step" not in content:
        return
    limit = next((limit for place, limit in limits if place > offset), math.inf)
    if content["step"] <= limit:
        yield content["step"], content["metrics"], content.get("local", {})
