"""The figures of a suite: numbers made from results, and whether they are what was to be reached."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any

from benchmarks.common import Row

from maestro_dist.evaluation.table import metric_label
from suite.collect import Results
from suite.schema import Figure, Value

UNDEFINED = "undefined"


@dataclass(frozen=True)
class Found:
    """A figure; `row` is None where a cell that it needs is not finished (or, as `said` then says, where it is
    undefined: a test split with one class has no AUROC). Else `said` is what `reach` was made from.

    `strict`: the figure has to lie below what is to be reached, not at it.
    """

    figure: Figure
    row: Row | None
    said: str = ""
    strict: bool = False

    @property
    def aim(self) -> float | None:
        """What would be better still, if anything."""
        share, reach = self.figure.aim_share, None if self.row is None else self.row.reach
        return self.figure.aim if share is None else None if reach is None else share * reach

    def to_json(self) -> dict[str, Any]:
        """As `tools/benchmark.py --json` writes a row; `aim` besides, where there is one."""
        assert self.row is not None
        return asdict(self.row) | ({} if self.aim is None else {"aim": self.aim})


def figure_rows(results: Results) -> list[Found]:
    """All figures of the suite."""
    figures = results.plan.suite.figures
    found = {figure.name: _found(figure, figure.value, results) for figure in figures if figure.value is not None}
    found |= {figure.name: _counted(figure, figure.count, found) for figure in figures if figure.count is not None}
    return [found[figure.name] for figure in figures]


def _counted(figure: Figure, names: Sequence[str], found: dict[str, Found]) -> Found:
    rows = [found[name].row for name in names]
    if any(row is None for row in rows):
        return Found(figure, None)
    return _judged(
        figure, float(sum(row is not None and row.holds is True for row in rows)), f"of {len(rows)}", figure.reach
    )


def _found(figure: Figure, given: Value, results: Results) -> Found:
    value = _value(given, results)
    minus = 0.0 if figure.minus is None else _value(figure.minus, results)
    if value is None or minus is None:
        return Found(figure, None)
    value -= minus
    if math.isnan(value):
        return Found(figure, None, UNDEFINED)
    unit = "p" if given.of == "expert_p" else metric_label(_metric(given, results))
    over = figure.over
    if over is None:
        return _judged(figure, value, unit, figure.reach)
    if over.within is not None:
        return _least_drop(figure, given, over, value, results)
    other = _value(over, results)
    if other is None or math.isnan(other):
        return Found(figure, None, "" if other is None else UNDEFINED)
    said = f"{_whose(over, results)} {other:.3f}" + (f" {figure.by:+g}" if figure.by else "")
    return _judged(figure, value, unit, other + figure.by, said)


def _value(value: Value, results: Results) -> float | None:
    """None where a cell that it needs is not finished: no figure is made from some of its seeds."""
    metric = _metric(value, results)
    names = _names(value)
    for name in names:
        cells = results.plan.cells_of(name, value.data)
        if any(cell.name not in results.finished for cell in cells):
            return None
    if value.of == "expert_p":
        return _expert_p(names[0], value, results)
    entry = names[0] if len(names) == 1 else results.best(names, value.data, metric, value.missing)
    if entry is None:
        return None
    if value.of == "ensemble":
        found = results.ensemble(entry, value.data, metric, value.missing)
        return None if found is None else found[0]
    values = results.values(entry, value.data, metric, value.missing)
    if value.of == "spread":
        return (stdev(values) if all(map(math.isfinite, values)) else math.nan) if len(values) > 1 else None
    if value.of == "drop":
        return fmean(results.values(entry, value.data, metric, 0.0)) - fmean(values)
    return fmean(values)


def _least_drop(figure: Figure, value: Value, over: Value, lost: float, results: Results) -> Found:
    """Compared with what loses least of the entries that are as good when all is there."""
    metric = _metric(over, results)
    drops = {}
    if any(_value(over.model_copy(update={"entry": name}), results) is None for name in _names(over)):
        return Found(figure, None)
    whole = fmean(results.values(_names(value)[0], value.data, metric, 0.0))
    for name in _names(over):
        complete = fmean(results.values(name, over.data, metric, 0.0))
        if over.within is not None and abs(complete - whole) <= over.within:
            drops[name] = complete - fmean(results.values(name, over.data, metric, over.missing))
    unit = metric_label(metric)
    if not drops:
        return _judged(
            figure, lost, unit, None, f"none of {len(_names(over))} lies within {over.within:g} of {whole:.3f}"
        )
    least = min(drops, key=lambda name: drops[name])
    said = f"{least} {drops[least]:.3f}, the least of {len(drops)} within {over.within:g}"
    said += f"; {figure.by:+g}" if figure.by else ""
    return _judged(figure, lost, unit, drops[least] + figure.by, said, strict=True)


def _expert_p(entry: str, value: Value, results: Results) -> float:
    found = [
        results.experts(item, value.missing) for cells in results.seeds(entry, value.data).values() for item in cells
    ]
    return max(1.0 if item is None else item.p for item in found)


def _judged(
    figure: Figure, value: float, unit: str, reach: float | None, said: str = "", *, strict: bool = False
) -> Found:
    if reach is None:
        return Found(figure, Row(figure.name, value, unit), said)
    below = value < reach if strict else value <= reach
    holds = value >= reach if figure.sense == "at least" else below
    return Found(figure, Row(figure.name, value, unit, reach, holds, figure.sense), said, strict)


def _whose(value: Value, results: Results) -> str:
    names = _names(value)
    if len(names) == 1:
        return names[0]
    best = results.best(names, value.data, _metric(value, results), value.missing)
    return f"{best}, the best of {len(names)},"


def _names(value: Value) -> Sequence[str] | list[str]:
    return [value.entry] if isinstance(value.entry, str) else list(value.entry)


def _metric(value: Value, results: Results) -> str:
    return value.metric or results.plan.data(value.data).metrics[0]
