"""Send to MLflow what it lacks of a run: `python -m maestro_dist.track RUN`.

RUN is the folder, URL or name (in `runs/`) of a run that does not train now. A run whose tracking server did not answer
keeps its metrics, figures and model; this command sends what the server lacks of them, the tags and the status of the
run. To repeat it changes nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from maestro_dist.errors import ConfigError, RunError, run_main
from maestro_dist.system.terminal import never_fail_to_print


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m maestro_dist.track",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", metavar="RUN")
    parser.add_argument(
        "--uri", metavar="URI", help="MLflow server or database, if its address has changed (default: the run's)"
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors and debug messages")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 if MLflow has everything."""
    never_fail_to_print()
    options = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    return run_main(lambda: track(options), debug=options.debug)


def track(options: argparse.Namespace) -> int:
    """Send what is missing. Raises RunError if the server does not take all of it, or another driver holds the run."""
    from maestro_dist.data.storage import Storage, redact
    from maestro_dist.inference.find_model import place_of, what_may_be_meant
    from maestro_dist.run.record import RUN_FILE, read

    run = Storage(place_of(options.run.rstrip("/")).url.removesuffix(f"/{RUN_FILE}"))
    record = read(run)
    if record is None:
        raise ConfigError(f"{run.name()}: not a run (it has no {RUN_FILE}){what_may_be_meant(run)}")
    if record.mlflow_run is None:
        raise ConfigError(f"{run.name()}: this run ended before it was known to tracking; train it first")
    uri = options.uri or record.tracking_uri

    from maestro_dist.run.catch_up import catch_up
    from maestro_dist.run.lease import Lease
    from maestro_dist.system.terminal import shielded
    from maestro_dist.tracking.unsent import PARTS, Unsent, read_unsent

    with shielded():  # interrupted here, the lease would never be released
        lease = Lease(run.url, otherwise="run")
    try:
        found = read_unsent(run)
        note = found or Unsent(PARTS, "FINISHED" if record.status == "finished" else "KILLED")
        if record.status == "finished":
            note = Unsent(note.parts, "FINISHED", note.ended_ms)
        catch_up(run, record, uri, note, PARTS)
    except RunError as error:
        raise RunError(
            f"{error}; start the server and repeat this command, or name another address of the same server with --uri"
        ) from error
    finally:
        with shielded():
            lease.release()
    print(f"tracking at {redact(uri)} has everything of {run.name()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
