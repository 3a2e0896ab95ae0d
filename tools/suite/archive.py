"""Where the results of cells are: in their runs, and in one small file for each data set, kept with the repository.

A run's folder holds `result.json` (written by the run), `cell.json` (settings, machine, attempts) and `job.log`. The
file `DATA.npz` in `Suite.results` holds of each finished cell all that reports need: JSON, and a float32 array with its
metrics under each resample of the test subjects. It is loaded without pickle.
"""

from __future__ import annotations

import datetime
import io
import json
import time
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from benchmarks.baselines.settings import BaselineConfig
from benchmarks.common import machine

from maestro_dist.config.identity import is_identity_key, run_identity
from maestro_dist.config.model import ModelConfig, StemConfig
from maestro_dist.config.renamed import RENAMED
from maestro_dist.config.schema import Config
from maestro_dist.data.storage import ObjectMissing, Storage
from maestro_dist.errors import RunError
from suite.matrix import Cell, Plan

RECORD_FILE, RESULT_FILE, LOG_FILE = "cell.json", "result.json", "job.log"
_DEFAULTS = {
    **run_identity(Config(model=ModelConfig(stem=StemConfig()))),  # also the keys of a section that may be absent
    **run_identity(Config()),
    **{f"baseline.{key}": value for key, value in BaselineConfig().model_dump(mode="json").items()},
}


@dataclass
class Record:
    """`attempts`: for each start {"started": unix seconds, "seconds": duration, "status": how it ended}."""

    command: str
    settings: dict[str, Any]
    machine: dict[str, Any]
    attempts: list[dict[str, Any]] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Of all attempts together."""
        return float(sum(attempt["seconds"] for attempt in self.attempts))

    @property
    def finished(self) -> datetime.datetime:
        """The end of the last attempt."""
        last = self.attempts[-1]
        return datetime.datetime.fromtimestamp(last["started"] + last["seconds"], datetime.UTC)

    def write(self, run: Storage, status: str | None = None) -> None:
        """Write it to the run's folder; `status`: the new status of the last attempt."""
        if status is not None:
            last = self.attempts[-1]
            last |= {"seconds": round(time.time() - last["started"], 1), "status": status}
        run.write(RECORD_FILE, json.dumps(vars(self), indent=1).encode())


@dataclass(frozen=True)
class Kept:
    """The content of one data set's file."""

    # by name: plain JSON with "record", "result", "tested", "experts" (or None), "numbers"
    cells: dict[str, dict[str, Any]] = field(default_factory=dict)
    # by model: {"cells": names, "values": {"auroc@0.4": ...}, "numbers": ["auroc@0.4", ...]}
    ensembles: dict[str, dict[str, Any]] = field(default_factory=dict)
    # by cell, or "ensemble MODEL": float32 [len(numbers), resamples]
    arrays: dict[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def read(cls, place: Storage, data: str) -> Kept:
        """Empty where there is no file. Raises RunError where it is damaged."""
        try:
            with np.load(io.BytesIO(place.read(f"{data}.npz")), allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
            index = json.loads(arrays.pop("index").tobytes())
            return cls(index["cells"], index["ensembles"], arrays)
        except ObjectMissing:
            return cls()
        except (ValueError, KeyError, TypeError, OSError, zipfile.BadZipFile) as error:
            raise RunError(f"{place.name(f'{data}.npz')} is damaged ({error}); remove it") from None

    def rows(self, name: str) -> dict[str, np.ndarray]:
        """The rows of an array, float64 by metric; none of a cell without scores."""
        entry = self.cells.get(name) or self.ensembles[name.removeprefix("ensemble ")]
        return {key: self.arrays[name][row].astype(np.float64) for row, key in enumerate(entry["numbers"])}

    def write(self, place: Storage, data: str) -> None:
        """Replace a data set's file at once."""
        index = {"cells": dict(sorted(self.cells.items())), "ensembles": dict(sorted(self.ensembles.items()))}
        file, arrays = io.BytesIO(), dict[str, Any](sorted(self.arrays.items()))
        np.savez_compressed(file, index=np.frombuffer(json.dumps(index).encode(), np.uint8), **arrays)
        place.write(f"{data}.npz", file.getvalue())


class Archive:
    """The runs of a plan's cells, and what is kept of finished ones. `new`: cells that are not in the files yet."""

    def __init__(self, plan: Plan) -> None:
        """Reads the kept files. Raises RunError where one is damaged."""
        self.plan = plan
        self.place = None if plan.results is None else Storage(plan.results)
        self.kept = {data: Kept.read(self.place, data) if self.place else Kept() for data in plan.suite.data}
        self.new: list[Cell] = []

    def save(self) -> None:
        """Write the files that have new cells. Cells of the file that the plan does not have stay."""
        for data in {cell.data for cell in self.new}:
            if self.place:
                self.kept[data].write(self.place, data)

    def run(self, cell: Cell) -> Storage:
        """The folder of a cell's run."""
        return Storage(self.plan.storage).join(cell.name)

    def record(self, cell: Cell) -> Record | None:
        """The record in a cell's run; None where there is none."""
        run = self.run(cell)
        return Record(**json.loads(run.read(RECORD_FILE))) if run.exists(RECORD_FILE) else None

    def begin_attempt(self, cell: Cell) -> Record:
        """The record with one more attempt, written to the run's folder."""
        old, command = self.record(cell), " ".join(("python -m", *cell.command))
        record = Record(command, cell.settings, machine(), old.attempts if old else [])
        record.attempts.append({"started": time.time(), "seconds": 0.0, "status": "running"})
        record.write(self.run(cell))
        return record

    def changes(self, cell: Cell) -> list[str]:
        """Settings in which a cell's run differs from the suite: `key old -> new`."""
        record = self.record(cell)
        return [] if record is None else differences(record.settings, cell.settings)

    def has_run(self, cell: Cell) -> bool:
        """Whether a cell's run has finished with the suite's settings."""
        return self.run(cell).exists(RESULT_FILE) and not self.changes(cell)

    def is_done(self, cell: Cell) -> bool:
        """Whether a cell has its result with the suite's settings, in its run or kept."""
        return self.has_run(cell) or self.is_kept(cell)

    def is_kept(self, cell: Cell) -> bool:
        """Whether a cell is kept with the suite's settings."""
        found = self.kept[cell.data].cells.get(cell.name)
        return found is not None and not differences(found["record"]["settings"], cell.settings)


def differences(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The settings that differ between the record and the suite: `key old -> new`. All comparisons go through here.

    A recorded key with an old name counts under its new name (`config.renamed`). A key that the record does not have is
    newer than the run: its default is what the run did. A key that no longer decides a result is left out.
    """
    old = {}
    for key, value in recorded.items():
        needed, separator, plain = key.rpartition(": ")  # "MODEL: key" is a setting of a needed cell
        plain = RENAMED.get(plain, plain)
        if is_identity_key(plain):
            old[f"{needed}{separator}{plain}"] = value
    for key in now.keys() - old.keys():
        plain, section = key.rpartition(": ")[2], key.rpartition(".")[0]
        if plain in _DEFAULTS and section not in recorded:  # a section recorded as one key was null
            old[key] = _DEFAULTS[plain]
    changed = (key for key in sorted({*old, *now}) if old.get(key) != now.get(key))
    return [f"{key} {old.get(key)!r} -> {now.get(key)!r}" for key in changed]
