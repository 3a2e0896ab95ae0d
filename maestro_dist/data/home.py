"""Folders of this user on this machine, also where there is no home that can be written to."""

from __future__ import annotations

import logging
import os
import tempfile
from functools import cache
from pathlib import Path

_LOG = logging.getLogger(__name__)
_FOLDER = Path(".cache", "maestro_dist")


@cache
def own_folder(name: str) -> Path:
    """`~/.cache/maestro_dist/<name>`, made if need be; below the temporary folder where that cannot be written to.

    The latter belongs to this user alone, is the same for all of the user's processes, and is said once a process.

    Raises:
        OSError: neither can be written to.
    """
    try:
        home = Path.home() / _FOLDER / name
        _writable(home)
        return home
    except (OSError, RuntimeError) as error:  # the latter: nobody knows where the home is
        reason = error
    base = Path(tempfile.gettempdir(), f"maestro_dist-{os.getuid()}")
    base.mkdir(mode=0o700, exist_ok=True)
    if base.is_symlink() or base.stat().st_uid != os.getuid():  # somebody else has taken the name
        base = Path(tempfile.mkdtemp(prefix="maestro_dist-"))
    _writable(base / name)
    _LOG.warning("%s; using %s instead", reason, base / name)
    return base / name


def _writable(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):  # rights alone do not tell of a file system that is read-only
        pass
