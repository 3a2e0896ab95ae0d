"""Train MAESTRO: `python -m maestro_dist.train CONFIG [section.key=value ...]`.

The same command with the same `run.name` continues a run that was stopped; a finished run says so.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from maestro_dist.errors import run_main
from maestro_dist.terminal import never_fail_to_print


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line; `--help` needs the schema alone."""
    parser = argparse.ArgumentParser(
        prog="python -m maestro_dist.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", nargs="?", help="YAML file (configs/*.yaml)")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="values that replace the file's")
    parser.add_argument("--print-config", action="store_true", help="print the resolved configuration and exit")
    parser.add_argument("--dry-run", action="store_true", help="do everything up to the first optimizer step and exit")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    if {"-h", "--help"} & set(arguments):
        from maestro_dist.config.load import describe

        parser.epilog = f"keys (type) = default\n{describe()}"
    options = parser.parse_intermixed_args(arguments)
    if options.config and "=" in options.config:
        options.overrides.insert(0, options.config)
        options.config = None
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Read, check, and hand over to `launch`. Returns the exit code."""
    never_fail_to_print()
    options = parse_arguments(sys.argv[1:] if arguments is None else arguments)

    def run() -> int:
        from maestro_dist.config.check import check
        from maestro_dist.config.load import load_config, to_yaml

        config = load_config(options.config, options.overrides)
        if options.print_config:
            print(to_yaml(config), end="")
            return 0
        check(config)
        if options.dry_run:
            from maestro_dist.dry_run import dry_run

            return dry_run(config)
        from maestro_dist.launch import launch

        return launch(config)

    return run_main(run, debug=options.debug)


if __name__ == "__main__":
    sys.exit(main())
