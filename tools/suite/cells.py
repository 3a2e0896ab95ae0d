"""Cells of a suite: one run each, what they need of one another, and the order that follows from it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from maestro_dist.errors import ConfigError
from suite.checks import hint

_RUN = re.compile(r"\{run:([^{}]*)\}")


@dataclass(frozen=True)
class Cell:
    """One run of the table.

    entry, data, fold, seed  its place in the table; `name` says them all, and is the name of its run
    config     its configuration file, relative to the repository, if it has one
    arguments  what comes after `python -m`
    settings   what decides its result (plain JSON): a finished cell with others is not this one
    cpus       CPU cores that it keeps busy; `inline`: in the job's own process
    needs      cells that must be done before, by what an override names as `{run:ENTRY}` or `{run:ENTRY+N}`
    scored     whether its test gives scores; a pre-training's does not
    stage      number of the stage that it belongs to, from 1
    """

    name: str
    entry: str
    kind: str
    data: str
    fold: int | None
    seed: int
    url: str
    config: str | None
    arguments: tuple[str, ...]
    settings: dict[str, Any]
    cpus: int
    inline: bool
    minutes: float
    needs: dict[str, str]
    scored: bool
    stage: int = 0

    @property
    def command(self) -> str:
        """As one types it."""
        return shlex.join(["python", "-m", *self.arguments])


def needed(overrides: Sequence[str]) -> list[str]:
    """What overrides name as `{run:ENTRY}` or `{run:ENTRY+N}`, once each."""
    return list(dict.fromkeys(name for override in overrides for name in _RUN.findall(override)))


def filled(override: str, place: Callable[[str], str]) -> str:
    """An override with the place of a run where it says `{run:ENTRY}` or `{run:ENTRY+N}`."""
    return _RUN.sub(lambda found: place(found[1]), override)


def entry_and_seed(named: str, seed: int) -> tuple[str, int]:
    """What a cell with `seed` means by `ENTRY` (the same seed) or `ENTRY+N` (that seed and N)."""
    entry, plus, more = named.partition("+")
    if plus and not more.isdecimal():
        raise ConfigError(f"{{run:{named}}}: {more!r} is no number to add to the seed")
    return entry, seed + int(more or 0)


def in_order(cells: Sequence[Cell]) -> list[Cell]:
    """Cells in their order, but each after those that it needs, whose settings become a part of its own.

    Raises ConfigError where a needed one is not there, or needs itself in the end.
    """
    by_name = {cell.name: cell for cell in cells}
    done: dict[str, Cell] = {}

    def take(cell: Cell, above: tuple[str, ...]) -> None:
        above = (*above, cell.entry)
        if cell.entry in above[:-1]:
            raise ConfigError(
                f"entries.{cell.entry}.set: it needs itself: {' -> '.join(above[above.index(cell.entry) :])}"
            )
        if cell.name in done:
            return
        inherited: dict[str, Any] = {}
        for named, name in cell.needs.items():
            if name not in by_name:
                raise ConfigError(f"entries.{cell.entry}.set: {{run:{named}}}: {_absent(cell, named, cells)}")
            take(by_name[name], above)
            inherited |= {f"{named}: {key}": value for key, value in done[name].settings.items()}
        done[cell.name] = replace(cell, settings=cell.settings | inherited)

    for cell in cells:
        take(cell, ())
    return list(done.values())


def _absent(cell: Cell, named: str, cells: Sequence[Cell]) -> str:
    entry, seed = entry_and_seed(named, cell.seed)
    known = list(dict.fromkeys(other.entry for other in cells if other.data == cell.data))
    if entry not in known:
        return f"no entry {entry!r} on {cell.data!r}{hint(entry, known)}"
    fold = "" if cell.fold is None else f" in fold {cell.fold}"
    return f"{entry!r} has no seed {seed} on {cell.data!r}{fold}, which {cell.entry!r} has"


def staged(cells: Sequence[Cell], longest: float) -> Iterator[Cell]:
    """Cells in their order, cut where the minutes, one after the other, would be more than `longest`."""
    stage, minutes = 1, 0.0
    for cell in cells:
        if minutes and minutes + cell.minutes > longest:
            stage, minutes = stage + 1, 0.0
        minutes += cell.minutes
        yield replace(cell, stage=stage)


def select(cells: Sequence[Cell], only: Sequence[str], stage: int | None) -> list[Cell]:
    """The cells of a stage whose name fits one of the globs.

    Raises ConfigError where a glob fits no cell, or all together fit none of the stage.
    """
    for glob in only:
        if not any(fnmatchcase(cell.name, glob) for cell in cells):
            near = get_close_matches(glob, [cell.name for cell in cells], n=1)
            meant = "; key=value comes before --only" if "=" in glob else f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"no cell fits --only {glob} (see --list){meant}")
    found = [
        cell
        for cell in cells
        if (stage is None or cell.stage == stage) and (not only or any(fnmatchcase(cell.name, glob) for glob in only))
    ]
    if not found:
        globs = " ".join(only) or "*"
        stages = max((cell.stage for cell in cells), default=0)
        raise ConfigError(f"no cell fits --only {globs} in stage {stage or 'any'} of {stages} (see --list)")
    return found
