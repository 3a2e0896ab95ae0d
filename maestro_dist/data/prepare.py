"""Pack raw files that a configuration names (`data.source`), so that one command trains from them."""

from __future__ import annotations

import argparse
import difflib
import logging
import os
import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from maestro_dist.config.schema import SourceConfig
from maestro_dist.data.converters import CONVERTERS, Conversion
from maestro_dist.data.converters.files import listed
from maestro_dist.data.manifest import MANIFEST_NAME, Manifest
from maestro_dist.data.pack import pack
from maestro_dist.data.storage import Storage, redact
from maestro_dist.errors import ConfigError, DataError

_LOG = logging.getLogger(__name__)
_UNFINISHED = re.compile(r"([a-z0-9_]+-\d{6})\.(tar|index\.json)")


def prepare(source: SourceConfig, url: str) -> Manifest:
    """Convert and pack `source` to `url`, with the converter's options as `tools/pack_dataset.py` takes them.

    What a person should know about the source is logged as warnings.

    Raises:
        ConfigError: an option that the converter does not have, or a value that it cannot take.
        DataError: raw files are missing or damaged.
    """
    parser = _Quiet(add_help=False, allow_abbrev=False)
    converter = CONVERTERS[source.converter]
    converter.add_arguments(parser)
    given = [f"--{name}={value}" for name, value in source.options.items()]
    try:
        unknown = [text.partition("=")[0] for text in given if text.partition("=")[0] not in parser.names]
        if unknown:
            parser.error(unknown_options(unknown, parser.names))
        arguments = parser.parse_args(given, argparse.Namespace(splits=None))
        conversion = converter.from_arguments(Path(source.path), arguments)
    except ConfigError as error:
        raise ConfigError(f"data.source.options: {error}") from None
    log_warnings(conversion)
    return pack(url, conversion.description, conversion.samples, splits=conversion.splits)


def log_warnings(conversion: Conversion) -> None:
    """Log what is odd about a source."""
    for text in conversion.warnings:
        _LOG.warning(text)


def unknown_options(unknown: Sequence[str], known: Iterable[str]) -> str:
    """That there are no such options of a converter, and which were meant."""
    names = sorted(name.removeprefix("--") for name in known)
    near = [name for text in unknown for name in difflib.get_close_matches(text.strip("-"), names, n=1)]
    hint = f"; did you mean --{', --'.join(near)}?" if near else f"; there are --{', --'.join(names)}"
    return f"no option {', '.join(unknown)}{hint}"


class OptionParser(argparse.ArgumentParser):
    """A parser that knows the `names` of its options."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.names: list[str] = []
        super().__init__(*arguments, **options)

    def add_argument(self, *names: Any, **options: Any) -> argparse.Action:
        """As that of every parser."""
        self.names += [name for name in names if name.startswith("--")]
        return super().add_argument(*names, **options)


class _Quiet(OptionParser):
    """Reports a wrong option as an error of the configuration."""

    def error(self, message: str) -> NoReturn:
        """Raise it."""
        raise ConfigError(message)


def check_source(path: str, *, source: str) -> None:
    """Raise `DataError` where there are no raw files at `path`, which the option or key `source` names."""
    if not Path(path).exists():
        only = "; raw files are read from local folders and archives, copy them to one" if "://" in path else ""
        raise DataError(f"{source}: {path}: no such folder or archive{only}")


def check_target(path: str, url: str, *, source: str, target: str) -> None:
    """Refuse a place for packed data that cannot be a folder, or that lies in what they are made from.

    Raises:
        ConfigError: the place does not do; `source` and `target` name the options or keys of `path` and `url`.
    """
    place, raw = Storage(url).local, Storage(path).local
    for folder in (place, *place.parents) if place else ():
        if os.path.lexists(folder) and not folder.is_dir():
            what = "a file" if folder.exists() else "a link that leads nowhere"
            raise ConfigError(f"{target}: {url}: {folder} is {what}; choose a folder for what is packed from {source}")
    if place and raw and raw.is_dir() and place.resolve().is_relative_to(raw.resolve()):
        raise ConfigError(f"{target}: {url} lies in {source} {path}; choose a place outside of it")


def check_place(source: SourceConfig, url: str) -> None:
    """Refuse to pack `source` to a `data.url` that looks mistyped: only an empty or new folder is taken.

    Raises:
        ConfigError: the place does not do, or holds other files.
        DataError: the raw files are not there.
    """
    check_source(source.path, source=f"data.source.path (to be packed to data.url {redact(url)})")
    check_target(source.path, url, source="data.source.path", target="data.url")
    storage = Storage(url)
    place, what = storage.local, f"what is packed from data.source ({source.path})"
    if place is not None and not place.parent.exists() and not place.is_relative_to(Path.cwd()):
        raise ConfigError(
            f"data.url: {url}: there is no folder {place.parent}; mend data.url, or make that folder for {what}"
        )
    others = _other_files(storage.list())
    if place is not None:  # the raw files may lie there
        others = [name for name in others if not Path(source.path).resolve().is_relative_to((place / name).resolve())]
    if others:
        raise ConfigError(
            f"data.url: {redact(url)} holds no {MANIFEST_NAME} but other files ({listed(others, 4)}); mend data.url, "
            f"or give an empty folder for {what}"
        )


def _other_files(names: list[str]) -> list[str]:
    """Names that a packing which was killed does not leave: it leaves shards, all but the last with their index."""
    shards = [match for name in names if (match := _UNFINISHED.fullmatch(name))]
    tars, indexes = ({m[1] for m in shards if m[2] == kind} for kind in ("tar", "index.json"))
    if len(tars - indexes) > 1 or indexes - tars:
        return names
    return [name for name in names if not _UNFINISHED.fullmatch(name)]


def check_typed(source: SourceConfig | None, url: str, overrides: Sequence[str]) -> None:
    """Tell a person who typed `data.url`, or `data.source`, alone what that means beside the other one from a file.

    A URL typed alone says that the data is there: nothing is packed to a mistyped place.

    Raises:
        ConfigError: there is no packed data set at such a URL.
    """
    keys = [override.partition("=")[0] for override in overrides]
    paired = any(key in ("data", "data.source") or key.startswith("data.source.") for key in keys)
    if source is None or not (paired or "data.url" in keys):
        return
    there = Storage(url).exists(MANIFEST_NAME)
    if paired and there:
        _LOG.info("data.source is not read: there is a packed data set at %s already", redact(url))
    elif not paired and not there:
        raise ConfigError(
            f"data.url: {redact(url)} was given alone, but holds no {MANIFEST_NAME}; mend it, or, to pack the "
            f"configuration's data.source there, add data.source.path={shlex.quote(source.path)}"
        )
