"""Measure a part of maestro_dist: `python tools/benchmark.py NAME [--json FILE] [--quick]`.

Prints a table, and writes it as JSON where asked. Figures that are to be reached carry `reach` and `holds`; the exit
code is 0 whatever they say.
"""

from __future__ import annotations

import argparse
import importlib
import sys

from benchmarks.common import Options, print_table, write_json

NAMES = {"step": "where a training step's time goes: data wait, forward, backward, optimizer, tracking"}


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(f"  {name:10} {text}" for name, text in NAMES.items()),
    )
    parser.add_argument("name", choices=NAMES, metavar="NAME", help=f"one of {', '.join(NAMES)}")
    parser.add_argument("--json", metavar="FILE", help="write rows, versions and machine there")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions: to see that it works")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    given = parser.parse_args()
    options = Options(quick=given.quick, device=given.device)
    rows = importlib.import_module(f"benchmarks.{given.name}").run(options)
    print_table(given.name, rows)
    if given.json:
        write_json(given.json, given.name, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
