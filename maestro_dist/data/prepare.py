"""Pack the raw files that a configuration names (`data.source`)."""

from __future__ import annotations

import argparse
import difflib
import hashlib
import json
import logging
import os
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

from maestro_dist.config.schema import SourceConfig
from maestro_dist.data.converters import CONVERTERS, Conversion, Converter
from maestro_dist.data.converters.files import Source
from maestro_dist.data.fragments import PackFormat
from maestro_dist.data.manifest import MANIFEST_NAME, Manifest
from maestro_dist.data.pack_parts import PackProgress, PackWorkers, PartsPacking, ThisProcess, pack_parts
from maestro_dist.data.pack_records import RECORDS
from maestro_dist.data.parts import Remarks, join_names
from maestro_dist.data.storage import Storage, redact
from maestro_dist.errors import ConfigError, DataError, StorageError

_LOG = logging.getLogger(__name__)
_UNFINISHED = re.compile(r"([a-z0-9_]+-\d{6})\.(tar|index|index\.json)")


def prepare(source: SourceConfig, url: str) -> Manifest:
    """Convert and pack `source` to `url`. `source.options` are the converter's options in `tools/pack_dataset.py`.

    Warnings about the source are logged. A packing that was killed is continued.

    Raises:
        ConfigError: there is no such converter or option, or an option has a wrong value.
        DataError: raw files are missing or damaged.
    """
    check_converter(source)
    parser = _Quiet(add_help=False, allow_abbrev=False)
    converter = CONVERTERS[source.converter]
    converter.add_arguments(parser)
    given = [f"--{name}={value}" for name, value in source.options.items()]
    try:
        unknown = [text.partition("=")[0] for text in given if text.partition("=")[0] not in parser.names]
        if unknown:
            parser.error(unknown_options(unknown, parser.names))
        arguments = parser.parse_args(given, argparse.Namespace(splits=None))
        with converted(converter, source.path, arguments, url) as conversion:
            return pack_conversion(conversion, url, ConversionRequest(converter.name, source.path, source.options))[0]
    except ConfigError as error:
        raise ConfigError(f"data.source.options: {error}") from None


@dataclass(frozen=True)
class ConversionRequest:
    """What is converted and how: names and options identify an unfinished packing, which a restart continues.

    shard_bytes, overwrite, progress   see `pack_parts`
    """

    converter: str
    source: str
    options: Mapping[str, Any]
    shard_bytes: int = 32 << 20
    overwrite: bool = False
    progress: Callable[[PackProgress], None] = lambda _: None


@contextmanager
def converted(
    converter: Converter, source: str, arguments: argparse.Namespace, url: str, *, shared: bool = False
) -> Iterator[Conversion]:
    """Context with the conversion of the raw files at `source`, which are to be packed to `url`. Logs its warnings.

    What has to be copied from compressed archives goes to the folder of records in `url`, which a restart finds again;
    or to a temporary folder, if `url` is remote and no worker is on another machine (`shared`).
    """
    options = json.dumps([converter.name, str(source), sorted((k, str(v)) for k, v in vars(arguments).items())])
    copies = Storage(url).join(RECORDS, f"source-{hashlib.sha256(options.encode()).hexdigest()[:16]}")
    with ExitStack() as stack:
        if copies.local is None and not shared:
            copies = Storage(
                stack.enter_context(TemporaryDirectory(prefix="maestro_dist-", ignore_cleanup_errors=True))
            )
        try:
            conversion = converter.from_arguments(Source(source, copies), arguments)
        except (ConfigError, DataError):
            with suppress(StorageError, OSError):
                copies.remove(recursive=True)
                if copies.local is not None:
                    copies.local.parent.rmdir()  # unless it has records
            raise
        for text in conversion.warnings:
            _LOG.warning("%s", text)
        yield conversion


def pack_conversion(
    conversion: Conversion, url: str, request: ConversionRequest, workers: PackWorkers | None = None
) -> tuple[Manifest, Remarks]:
    """Pack a conversion to `url`; by default in this process. Returns the manifest and the remarks of the parts.

    The warnings among the remarks are logged. Raises what `pack_parts` raises.
    """
    identity = {
        "converter": request.converter,
        "source": redact(request.source),
        "options": {name: str(value) for name, value in sorted(request.options.items())},
        "files": conversion.listing,
    }
    about = PackFormat.checked(conversion.description, conversion.splits, request.shard_bytes)
    packing = PartsPacking(conversion.parts, about, identity, request.overwrite, request.progress)
    manifest, remarks = pack_parts(url, packing, workers or ThisProcess())
    for text in remarks.lines():
        _LOG.warning("%s", text)
    return manifest, remarks


def check_converter(source: SourceConfig) -> None:
    """Raise `ConfigError` if `data.source.converter` names no converter."""
    name = source.converter
    if name not in CONVERTERS:
        near = difflib.get_close_matches(name, CONVERTERS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(f"data.source.converter: no converter {name!r}; {hint}There are {', '.join(CONVERTERS)}")


def unknown_options(unknown: Sequence[str], known: Iterable[str]) -> str:
    """The message that a converter has no such options. It suggests similar names, or lists all names."""
    names = sorted(name.removeprefix("--") for name in known)
    near = [name for text in unknown for name in difflib.get_close_matches(text.strip("-"), names, n=1)]
    hint = f"; did you mean --{', --'.join(near)}?" if near else f"; there are --{', --'.join(names)}"
    return f"no option {', '.join(unknown)}{hint}"


class OptionParser(argparse.ArgumentParser):
    """A parser that lists the `names` of its options."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.names: list[str] = []
        super().__init__(*arguments, **options)

    def add_argument(self, *names: Any, **options: Any) -> argparse.Action:
        """See `argparse.ArgumentParser.add_argument`."""
        self.names += [name for name in names if name.startswith("--")]
        return super().add_argument(*names, **options)


class _Quiet(OptionParser):
    """Raises `ConfigError` for a wrong option instead of ending the process."""

    def error(self, message: str) -> NoReturn:
        """Raise `ConfigError`."""
        raise ConfigError(message)


def check_source(path: str, *, source: str) -> None:
    """Raise `DataError` if the local `path`, the value of the option or key `source`, does not exist."""
    local = Storage(path).local
    if local is not None and not local.exists():
        raise DataError(f"{source}: {path}: no such folder or archive")


def check_destination(path: str, url: str, *, source: str, target: str) -> None:
    """Check the place `url` of the packed data. `source` and `target` name the options or keys of `path` and `url`.

    Raises:
        ConfigError: it cannot be a folder, or is inside the raw files `path`.
    """
    place, raw = Storage(url).local, Storage(path).local
    for folder in (place, *place.parents) if place else ():
        if os.path.lexists(folder) and not folder.is_dir():
            what = "a file" if folder.exists() else "a broken link"
            raise ConfigError(f"{target}: {url}: {folder} is {what}; choose a folder for what is packed from {source}")
    if place and raw and raw.is_dir() and place.resolve().is_relative_to(raw.resolve()):
        raise ConfigError(f"{target}: {url} lies in {source} {path}; choose a place outside of it")


def check_place(source: SourceConfig, url: str) -> None:
    """Check `data.url` before `source` is packed there: only an empty or new folder is accepted.

    Raises:
        ConfigError: there is no such converter, `data.url` cannot be a folder or holds other files.
        DataError: the raw files are not there.
    """
    check_converter(source)
    check_source(source.path, source=f"data.source.path (to be packed to data.url {redact(url)})")
    check_destination(source.path, url, source="data.source.path", target="data.url")
    storage = Storage(url)
    place, what = storage.local, f"what is packed from data.source ({source.path})"
    if place is not None and not place.parent.exists() and not place.is_relative_to(Path.cwd()):
        raise ConfigError(
            f"data.url: {url}: there is no folder {place.parent}; correct data.url, or make that folder for {what}"
        )
    others = _other_files([*storage.list(), *([RECORDS] if place is not None and (place / RECORDS).exists() else [])])
    if place is not None:  # the raw files may be in the same folder as the packed data
        others = [name for name in others if not Path(source.path).resolve().is_relative_to((place / name).resolve())]
    if others:
        raise ConfigError(
            f"data.url: {redact(url)} holds no {MANIFEST_NAME} but other files ({join_names(others, 4)}); correct "
            f"data.url, or give an empty folder for {what}"
        )


def _other_files(names: list[str]) -> list[str]:
    """The names without files of a killed packing. These are shards; only the last shard may lack its index, unless
    there are records: then several were written at a time."""
    if RECORDS in names:
        return [name for name in names if name != RECORDS and not _UNFINISHED.fullmatch(name)]
    shards = [match for name in names if (match := _UNFINISHED.fullmatch(name))]
    tars, indexes = ({m[1] for m in shards if (m[2] == "tar") == tar} for tar in (True, False))
    if len(tars - indexes) > 1 or indexes - tars:
        return names
    return [name for name in names if not _UNFINISHED.fullmatch(name)]


def check_typed(source: SourceConfig | None, url: str, overrides: Sequence[str]) -> None:
    """Check `data.url` and `data.source` where only one of them is given on the command line, the other in a file.

    A `data.url` given alone must hold a packed data set, so that nothing is packed to a mistyped place. A `data.source`
    given alone is not read if the data set is packed already; this is logged.

    Raises:
        ConfigError: there is no packed data set at a `data.url` that was given alone.
    """
    keys = [override.partition("=")[0] for override in overrides]
    paired = any(key in ("data", "data.source") or key.startswith("data.source.") for key in keys)
    if source is None or not (paired or "data.url" in keys):
        return
    packed = Storage(url).exists(MANIFEST_NAME)
    if paired and packed:
        _LOG.info("data.source is not read: there is a packed data set at %s already", redact(url))
    elif not paired and not packed:
        raise ConfigError(
            f"data.url: {redact(url)} was given alone, but holds no {MANIFEST_NAME}; correct it, or, to pack the "
            f"configuration's data.source there, add data.source.path={shlex.quote(source.path)}"
        )
