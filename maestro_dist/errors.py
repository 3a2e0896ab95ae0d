"""Errors for users: one line that names the cause and the remedy."""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable

from maestro_dist.system.logging_setup import configure_logging
from maestro_dist.system.redact import redact
from maestro_dist.system.terminal import interruptible, never_fail_to_print


class MaestroError(Exception):
    """An error that the user can fix. `str(error)` is one line with the cause and the remedy."""

    exit_code = 1


class ConfigError(MaestroError):
    """A key, a value or a combination of values in the configuration is wrong."""

    exit_code = 2


class MeshError(ConfigError):
    """The world size does not fit the mesh."""


class DataError(MaestroError):
    """A manifest, shard, member or label is missing or wrong; the message names it."""


class StorageError(MaestroError):
    """An object cannot be read or written; the message names its URL."""


class ReaderError(MaestroError):
    """A process or thread that reads samples has ended or hangs; a restart may help."""


class RunError(MaestroError):
    """The run cannot start, continue or finish.

    Another driver holds it, it does not fit its configuration or data, its files are damaged, or Ray, a worker or
    MLflow failed.
    """


class CheckpointError(MaestroError):
    """A checkpoint is missing, incomplete, damaged or from another model."""


class CheckpointDamaged(CheckpointError):
    """A file of a checkpoint is missing or damaged; an older checkpoint may be whole."""


class NonFiniteError(MaestroError):
    """A loss or gradient is NaN or infinite more often than allowed."""


def run_main(main: Callable[[], int | None], *, debug: bool) -> int:
    """Run `main` and turn errors that the user can fix into one line on stderr and an exit code.

    These are `MaestroError`, errors of the operating system (a full disk, missing permissions), lack of memory, and
    interruption. `debug` prints the traceback too. Other errors are bugs and keep their traceback. `SystemExit` of the
    argument parser passes through. Also sets up logging.
    """
    never_fail_to_print()
    configure_logging(debug=debug)
    try:
        with interruptible():
            return main() or 0
    except (KeyboardInterrupt, SystemExit) as error:
        if isinstance(error, SystemExit) and error.code != signal.SIGTERM:  # Ray raises this for SIGTERM as it starts
            raise
        print("error: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        line = _line(error)
        if line is None:
            raise
        if debug:
            traceback.print_exc()
        print(f"error: {line}", file=sys.stderr)
        return error.exit_code if isinstance(error, MaestroError) else 1


_REMEDIES = {
    errno.ENOSPC: "free some space, or choose another disk",
    errno.EDQUOT: "free some of your quota, or choose another disk",
    errno.EROFS: "choose a writable folder",
    errno.EACCES: "choose a folder that you have access to",
    errno.EPERM: "choose a folder that you have access to",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "allow this process more open files (ulimit -n)",
    errno.ENFILE: "allow this machine more open files (sysctl fs.file-max)",
    errno.ENOMEM: "free some memory",
    errno.EAGAIN: "allow yourself more processes (ulimit -u)",
}
_NO_MEMORY = re.compile(r"can't allocate memory|out of memory", re.IGNORECASE)  # of torch's RuntimeError


def _line(error: Exception) -> str | None:
    """Cause and remedy in one line; None for a bug, which needs its traceback."""
    if isinstance(error, MaestroError):
        return str(error)
    text = " ".join(str(error).split())[:500]
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _NO_MEMORY.search(text)):
        what, remedy = f"not enough memory ({text or type(error).__name__})", "use a smaller batch, or free some memory"
    elif isinstance(error, OSError):
        names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
        what = ": ".join([*([" -> ".join(names)] if names else []), error.strerror or text or type(error).__name__])
        remedy = _REMEDIES.get(error.errno or 0, "")
    else:
        return None
    return " ".join(redact(f"{what}{'; ' if remedy else ''}{remedy} (in {_place(error)})").split())


def _place(error: Exception) -> str:
    """The last file and line of this project in the traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    own_frames = [
        frame for frame in frames if "site-packages" not in frame.filename and "/lib/python" not in frame.filename
    ]
    frame = (own_frames or frames)[-1]
    return f"{os.path.basename(frame.filename)}:{frame.lineno}"
