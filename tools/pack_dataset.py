"""Pack a public data set into shards, indexes and a manifest.

`python tools/pack_dataset.py uci_hapt --source FOLDER --out URL`

The source is a folder or a .tar.xz as it was published; the target any folder or fsspec URL (s3://bucket/name).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from maestro_dist.data.converters import CONVERTERS
from maestro_dist.data.manifest import Manifest
from maestro_dist.data.pack import pack
from maestro_dist.data.storage import redact
from maestro_dist.errors import run_main


def main(argv: list[str] | None = None) -> int:
    """Parse the command line, convert, pack, and print what there is now."""
    arguments = _parser().parse_args(argv)
    console = Console(stderr=True)
    with console.status(f"reading {arguments.source}"):
        conversion = CONVERTERS[arguments.name].from_arguments(Path(arguments.source), arguments)
    columns = (TextColumn("packing"), BarColumn(), MofNCompleteColumn(), TextColumn("windows"), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        manifest = pack(
            arguments.out,
            conversion.description,
            progress.track(conversion.samples, total=conversion.total),
            shard_bytes=arguments.shard_mb << 20,
            overwrite=arguments.overwrite,
        )
    _summary(manifest, arguments.out, conversion.description.notice)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    names = parser.add_subparsers(dest="name", required=True, metavar="NAME", help=", ".join(sorted(CONVERTERS)))
    for name, converter in sorted(CONVERTERS.items()):
        child = names.add_parser(name, help=(converter.__doc__ or "").splitlines()[0])
        child.add_argument("--source", required=True, help="folder or archive with the original files")
        child.add_argument("--out", required=True, help="folder or fsspec URL for the packed data set")
        child.add_argument("--splits", nargs="+", metavar="SPLIT=SUBJECTS", help="e.g. validation=1,3 test=2,4")
        child.add_argument("--shard-mb", type=int, default=32, help="size of a shard in MiB (default 32)")
        child.add_argument("--overwrite", action="store_true", help="replace a packed data set")
        converter.add_arguments(child)
    return parser


def _summary(manifest: Manifest, url: str, notice: str) -> None:
    console = Console()
    table = Table(title=f"{manifest.name} at {redact(url)}", title_justify="left")
    for column in ("split", "samples", "shards", "MB"):
        table.add_column(column, justify="left" if column == "split" else "right")
    for name, split in manifest.splits.items():
        size = sum(shard.bytes for shard in split.shards) / 1e6
        table.add_row(name, f"{split.samples:,}", str(len(split.shards)), f"{size:.1f}")
    console.print(table)
    classes = Table(title="classes", title_justify="left")
    classes.add_column("class")
    for name in manifest.splits:
        classes.add_column(name, justify="right")
    for number, label in enumerate(manifest.classes):
        classes.add_row(label, *(f"{split.class_counts[number]:,}" for split in manifest.splits.values()))
    console.print(classes)
    for m in manifest.modalities:
        console.print(f"{m.name}: {m.variates} x {m.steps} steps at {m.rate_hz:g} Hz, {m.unit}", highlight=False)
    console.print(f"licence: {manifest.licence}\ncitation: {manifest.citation}", highlight=False)
    if notice:
        console.print(f"notice: {notice}", highlight=False)


if __name__ == "__main__":
    sys.exit(run_main(main, debug=False))
