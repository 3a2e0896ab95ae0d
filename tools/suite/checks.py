"""What is wrong in a suite though each of its parts is sound: names that are not there, changes that change nothing."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from maestro_dist.errors import ConfigError
from suite.schema import Entry, Suite, Value

if TYPE_CHECKING:
    from suite.cells import Cell


def check_entries(suite: Suite, entries: Sequence[Entry]) -> None:
    """Names of entries, data sets and folds. Raises ConfigError."""
    sets = {data.name: data for data in suite.data}
    if len(sets) < len(suite.data):
        raise ConfigError("data: two data sets have the same name")
    places: set[tuple[str, str]] = set()
    for entry in entries:
        for name in entry.data:
            where = f"entries.{entry.name}.data"
            if name not in sets:
                raise ConfigError(f"{where}: no data set {name!r}{hint(name, list(sets))}")
            if (entry.name, name) in places:
                raise ConfigError(f"{where}: {entry.name!r} is on {name!r} twice")
            places.add((entry.name, name))
            folds = sets[name].folds
            if entry.folds is not None and (folds is None or max(entry.folds) >= folds):
                raise ConfigError(f"entries.{entry.name}.folds: {name!r} has {folds or 'no'} folds, counted from 0")


def check_ablations(suite: Suite, cells: Sequence[Cell]) -> None:
    """Each changes something. Raises ConfigError, which names all that do not."""
    settings = {(cell.entry, cell.data): _what_it_computes(cell) for cell in cells}
    same = [
        f"{ablation.name} on {data!r} ({', '.join(ablation.set)})"
        for ablation in suite.ablations
        for data in dict.fromkeys(cell.data for cell in cells if cell.entry == ablation.name)
        # another ablation of this name may be on data sets that this one's entry is not on
        if data in (ablation.data or [data]) and settings[ablation.name, data] == settings.get((ablation.of, data))
    ]
    if same:
        raise ConfigError(f"ablations that change nothing of what they are compared with: {'; '.join(same)}")


def _what_it_computes(cell: Cell) -> dict[str, object]:
    other = ("run.name", "run.seed", "evaluation.test_rates")
    return {key: value for key, value in cell.settings.items() if not key.endswith(other)}


def check_figures(suite: Suite, cells: Sequence[Cell]) -> None:
    """Names, metrics and rates of the figures. Raises ConfigError."""
    names = [figure.name for figure in suite.figures]
    plain = [figure.name for figure in suite.figures if figure.count is None]
    for figure in suite.figures:
        if names.count(figure.name) > 1:
            raise ConfigError(f"figures, {figure.name!r}: two figures have this name")
        for name in figure.count or ():
            if name not in plain:
                raise ConfigError(f"figures, {figure.name!r}: count: no figure {name!r}{hint(name, plain)}")
        for key in ("value", "minus", "over"):
            value: Value | None = getattr(figure, key)
            if value is not None:
                _check_value(value, f"figures, {figure.name!r}: {key}", suite, cells)


def _check_value(value: Value, where: str, suite: Suite, cells: Sequence[Cell]) -> None:
    found = {cell.entry: cell for cell in cells if cell.data == value.data}
    for entry in [value.entry] if isinstance(value.entry, str) else value.entry:
        if entry not in found:
            raise ConfigError(f"{where}.entry: no {entry!r} on {value.data!r}{hint(entry, sorted(found))}")
        if not found[entry].scored:
            raise ConfigError(f"{where}.entry: {entry!r} is a pre-training, which has no scores")
        if value.of == "expert_p" and found[entry].kind != "maestro":
            raise ConfigError(f"{where}.of: {entry!r} is a baseline, which has no experts")
        rates = found[entry].settings["evaluation.test_rates"]
        for rate in (value.missing, *((0.0,) if value.of == "drop" else ())):
            if rate not in rates:
                raise ConfigError(f"{where}.missing: {entry!r} is not tested at {rate}, but at {rates}")
    metrics = next(data.metrics for data in suite.data if data.name == value.data)
    if value.metric is not None and value.metric not in metrics:
        raise ConfigError(f"{where}.metric: {value.data!r} has {', '.join(metrics)}")


def hint(name: str, known: Sequence[str]) -> str:
    """The end of a message about a name that is not there."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(dict.fromkeys(known)) or 'none'}"
