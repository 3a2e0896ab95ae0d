"""`python -m maestro_dist` says which commands there are."""

from __future__ import annotations

import sys

from maestro_dist import __version__
from maestro_dist.system.terminal import never_fail_to_print

COMMANDS = {
    "python -m maestro_dist.train CONFIG [section.key=value ...]": "train a model, or go on with a run",
    "python -m maestro_dist.evaluate MODEL": "its metrics, complete and with modalities missing",
    "python -m maestro_dist.predict MODEL DATA": "its answer for each sample of a data set or file",
}
TOOLS = {
    "python tools/pack_dataset.py NAME --source PATH --out URL": "make a data set of public raw data",
    "python tools/run_suite.py SUITE": "compare models on data sets",
    "python tools/benchmark.py NAME": "how fast the parts are",
}


def main(arguments: list[str]) -> int:
    """Print the commands. Returns the exit code: 0, or 2 where something else was asked for."""
    never_fail_to_print()
    lines = [f"maestro_dist {__version__}: trains MAESTRO on many unreliable sensors, at any scale", ""]
    lines += [f"  {command:62}{what}" for command, what in COMMANDS.items()]
    lines += ["", "and in the project's folder", ""]
    lines += [f"  {command:62}{what}" for command, what in TOOLS.items()]
    lines += ["", "Each says more with --help."]
    wrong = [argument for argument in arguments if argument not in ("-h", "--help")]
    if wrong:
        lines.append(f"error: {wrong[0]!r} is no argument of this command; type one of those above")
    print("\n".join(lines), file=sys.stderr if wrong else sys.stdout)
    return 2 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
