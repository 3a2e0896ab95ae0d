"""What a person sees when something is wrong: one line that names the thing and says what to do."""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable

from maestro_dist.system.redact import redact
from maestro_dist.system.terminal import interruptible, never_fail_to_print


class MaestroError(Exception):
    """An error whose message is written for the person who can mend it. `str(error)` is that one line."""

    exit_code = 1


class ConfigError(MaestroError):
    """A key, a value or a combination of values in the configuration is wrong."""

    exit_code = 2


class MeshError(ConfigError):
    """The world size does not fit the grid of ranks."""


class DataError(MaestroError):
    """A manifest, shard, member or label is missing or wrong; the message names it."""


class StorageError(MaestroError):
    """An object cannot be read or written; the message names its URL."""


class ReaderError(MaestroError):
    """A process or thread that reads samples was lost, or does not get on; another start may help."""


class RunError(MaestroError):
    """The run is held by another driver, or cannot be resumed as asked."""


class CheckpointError(MaestroError):
    """A checkpoint is missing, incomplete, damaged or belongs to another model."""


class NonFiniteError(MaestroError):
    """A loss or gradient is NaN or infinite more often than allowed."""


def run_main(main: Callable[[], int | None], *, debug: bool) -> int:
    """Run `main` and turn what a person can mend into one line on stderr and an exit code.

    That is a `MaestroError`, what the operating system refuses (a full disk, a place that may not be written), memory
    that is used up, and a request to stop. With `debug` the traceback is printed too. Other errors keep theirs: they
    are bugs. The `SystemExit` of a command line that is wrong passes through.
    """
    never_fail_to_print()
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
    errno.EROFS: "choose a place that can be written",
    errno.EACCES: "choose a place that you have access to",
    errno.EPERM: "choose a place that you have access to",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "allow this process more open files (ulimit -n)",
    errno.ENFILE: "allow this machine more open files (sysctl fs.file-max)",
    errno.ENOMEM: "free some memory",
    errno.EAGAIN: "allow yourself more processes (ulimit -u)",
}
_NO_MEMORY = re.compile(r"can't allocate memory|out of memory", re.IGNORECASE)  # torch's, which are RuntimeErrors


def _line(error: Exception) -> str | None:
    """What went wrong and what to do about it, in one line; None where only its traceback could help."""
    if isinstance(error, MaestroError):
        return str(error)
    text = " ".join(str(error).split())[:500]
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _NO_MEMORY.search(text)):
        what, remedy = f"not enough memory ({text or type(error).__name__})", "ask for less at a time, or free some"
    elif isinstance(error, OSError):
        names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
        what = ": ".join([*([" -> ".join(names)] if names else []), error.strerror or text or type(error).__name__])
        remedy = _REMEDIES.get(error.errno or 0, "")
    else:
        return None
    return " ".join(redact(f"{what}{'; ' if remedy else ''}{remedy} (in {_place(error)})").split())


def _place(error: Exception) -> str:
    """File and line of ours that the error came through last."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "site-packages" not in frame.filename and "/lib/python" not in frame.filename]
    frame = (ours or frames)[-1]
    return f"{os.path.basename(frame.filename)}:{frame.lineno}"
