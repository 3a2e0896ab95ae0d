"""What the suite notes of a cell beside its run's own files: settings, machine, attempts and their durations."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks.baselines.settings import BaselineConfig
from benchmarks.common import machine

from maestro_dist.config.identity import is_identity_key, run_identity
from maestro_dist.config.model import ModelConfig, StemConfig
from maestro_dist.config.renamed import OLD_NAMES, RENAMED
from maestro_dist.config.schema import Config
from maestro_dist.data.storage import ObjectMissing, Storage
from maestro_dist.errors import RunError
from suite.cells import Cell
from suite.keep import names_digest
from suite.plan import ROOT, Plan

RECORD_FILE = "cell.json"
RESULT_FILE = "result.json"
LOG_FILE = "job.log"
_STEM = "model.stem"  # a section that may be absent
_DEFAULTS = {
    **run_identity(Config(model=ModelConfig(stem=StemConfig()))),
    **run_identity(Config()),
    **{f"baseline.{key}": value for key, value in BaselineConfig().model_dump(mode="json").items()},
}


@dataclass
class Record:
    """`attempts`: of each start {"started": unix seconds, "seconds": how long it ran, "status": how it ended}."""

    command: str
    settings: dict[str, Any]
    machine: dict[str, Any]
    attempts: list[dict[str, Any]] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Of all attempts together."""
        return float(sum(attempt["seconds"] for attempt in self.attempts))

    @property
    def finished(self) -> float:
        """Unix seconds."""
        last = self.attempts[-1]
        return float(last["started"] + last["seconds"])


def run_of(plan: Plan, cell: Cell) -> Storage:
    """Where a cell's run lies."""
    return Storage(plan.storage).join(cell.name)


def read_record(run: Storage) -> Record | None:
    """The record of a cell; None where there is none. Raises RunError where it is damaged."""
    try:
        record = Record(**json.loads(run.read(RECORD_FILE)))
        record.settings = {_with(RENAMED, key): value for key, value in record.settings.items()}
        return record
    except ObjectMissing:
        return None
    except (ValueError, TypeError, AttributeError) as error:
        raise RunError(f"{run.name(RECORD_FILE)} is damaged ({error}); remove it") from None


def begin_attempt(plan: Plan, cell: Cell) -> Record:
    """A record with one attempt more."""
    run = run_of(plan, cell)
    old = read_record(run)
    record = Record(cell.command, cell.settings, machine(), old.attempts if old else [])
    record.attempts.append({"started": time.time(), "seconds": 0.0, "status": "running"})
    write_record(run, record)
    return record


def portable(record: Record) -> Record:
    """The record with what lies in the repository named relative to it: elsewhere it lies in another folder."""
    return replace(record, command=record.command.replace(f"{ROOT}/", ""))


def write_record(run: Storage, record: Record) -> None:
    """Write it."""
    run.write(RECORD_FILE, json.dumps(vars(record), indent=1).encode())


def kept_of(plan: Plan, cell: Cell) -> Storage | None:
    """Where what was kept of a cell lies; None where the suite keeps nothing."""
    return None if plan.kept is None else Storage(plan.kept).join(cell.name)


def result_of(plan: Plan, cell: Cell) -> Storage | None:
    """Where a cell's result lies: its run, or what was kept of one; None: nowhere, or with other settings."""
    if has_run(plan, cell):
        return run_of(plan, cell)
    kept = kept_of(plan, cell)
    if kept is None or not kept.exists(RESULT_FILE):
        return None
    record = read_record(kept)
    return None if record is None or _differences(record, cell) else kept


def has_run(plan: Plan, cell: Cell) -> bool:
    """Whether a cell's run is there, has its result, and was made with the settings that the suite says now."""
    return run_of(plan, cell).exists(RESULT_FILE) and not changes(plan, cell)


def is_done(plan: Plan, cell: Cell) -> bool:
    """Whether a cell has its result."""
    return result_of(plan, cell) is not None


def changes(plan: Plan, cell: Cell) -> list[str]:
    """Settings in which a cell that was begun differs from what the suite says now: `key old -> new`."""
    return _differences(read_record(run_of(plan, cell)), cell)


def chosen_settings(cell: Cell) -> dict[str, Any]:
    """The settings of a cell that are not the defaults: they stay the same where new keys come."""
    settings = json.loads(json.dumps(cell.settings))
    absent = object()
    found = {key: value for key, value in settings.items() if _DEFAULTS.get(_plain(key), absent) != value}
    stems = {key.rpartition(".")[0] for key in settings if _plain(key).startswith(f"{_STEM}.")}
    return found | dict.fromkeys(stems, "there")


def settings_digest(cell: Cell) -> str:
    """A short name for the settings of a cell. It does not change where keys are renamed."""
    settings = {_with(OLD_NAMES, key): value for key, value in chosen_settings(cell).items()}
    return names_digest([json.dumps(settings, sort_keys=True)])


def _plain(key: str) -> str:
    """A setting's key without the name of the needed cell (`NAME: key`) that it belongs to."""
    return key.rpartition(": ")[2]


def _with(names: Mapping[str, str], key: str) -> str:
    """A setting's key with another name, where `names` has one for it."""
    cell, colon, plain = key.rpartition(": ")
    return f"{cell}{colon}{names.get(plain, plain)}"


def _absent(key: str, record: Record) -> bool:
    """Whether a setting belongs to a section that the record's run did without."""
    return _plain(key).startswith(f"{_STEM}.") and key.rpartition(".")[0] in record.settings


def _differences(record: Record | None, cell: Cell) -> list[str]:
    if record is None:
        return []
    now = json.loads(json.dumps(cell.settings))
    # A key that the record lacks is newer than the run: its default stands for what was done then.
    old = {key: _DEFAULTS[_plain(key)] for key in now if _plain(key) in _DEFAULTS and not _absent(key, record)}
    # A key that no longer decides a result is no difference.
    old |= {key: value for key, value in record.settings.items() if is_identity_key(_plain(key))}
    return [
        f"{key} {old.get(key)!r} -> {now.get(key)!r}" for key in sorted({*old, *now}) if old.get(key) != now.get(key)
    ]
