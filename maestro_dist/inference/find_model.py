"""Where a run or a model is that a command line names, and which may have been meant where there is none."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from maestro_dist.data.storage import Storage
from maestro_dist.errors import ConfigError, StorageError

RUNS = "runs"
"""Where runs are by default (`run.storage`), below the current folder."""
CONFIG = "config.yaml"
"""What the folder of a run has."""
_LOOKED_AT = 200  # neighbours among which a run of a similar name is sought


def place_of(text: str) -> Storage:
    """A folder or URL, or the name of a run in `runs/`; local paths become absolute. It need not exist."""
    if "://" in text:
        return Storage(text)
    path = Path(text).expanduser()
    if not path.exists() and (Path(RUNS) / text).exists():
        path = Path(RUNS) / text
    return Storage(str(path.absolute()))


def check_writable(path: Path, option: str) -> None:
    """Raise `ConfigError`, which names the `option`, where no file can be written at `path`: before long work, not
    after it."""
    folder = path.absolute().parent
    if not folder.is_dir():
        raise ConfigError(f"{option} {path}: no such folder")
    if path.is_dir() or not os.access(path if path.exists() else folder, os.W_OK):
        raise ConfigError(f"{option} {path}: nothing can be written there; name another file")


def what_may_be_meant(here: Storage) -> str:
    """The end of a message that there is no run: the runs inside, or one of a similar name nearby. May be empty."""
    inside = _runs_in(here)
    if inside:
        return (
            f"; it holds the runs {', '.join(inside[:8])}{' and others' if len(inside) > 8 else ''}: name one of them"
        )
    folder, _, name = here.url.rpartition("/")
    near_by = [Storage(folder)] if folder and not folder.endswith(":/") else []
    near_by += [Storage(RUNS)] if here.local is not None else []
    for place in near_by:
        similar = difflib.get_close_matches(name, _runs_in(place), n=1, cutoff=0.5)
        if similar:
            return f"; did you mean {place.name(similar[0])}?"
    return ""


def _runs_in(folder: Storage) -> list[str]:
    try:
        return [name for name in folder.list()[:_LOOKED_AT] if folder.exists(f"{name}/{CONFIG}")]
    except (StorageError, OSError):  # a hint is not worth an error of its own
        return []
