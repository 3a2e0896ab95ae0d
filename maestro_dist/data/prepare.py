"""Pack raw files that a configuration names (`data.source`), so that one command trains from them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn

from maestro_dist.config.schema import SourceConfig
from maestro_dist.data.converters import CONVERTERS
from maestro_dist.data.manifest import Manifest
from maestro_dist.data.pack import pack
from maestro_dist.errors import ConfigError


class _Parser(argparse.ArgumentParser):
    """Reports a wrong option as an error of the configuration."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"data.source.options: {message}")


def prepare(source: SourceConfig, url: str) -> Manifest:
    """Convert and pack `source` to `url`, with the converter's options as `tools/pack_dataset.py` takes them.

    Raises:
        ConfigError: an option that the converter does not have.
        DataError: raw files are missing or damaged.
    """
    parser = _Parser(add_help=False, allow_abbrev=False)
    converter = CONVERTERS[source.converter]
    converter.add_arguments(parser)
    given = [text for name, value in source.options.items() for text in (f"--{name}", str(value))]
    arguments = parser.parse_args(given, argparse.Namespace(splits=None))
    conversion = converter.from_arguments(Path(source.path), arguments)
    return pack(url, conversion.description, conversion.samples)
