"""Options, rows, the table and the JSON of all benchmarks."""

from __future__ import annotations

import datetime
import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

_PACKAGES = ("torch", "deepspeed", "ray", "mlflow", "numpy", "maestro_dist")


@dataclass(frozen=True)
class Setting:
    """One way to run a table: on `threads` CPU threads, or on a GPU.

    `clock`: the time for ratios; CPU time on one thread, wall time on several threads and on a GPU.
    """

    label: str
    threads: int
    clock: Literal["cpu", "wall"]


@dataclass(frozen=True)
class Options:
    """How to measure. `quick` also shrinks the sizes: its numbers only show that the benchmark works."""

    quick: bool = False
    device: str = "cpu"
    threads: int | None = None

    @property
    def settings(self) -> tuple[Setting, ...]:
        """One thread, and all (or the given number); a single setting on a GPU."""
        if self.device != "cpu":
            return (Setting(self.device, 1, "wall"),)
        several = self.threads or cores()
        one = Setting("one thread", 1, "cpu")
        return (one,) if several == 1 else (one, Setting(f"{several} threads", several, "wall"))

    def promised(self, setting: Setting) -> bool:
        """Whether targets apply to this setting: one CPU thread, full size."""
        return not self.quick and self.device == "cpu" and setting.threads == 1


@dataclass(frozen=True)
class Row:
    """One number. `reach`: its target, `holds`: whether it is reached; None without a target.

    `sense` says on which side of the target the number should be.
    """

    name: str
    value: float
    unit: str
    reach: float | None = None
    holds: bool | None = None
    sense: Literal["at least", "at most"] | None = None


def at_least(name: str, value: float, unit: str, reach: float, *, promised: bool = True) -> Row:
    """A number that should be `reach` or more; without a target where `promised` is false."""
    return Row(name, value, unit, reach, value >= reach, "at least") if promised else Row(name, value, unit)


def at_most(name: str, value: float, unit: str, reach: float, *, promised: bool = True) -> Row:
    """A number that should be `reach` or less; without a target where `promised` is false."""
    return Row(name, value, unit, reach, value <= reach, "at most") if promised else Row(name, value, unit)


def size_name(count: int) -> str:
    """16384 -> 16k, 1000000 -> 1M."""
    for unit, suffix in ((10**6, "M"), (1024, "k")):
        if count >= unit and count % unit == 0:
            return f"{count // unit}{suffix}"
    return str(count)


def need_memory(size: int, what: str) -> None:
    """Raises `RuntimeError` where fewer than `size` bytes are available, before the system kills the process."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return
    free = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), size)
    if free < size:
        raise RuntimeError(f"{what} needs about {size / 1e9:.0f} GB of memory; {free / 1e9:.0f} GB are available")


def python_path() -> str:
    """PYTHONPATH with which another process finds these benchmarks and the measured package."""
    tools = Path(__file__).parents[1]
    return os.pathsep.join(filter(None, [str(tools), str(tools.parent), os.environ.get("PYTHONPATH", "")]))


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> dict[str, Any]:
    """The machine and the versions of packages."""
    versions: dict[str, str] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    found: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "processor": _processor(),
        "cores": cores(),
        "system": platform.platform(),
        "versions": versions,
    }
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def print_table(name: str, rows: Sequence[Row], notes: Sequence[str] = ()) -> None:
    """Print the machine, the notes, and the rows."""
    here = machine()
    where = ", ".join([here["processor"], f"{here['cores']} cores", *([here["gpu"]] if "gpu" in here else [])])
    print(f"{name}: {where}, torch {here['versions'].get('torch')}, {here['date']}")
    for note in notes:
        print(f"  ({note})")
    width = max(len(row.name) for row in rows)
    for row in rows:
        reach = "" if row.reach is None else f"   {row.sense or 'reach'} {row.reach:g}: {'yes' if row.holds else 'NO'}"
        print(f"  {row.name:{width}}  {row.value:12.4g} {row.unit}{reach}")


def write_json(path: str, name: str, rows: Sequence[Row], notes: Sequence[str] = ()) -> None:
    """Write the rows with versions and machine."""
    content = {"benchmark": name, "machine": machine(), "notes": list(notes), "rows": [asdict(row) for row in rows]}
    Path(path).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()
