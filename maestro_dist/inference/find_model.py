"""Find the run or model that a command line names, and suggest one if there is none."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from maestro_dist.data.storage import Storage
from maestro_dist.errors import ConfigError, StorageError

RUNS = "runs"
"""The default folder of runs (`run.storage`), relative to the current folder."""
CONFIG = "config.yaml"
"""A file that every run folder has."""
_MOST_FOLDERS = 200  # folders that are searched for a similar name


def place_of(text: str) -> Storage:
    """The storage of a folder or URL, or of a run in `runs/`. Local paths become absolute. It may not exist."""
    if "://" in text:
        return Storage(text)
    path = Path(text).expanduser()
    if not path.exists() and (Path(RUNS) / text).exists():
        path = Path(RUNS) / text
    return Storage(str(path.absolute()))


def check_writable(path: Path, option: str) -> None:
    """Raise `ConfigError`, which names the `option`, if no file can be written at `path`. Call it before long work."""
    folder = path.absolute().parent
    if not folder.is_dir():
        raise ConfigError(f"{option} {path}: there is no such folder")
    if path.is_dir() or not os.access(path if path.exists() else folder, os.W_OK):
        raise ConfigError(f"{option} {path}: not writable; choose another file")


def what_may_be_meant(missing: Storage) -> str:
    """The end of a message that there is no run: the runs inside, or a run with a similar name. May be empty."""
    inside = _runs_in(missing)
    if inside:
        others = " and others" if len(inside) > 8 else ""
        return f"; it contains the runs {', '.join(inside[:8])}{others}: choose one of them"
    folder, _, name = missing.url.rpartition("/")
    near_by = [Storage(folder)] if folder and not folder.endswith(":/") else []
    near_by += [Storage(RUNS)] if missing.local is not None else []
    for place in near_by:
        similar = difflib.get_close_matches(name, _runs_in(place), n=1, cutoff=0.5)
        if similar:
            return f"; did you mean {place.name(similar[0])}?"
    return ""


def _runs_in(folder: Storage) -> list[str]:
    try:
        return [name for name in folder.list()[:_MOST_FOLDERS] if folder.exists(f"{name}/{CONFIG}")]
    except (StorageError, OSError):  # a hint must not raise an error
        return []
