"""Pack a data set into shards, indexes and a manifest.

`python tools/pack_dataset.py uci_hapt --source FOLDER --out URL --workers 4`

Source and output are folders or fsspec URLs (s3://bucket/name); the source may be an archive, too. With `--workers N`
the parts of the data set are converted by N workers of Ray: of this machine, or of the cluster at RAY_ADDRESS. The
files have the same bytes for any N. A packing that was killed continues with the same command; finished shards are not
made again.

Settings of storage come from the environment, and from `s3.endpoint_url=...` and other keys of the section `s3` of a
configuration, or `run.storage_patience_s=...`.

`--symbols beside --alphabet 20 --word 8 --normalize dataset` also packs the SAX symbols of a model with these values
(`instead`: without the raw windows). With the name `packed` the source is a packed data set.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from tempfile import TemporaryDirectory

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from maestro_dist.config.load import load_config
from maestro_dist.config.model import ModelConfig
from maestro_dist.config.paths import expand_home
from maestro_dist.data.converters import CONVERTERS
from maestro_dist.data.manifest import MANIFEST_NAME, Manifest, SymbolSpec, load_manifest
from maestro_dist.data.pack_parts import PackWorkers, ThisProcess, check_not_packed
from maestro_dist.data.prepare import (
    ConversionRequest,
    OptionParser,
    check_destination,
    check_source,
    converted,
    pack_conversion,
    unknown_options,
)
from maestro_dist.data.recordings.cut_data import usual_windows
from maestro_dist.data.storage import Storage, redact
from maestro_dist.data.storage.settings import configure
from maestro_dist.data.symbols import add_symbols
from maestro_dist.errors import ConfigError, DataError, run_main
from maestro_dist.model.embedding import SymbolEncoder, word_steps
from maestro_dist.run.packing_progress import shown_progress
from maestro_dist.run.ray_address import cluster_address

_OF_THE_TOOL = {
    "name",
    "source",
    "out",
    "workers",
    "shard_mb",
    "overwrite",
    "symbols",
    "alphabet",
    "word",
    "normalize",
} | {"infer"}
"""Options that do not change the samples."""
_SETTING = re.compile(r"(s3\.[a-z_.]+|run\.storage_patience_s)=.*", re.DOTALL)


def main(argv: list[str] | None = None) -> int:
    """Parse the command line, convert, pack, and print a summary."""
    arguments = _parsed(sys.argv[1:] if argv is None else argv)
    source, out = arguments.source, arguments.out
    if getattr(arguments, "infer", None):
        from maestro_dist.data.tables.write_layout import infer_layout

        return infer_layout(source, arguments.infer, overwrite=arguments.overwrite)
    if arguments.name == "packed":
        check_destination(source, out, source="--source", target="--out")
        if not arguments.overwrite and Storage(out).exists(MANIFEST_NAME):
            raise DataError(f"{redact(out)}: a packed data set is there already; --overwrite replaces it")
        with Console(stderr=True).status(f"making symbols of {redact(source)}"):
            manifest = _symbols(source, arguments)
        _summary(manifest, out, "")
        return 0
    check_source(source, source="--source")
    check_destination(source, out, source="--source", target="--out")
    if not arguments.overwrite:
        check_not_packed(out)
    if arguments.workers:
        _check_ray(arguments)
    return _pack(arguments)


def _pack(arguments: argparse.Namespace) -> int:
    """Pack raw files."""
    converter, out = CONVERTERS[arguments.name], arguments.out
    options = {name: value for name, value in vars(arguments).items() if name not in _OF_THE_TOOL}
    shared = bool(arguments.workers and cluster_address())
    with TemporaryDirectory() if arguments.symbols else nullcontext(out) as target:
        with Console(stderr=True).status(f"reading {redact(arguments.source)}") as status:
            conversion_of = converted(converter, arguments.source, argparse.Namespace(**options), target, shared=shared)
            with conversion_of as conversion:
                status.stop()
                if arguments.symbols and conversion.description.window is not None:
                    raise ConfigError("--symbols: they are made of windows, not of recordings; use --form windows")
                with _workers(arguments, len(conversion.splits)) as workers, shown_progress() as progress:
                    request = ConversionRequest(
                        arguments.name,
                        arguments.source,
                        options,
                        arguments.shard_mb << 20,
                        arguments.overwrite,
                        progress,
                    )
                    manifest, remarks = pack_conversion(conversion, target, request, workers)
        if arguments.symbols:  # they need the statistics of the training split, which are known only now
            manifest = _symbols(target, arguments)
    _summary(manifest, out, conversion.description.notice)
    for note in conversion.notes(remarks.counts):
        Console().print(note, highlight=False, markup=False)
    return 0


def _check_ray(arguments: argparse.Namespace) -> None:
    """Check what can be checked in seconds, before anything is read."""
    from maestro_dist.run.ray_cluster import check_cluster

    if arguments.symbols and cluster_address():
        raise ConfigError(
            "--symbols: they are made on this machine; on a cluster pack without, then add them with the name `packed`"
        )
    check_cluster()


@contextmanager
def _workers(arguments: argparse.Namespace, splits: int) -> Iterator[PackWorkers]:
    """Context with the workers of `--workers`."""
    if not arguments.workers:
        yield ThisProcess()
        return
    from maestro_dist.run.ray_packing import ray_workers

    with ray_workers(arguments.workers, arguments.shard_mb << 20, splits) as workers:
        yield workers


def _parsed(argv: Sequence[str]) -> argparse.Namespace:
    """The checked command line; `~` in paths is replaced, and the settings of storage are in use."""
    parser, children = _parser()
    arguments, unknown = parser.parse_known_args([text for text in argv if not _SETTING.fullmatch(text)])
    configure(load_config(None, [text for text in argv if _SETTING.fullmatch(text)]))
    if unknown:
        child = children[arguments.name]
        options = [text.partition("=")[0] for text in unknown if text.startswith("-")]
        child.error(unknown_options(options, child.names) if options else f"unknown argument: {' '.join(unknown)}")
    if arguments.out is None and not getattr(arguments, "infer", None):
        children[arguments.name].error("the following arguments are required: --out")
    arguments.source, arguments.out = (
        expand_home(arguments.source, "--source"),
        expand_home(arguments.out or "", "--out"),
    )
    _model(arguments)
    return arguments


def _parser() -> tuple[OptionParser, dict[str, OptionParser]]:
    """The parser, and the parsers of the data sets by name."""
    parser = OptionParser(description=__doc__.splitlines()[0] if __doc__ else None)
    names = parser.add_subparsers(
        dest="name", required=True, metavar="NAME", help="the data set; `NAME --help` shows its options"
    )
    for name, converter in CONVERTERS.items():
        child = names.add_parser(name, help=converter.reads, description=converter.__doc__)
        child.add_argument("--source", required=True, help="folder, archive or fsspec URL with the original files")
        child.add_argument(
            "--splits",
            nargs="+",
            metavar="SPLIT=SUBJECTS",
            help="subjects of a split, for instance validation=1,3 test=2,4; all others are for training",
        )
        child.add_argument(
            "--workers",
            type=_not_negative,
            default=0,
            metavar="N",
            help="convert with N workers of Ray, of this machine or of the cluster at RAY_ADDRESS (default 0: in this "
            "process); the files are the same for any N",
        )
        _add_arguments(child, symbols_needed=False)
        converter.add_arguments(child)
        if name == "csv":
            child.add_argument("--infer", metavar="FILE", help="look at the tables, and write this layout")
    child = names.add_parser("packed", help="Add SAX symbols to a packed data set.")
    child.add_argument("--source", required=True, help="folder or fsspec URL of the packed data set")
    _add_arguments(child, symbols_needed=True)
    return parser, dict(names.choices)


def _add_arguments(child: argparse.ArgumentParser, *, symbols_needed: bool) -> None:
    model = ModelConfig()
    child.add_argument("--out", help="folder or fsspec URL for the packed data set")
    child.add_argument("--shard-mb", type=_positive, default=32, help="size of a shard in MiB (default 32)")
    child.add_argument("--overwrite", action="store_true", help="replace a packed data set")
    child.add_argument(
        "--symbols",
        choices=("beside", "instead"),
        default="beside" if symbols_needed else None,
        help="pack SAX symbols beside the raw windows, or instead of them",
    )
    child.add_argument(
        "--alphabet", type=int, default=model.alphabet, help=f"number of symbols (default {model.alphabet})"
    )
    child.add_argument(
        "--word",
        nargs="+",
        default=[str(model.word)],
        metavar="STEPS",
        help="steps of a word, or MODALITY=STEPS for each modality",
    )
    child.add_argument(
        "--normalize",
        choices=("window", "recording", "dataset"),
        default=model.normalize,
        help=f"whose mean and std normalize the windows before symbols are made (default {model.normalize})",
    )


def _positive(text: str) -> int:
    """A whole number from 1."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 1")
    return int(text)


def _not_negative(text: str) -> int:
    """A whole number from 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 0")
    return int(text)


def _symbols(source: str, arguments: argparse.Namespace) -> Manifest:
    """Copy the packed data set `source` with the symbols of the command line."""
    modalities = load_manifest(source).select(None)
    model = _model(arguments)
    spec = SymbolSpec(
        alphabet=model.alphabet,
        word={modality.name: word_steps(model, modality.name) for modality in modalities},
        normalize=model.normalize,
        raw=arguments.symbols == "beside",
    )
    return add_symbols(
        source,
        arguments.out,
        spec,
        SymbolEncoder(model, modalities),
        shard_bytes=arguments.shard_mb << 20,
        overwrite=arguments.overwrite,
    )


def _model(arguments: argparse.Namespace) -> ModelConfig:
    """A model configuration with the values that decide the symbols."""
    pairs = [text.partition("=") for text in arguments.word]
    word: str | dict[str, str] = {name: steps for name, _, steps in pairs}
    if len(pairs) == 1 and not pairs[0][1]:
        word = pairs[0][0]
    values = {"alphabet": arguments.alphabet, "word": word, "normalize": arguments.normalize}
    try:
        return ModelConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"--{first['loc'][0]}: {first['msg']}") from None


def _summary(manifest: Manifest, url: str, notice: str) -> None:
    console = Console()
    table = Table(title=f"{manifest.name} at {redact(url)}", title_justify="left")
    for column in ("split", "samples", "shards", "MB"):
        table.add_column(column, justify="left" if column == "split" else "right")
    for name, split in manifest.splits.items():
        size = sum(shard.bytes for shard in split.shards) / 1e6
        table.add_row(name, f"{split.samples:,}", str(len(split.shards)), f"{size:.1f}")
    console.print(table)
    if manifest.recordings is not None:
        window = manifest.recordings.window
        try:
            manifest = usual_windows(url, manifest)
        except ConfigError as error:  # a run needs other windows or splits
            console.print(f"{error}", highlight=False, markup=False)
            return
        console.print(
            f"cut into windows of {window.length_s:g} s every {window.every_s:g} s, if a run does not say otherwise: "
            + ", ".join(f"{name} {split.samples:,}" for name, split in manifest.splits.items()),
            highlight=False,
        )
    classes = Table(title="classes", title_justify="left")
    classes.add_column("class")
    for name in manifest.splits:
        classes.add_column(name, justify="right")
    for number, label in enumerate(manifest.classes):
        classes.add_row(label, *(f"{split.class_counts[number]:,}" for split in manifest.splits.values()))
    console.print(classes)
    for m in manifest.modalities:
        what = "always known" if m.always and m.steps == 1 else f"{m.steps} steps at {m.rate_hz:g} Hz"
        console.print(f"{m.name}: {m.variates} x {what}{f', {m.unit}' if m.unit else ''}", highlight=False)
    console.print(f"licence: {manifest.licence}\ncitation: {manifest.citation}", highlight=False)
    if notice:
        console.print(f"notice: {notice}", highlight=False)
    command = f"python -m maestro_dist.train data.url={shlex.quote(redact(url))} run.name={manifest.name}"
    if manifest.recording:
        command += " model.normalize=recording"
    console.print(f"train: {command}", highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(run_main(main, debug=False))
