"""What all benchmarks share: options, rows, the table and the JSON."""

from __future__ import annotations

import datetime
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = ("torch", "deepspeed", "ray", "mlflow", "numpy", "maestro_dist")


@dataclass(frozen=True)
class Options:
    """How to measure."""

    quick: bool = False
    device: str = "cpu"


@dataclass(frozen=True)
class Row:
    """One figure. `reach` is what it should reach and `holds` whether it does; None where nothing was promised."""

    name: str
    value: float
    unit: str
    reach: float | None = None
    holds: bool | None = None


def machine() -> dict[str, Any]:
    """Where and with what the figures were measured."""
    versions: dict[str, str] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "versions": versions,
    }


def print_table(name: str, rows: Sequence[Row]) -> None:
    """The rows as text."""
    here = machine()
    print(f"{name}: {here['processor']}, {here['cores']} cores, torch {here['versions'].get('torch')}, {here['date']}")
    width = max(len(row.name) for row in rows)
    for row in rows:
        reach = "" if row.reach is None else f"   reach {row.reach:g}: {'yes' if row.holds else 'NO'}"
        print(f"  {row.name:{width}}  {row.value:12.4g} {row.unit}{reach}")


def write_json(path: str, name: str, rows: Sequence[Row]) -> None:
    """The rows with versions and machine."""
    content = {"benchmark": name, "machine": machine(), "rows": [asdict(row) for row in rows]}
    Path(path).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()
