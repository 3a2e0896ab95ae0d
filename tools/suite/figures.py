"""The figures of a suite: numbers made from results, and whether they are what was to be reached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any

from benchmarks.common import Row

from maestro_dist.evaluation.table import metric_label
from suite.collect import Results
from suite.schema import Figure, Value


@dataclass(frozen=True)
class Found:
    """A figure; `row` is None where a cell that it needs is not finished. `said`: what `reach` was made from."""

    figure: Figure
    row: Row | None
    said: str = ""

    def to_json(self) -> dict[str, Any]:
        """As `tools/benchmark.py --json` writes a row; `aim` besides, where there is one."""
        assert self.row is not None
        return asdict(self.row) | ({} if self.figure.aim is None else {"aim": self.figure.aim})


def figure_rows(results: Results) -> list[Found]:
    """All figures of the suite."""
    return [_found(figure, results) for figure in results.plan.suite.figures]


def _found(figure: Figure, results: Results) -> Found:
    value = _value(figure.value, results)
    minus = 0.0 if figure.minus is None else _value(figure.minus, results)
    over = None if figure.over is None else _value(figure.over, results)
    if value is None or minus is None or (figure.over is not None and over is None):
        return Found(figure, None)
    value -= minus
    unit = metric_label(_metric(figure.value, results))
    reach, said = figure.reach, ""
    if figure.over is not None and over is not None:
        reach = over + figure.by
        said = f"{_whose(figure.over, results)} {over:.3f}" + (f" {figure.by:+g}" if figure.by else "")
    if reach is None:
        return Found(figure, Row(figure.name, value, unit))
    holds = value >= reach if figure.sense == "at least" else value <= reach
    return Found(figure, Row(figure.name, value, unit, reach, holds, figure.sense), said)


def _value(value: Value, results: Results) -> float | None:
    """None where a cell that it needs is not finished: no figure is made from some of its seeds."""
    metric = _metric(value, results)
    names = _names(value)
    for name in names:
        cells = results.plan.cells_of(name, value.data)
        if any(cell.name not in results.finished for cell in cells):
            return None
    entry = names[0] if len(names) == 1 else results.best(names, value.data, metric, value.missing)
    if entry is None:
        return None
    if value.of == "ensemble":
        found = results.ensemble(entry, value.data, metric, value.missing)
        return None if found is None else found[0]
    values = results.values(entry, value.data, metric, value.missing)
    if value.of == "spread":
        return stdev(values) if len(values) > 1 else None
    if value.of == "drop":
        return fmean(results.values(entry, value.data, metric, 0.0)) - fmean(values)
    return fmean(values)


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
