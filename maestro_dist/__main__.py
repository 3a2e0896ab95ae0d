"""`python -m maestro_dist` lists the commands."""

from __future__ import annotations

import sys

from maestro_dist import __version__
from maestro_dist.system.terminal import never_fail_to_print

COMMANDS = {
    "python -m maestro_dist.train CONFIG [section.key=value ...]": "train a model, or continue a run",
    "python -m maestro_dist.evaluate MODEL": "evaluate: metrics, complete and with modalities missing",
    "python -m maestro_dist.predict MODEL DATA": "predict each sample of a data set or file",
    "python -m maestro_dist.track RUN": "send to MLflow what it lacks of a run",
}
TOOLS = {
    "python tools/pack_dataset.py NAME --source PATH --out URL": "pack public raw data into a data set",
    "python tools/run_suite.py SUITE": "compare models on data sets",
    "python tools/benchmark.py NAME": "measure the speed of a part",
}


def main(arguments: list[str]) -> int:
    """Print the commands. Returns the exit code: 0, or 2 if there are unknown arguments."""
    never_fail_to_print()
    lines = [f"maestro_dist {__version__}: trains MAESTRO on many unreliable sensors, at any scale", ""]
    lines += [f"  {command:62}{what}" for command, what in COMMANDS.items()]
    lines += ["", "and in the folder of the project", ""]
    lines += [f"  {command:62}{what}" for command, what in TOOLS.items()]
    lines += ["", "Each command has --help."]
    wrong = [argument for argument in arguments if argument not in ("-h", "--help")]
    if wrong:
        lines.append(f"error: {wrong[0]!r} is not an argument of this command; use one of the commands above")
    print("\n".join(lines), file=sys.stderr if wrong else sys.stdout)
    return 2 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
