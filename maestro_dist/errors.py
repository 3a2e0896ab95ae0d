"""What a person sees when something is wrong: one line that names the thing and says what to do."""

from __future__ import annotations

import signal
import sys
import traceback
from collections.abc import Callable


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
    """Run `main` and turn a `MaestroError` into one line on stderr and an exit code.

    With `debug` the traceback is printed too. Errors that are not ours keep their traceback: they are bugs. The
    `SystemExit` of a command line that is wrong passes through.
    """
    try:
        return main() or 0
    except MaestroError as error:
        if debug:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except (KeyboardInterrupt, SystemExit) as error:
        if isinstance(error, SystemExit) and error.code != signal.SIGTERM:  # Ray raises this for SIGTERM
            raise
        print("error: interrupted", file=sys.stderr)
        return 130
