"""Any folder of CSV or Parquet files, as a layout describes it (`maestro_dist/data/tables`)."""

from __future__ import annotations

import argparse

from maestro_dist.data.converters.files import AnySource
from maestro_dist.data.converters.source import Conversion, Converter
from maestro_dist.errors import ConfigError


class Tables(Converter):
    """CSV or Parquet files of any layout. `--infer FILE` looks at them and writes the layout, a short YAML file to be
    checked; `--layout FILE` packs by it."""

    name = "csv"
    reads = "any folder of CSV or Parquet files; --infer FILE writes the layout that --layout FILE uses"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """The layout."""
        parser.add_argument("--layout", metavar="FILE", help="YAML file that says what is in the files")

    def from_arguments(self, source: AnySource, arguments: argparse.Namespace) -> Conversion:
        """See `Converter.from_arguments`."""
        from maestro_dist.data.tables.conversion import convert  # its packages take a second to load
        from maestro_dist.data.tables.layout import load_layout

        if arguments.splits:
            raise ConfigError("--splits: each run divides recordings by its own data.split; or name a split column")
        if not arguments.layout:
            raise ConfigError("--layout FILE is missing; `--infer FILE` writes one for you")
        layout, digest = load_layout(arguments.layout)
        return convert(source, layout, digest)
