"""`tools/pack_dataset.py csv --infer FILE`: write a layout, try it, and say what is to be checked."""

from __future__ import annotations

import shlex
from pathlib import Path

from rich.console import Console

from maestro_dist.data.parts import Remarks
from maestro_dist.data.storage import redact
from maestro_dist.data.tables.conversion import convert
from maestro_dist.data.tables.infer import look
from maestro_dist.data.tables.layout import load_layout
from maestro_dist.data.tables.layout_text import doubts, layout_text
from maestro_dist.errors import ConfigError, DataError

_TRIED = 3
"""Recordings that are made to see whether the layout fits."""


def infer_layout(source: str, path: str, *, overwrite: bool = False) -> int:
    """Write the layout of the tables at `source` to the file `path`, and print it with the next command.

    Raises:
        ConfigError: the file exists, or cannot be written.
        DataError: there are no tables.
    """
    place = Path(path).expanduser()
    if place.exists() and not overwrite:
        raise ConfigError(f"--infer {path}: the file exists; --overwrite replaces it, with what you changed in it")
    console = Console()
    with Console(stderr=True).status("reading tables") as status:
        found = look(source, lambda name: status.update(f"reading {name}"))
    text = layout_text(found)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--infer {path}: cannot be written ({error.strerror}); choose another place") from None
    for line in (text, *found.remarks):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    checks = doubts(text)
    problem = _problem(source, str(place))
    if problem:
        console.print(f"Tried on the first recordings: {problem}", highlight=False, markup=False, soft_wrap=True)
    what = f"{len(checks)} lines with CHECK, and all else" if checks else "it"
    command = f"python tools/pack_dataset.py csv --source {shlex.quote(redact(source))} --layout {shlex.quote(path)}"
    console.print(
        f"Look at {what} in {path}, then pack:\n{command} --out data/{found.name}",
        highlight=False, markup=False, soft_wrap=True,
    )  # fmt: skip
    return 0


def _problem(source: str, path: str) -> str:
    """Why the first recordings cannot be made by the layout; empty if they can."""
    try:
        layout, _ = load_layout(path)
        conversion, made = convert(source, layout), 0
        for part in conversion.parts[:_TRIED]:
            made += sum(1 for _ in part.samples(Remarks()))
    except (ConfigError, DataError) as error:
        return str(error)
    return "" if made else "no recording has a measured value"
