"""Train MAESTRO: `python -m maestro_dist.train CONFIG [section.key=value ...]`.

The same command with the same `run.name` continues a run that was stopped.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from maestro_dist.errors import run_main
from maestro_dist.system.terminal import never_fail_to_print


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line. `--help` imports only the configuration schema."""
    parser = argparse.ArgumentParser(
        prog="python -m maestro_dist.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", nargs="?", help="YAML file (configs/*.yaml)")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="values that replace the values of the file"
    )
    parser.add_argument("--print-config", action="store_true", help="print the resolved configuration and exit")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check everything up to the first optimizer step, print the plan and exit",
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors and debug messages")
    if {"-h", "--help"} & set(arguments):
        from maestro_dist.config.help_text import describe_keys

        parser.epilog = describe_keys()
    options = parser.parse_intermixed_args(arguments)
    given = [] if options.config is None else [options.config]
    options.config, options.overrides = _file_and_overrides([*given, *options.overrides])
    return options


def _file_and_overrides(given: list[str]) -> tuple[str | None, list[str]]:
    """The configuration file, at any position, and the overrides."""
    from maestro_dist.config.load import is_file

    place = next((place for place, argument in enumerate(given) if is_file(argument)), None)
    return (None, given) if place is None else (given[place], given[:place] + given[place + 1 :])


def main(arguments: Sequence[str] | None = None) -> int:
    """Read and check the configuration, then launch the run. Returns the exit code."""
    never_fail_to_print()
    options = parse_arguments(sys.argv[1:] if arguments is None else arguments)

    def run() -> int:
        from maestro_dist.config.check import check
        from maestro_dist.config.dump import to_yaml
        from maestro_dist.config.load import load_config
        from maestro_dist.config.paths import with_absolute_paths

        config = load_config(options.config, options.overrides)
        if options.print_config:
            print(to_yaml(config), end="")
            return 0
        check(config)
        from maestro_dist.data.prepare import check_typed
        from maestro_dist.data.storage.settings import configure
        from maestro_dist.run.launch import launch

        configure(config)
        check_typed(config.data.source, with_absolute_paths(config).data.url, options.overrides)
        if options.dry_run:
            from maestro_dist.run.dry_run import dry_run

            return dry_run(config)
        return launch(config)

    return run_main(run, debug=options.debug)


if __name__ == "__main__":
    sys.exit(main())
