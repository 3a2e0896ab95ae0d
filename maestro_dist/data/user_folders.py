"""Folders of this user on this machine, also if the home folder cannot be written."""

from __future__ import annotations

import logging
import os
import tempfile
from functools import cache
from pathlib import Path

_LOG = logging.getLogger(__name__)
_FOLDER = Path(".cache", "maestro_dist")


@cache
def user_folder(name: str) -> Path:
    """`~/.cache/maestro_dist/<name>`, or a folder in the temporary folder if the first cannot be written.

    The folder is created if necessary. The temporary one is private to this user, the same for all processes of the
    user, and logged once in each process.

    Raises:
        OSError: neither can be written.
    """
    try:
        home = Path.home() / _FOLDER / name
        _writable(home)
        return home
    except (OSError, RuntimeError) as error:  # RuntimeError: the home folder is unknown
        reason = error
    base = Path(tempfile.gettempdir(), f"maestro_dist-{os.getuid()}")
    base.mkdir(mode=0o700, exist_ok=True)
    if base.is_symlink() or base.stat().st_uid != os.getuid():  # another user owns the name
        base = Path(tempfile.mkdtemp(prefix="maestro_dist-"))
    _writable(base / name)
    _LOG.warning("%s; using %s instead", reason, base / name)
    return base / name


def _writable(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):  # permissions do not show a read-only file system
        pass
