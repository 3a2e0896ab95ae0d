"""Fit a conventional model: `python -m benchmarks.baselines minirocket|lightgbm [CONFIG] [key=value ...]`.

CONFIG and the keys are those of `maestro_dist.train`, of which the sections data, run, evaluation and tracking count,
and `baseline.*` for the model itself. With `tools` among the paths of Python; `python -m tools.benchmarks.baselines`
from the project's folder, and `python tools/benchmarks/baselines` from any, do without.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

# it starts as a file and as a module, from any folder, with the package that lies beside it
sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.baselines.settings import describe_baseline, load_settings
from maestro_dist.errors import run_main
from maestro_dist.system.terminal import never_fail_to_print


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    never_fail_to_print()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.baselines",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=describe_baseline(),
    )
    parser.add_argument("model", choices=("minirocket", "lightgbm"))
    parser.add_argument("arguments", nargs="*", metavar="CONFIG, key=value")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors and debug messages")
    given = parser.parse_args(arguments)

    def fit() -> int:
        from benchmarks.baselines.run import fit_and_test

        return fit_and_test(given.model, *load_settings(given.arguments))

    return run_main(fit, debug=given.debug)


if __name__ == "__main__":
    sys.exit(main())
