"""Metrics on disk: an append-only file of JSON lines.

`{"step": 12, "metrics": {"train/loss": 0.5}}` is what was measured at a step. `{"resume": 8}` says that a new attempt
starts after step 8: lines of later steps that stand before it tell of work that was lost, and count no more.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

FILE = "metrics.jsonl"
History = dict[str, tuple[np.ndarray, np.ndarray]]
"""Metric name -> steps int64 [n], ascending, and values float64 [n]."""


class MetricFile:
    """One attempt's view of the file: appends at the end, reads lines that count from any offset."""

    def __init__(self, folder: Path, resume_step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / FILE
        self._file = self.path.open("ab")
        if self._file.tell():
            with self.path.open("rb") as old:
                old.seek(-1, os.SEEK_END)
                if old.read() != b"\n":
                    self._file.write(b"\n")  # the last attempt died while it wrote: its half line stays alone
        self._write({"resume": resume_step})
        self._limits = _limits(self.path)

    def append(self, step: int, metrics: dict[str, float]) -> None:
        """Add a line. It reaches the operating system at once, so it outlives this process."""
        self._write({"step": step, "metrics": metrics})

    def read(self, offset: int, lines: int) -> tuple[list[tuple[int, dict[str, float]]], int]:
        """Up to `lines` lines from a byte offset on that count, and the offset after them."""
        found: list[tuple[int, dict[str, float]]] = []
        with self.path.open("rb") as file:
            file.seek(offset)
            for _ in range(lines):
                raw = file.readline()
                if not raw.endswith(b"\n"):
                    break
                found.extend(_counting(raw, offset, self._limits))
                offset += len(raw)
        return found, offset

    def close(self) -> None:
        """Close the file; nothing can be added afterwards."""
        self._file.close()

    def _write(self, content: dict[str, object]) -> None:
        self._file.write(json.dumps(content).encode() + b"\n")
        self._file.flush()


def read_history(folder: Path) -> History:
    """All metrics of a run's folder that count. Empty where there are none."""
    path = folder / FILE
    steps: dict[str, list[int]] = {}
    values: dict[str, list[float]] = {}
    if path.exists():
        for step, metrics in _lines(path):
            for name, value in metrics.items():
                steps.setdefault(name, []).append(step)
                values.setdefault(name, []).append(value)
    return {name: (np.array(steps[name], dtype=np.int64), np.array(values[name])) for name in sorted(steps)}


def _lines(path: Path) -> Iterator[tuple[int, dict[str, float]]]:
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
                with contextlib.suppress(ValueError):  # the half line of a killed process, ended by the next one
                    found.append((offset, json.loads(raw)["resume"]))
            offset += len(raw)
    smallest = math.inf
    for index in range(len(found) - 1, -1, -1):
        smallest = min(smallest, found[index][1])
        found[index] = (found[index][0], smallest)
    return found


def _counting(raw: bytes, offset: int, limits: list[tuple[int, float]]) -> Iterator[tuple[int, dict[str, float]]]:
    try:
        content = json.loads(raw)
    except ValueError:  # the half line of a killed process
        return
    if "step" not in content:
        return
    limit = next((limit for place, limit in limits if place > offset), math.inf)
    if content["step"] <= limit:
        yield content["step"], content["metrics"]
