"""The tables of the report, as lines of Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev

import numpy as np

from maestro_dist.evaluation.result import percent
from maestro_dist.evaluation.table import metric_label
from maestro_dist.task.base import higher_is_better
from suite.bootstrap import interval
from suite.collect import Results


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    return [_line(head), "|" + "---|" * len(head), *map(_line, rows)]


def score_tables(results: Results, data: str, labels: dict[str, str]) -> dict[str, list[str]]:
    """By title: one a metric, models x missing rates; none where nothing is finished."""
    rates = sorted(results.plan.suite.rates)
    ends = _ends(rates)
    head = ["model", "seeds", *map(_rate, rates)]
    head += [f"lost at {_rate(rates[-1])}"] if len(ends) > 1 else []
    head += [f"95 % interval, {_rate(rate)}" for rate in ends]
    found = {}
    for metric in results.plan.data(data).metrics:
        rows = []
        for entry, label in labels.items():
            by_rate = [results.values(entry, data, metric, rate) for rate in rates]
            if not by_rate[0]:
                continue
            row = [label, str(len(by_rate[0])), *map(_shown, by_rate)]
            row += [_number(fmean(by_rate[0]) - fmean(by_rate[-1]))] if len(ends) > 1 else []
            rows.append([*row, *(_interval(results.bootstrap(entry, data, metric, rate)) for rate in ends)])
        if rows:
            found[metric_label(metric)] = table(head, rows)
    return found


def ensemble_table(results: Results, data: str, labels: dict[str, str]) -> list[str]:
    """Models with several seeds; empty where there is none."""
    rates = sorted(results.plan.suite.rates)
    ends = _ends(rates)
    rows = []
    for metric in results.plan.data(data).metrics:
        for entry, label in labels.items():
            found = [results.ensemble(entry, data, metric, rate) for rate in rates]
            known = [item for item in found if item is not None]
            if len(known) < len(rates):
                continue
            row = [
                label,
                metric_label(metric),
                str(len(results.seeds(entry, data))),
                *(_number(value) for value, _ in known),
            ]
            rows.append([*row, *(_interval(known[rates.index(rate)][1]) for rate in ends)])
    head = ["ensemble", "metric", "of", *map(_rate, rates), *(f"95 % interval, {_rate(rate)}" for rate in ends)]
    lines = table(head, rows) if rows else []
    gone = [label for entry, label in labels.items() if results.lacking(entry, data)]
    if gone:
        why = "of which the answers of some seeds are no longer there (run all again, without what was kept of them)"
        lines += ["", f"Not shown: {', '.join(gone)}, {why}."]
    return lines


def ablation_table(results: Results, data: str, labels: dict[str, str]) -> list[str]:
    """What was changed, and how much better the entry is that it was changed from, on the same seeds."""
    metric = results.plan.data(data).metrics[0]
    ends = _ends(sorted(results.plan.suite.rates))
    sign = 1 if higher_is_better(metric) else -1
    rows = []
    for ablation in results.plan.suite.ablations:
        if data not in (ablation.data or [data]):
            continue  # another one of the same name
        seeds = list(results.seeds(ablation.name, data))
        common = [seed for seed in seeds if seed in results.seeds(ablation.of, data)]
        if not common:
            continue
        row = [ablation.label or ablation.name, labels[ablation.of], str(len(common))]
        row += [_shown(results.values(ablation.name, data, metric, rate, common)) for rate in ends]
        for rate in ends:
            whole = results.values(ablation.of, data, metric, rate, common)
            part = results.values(ablation.name, data, metric, rate, common)
            a = results.bootstrap(ablation.of, data, metric, rate, common)
            b = results.bootstrap(ablation.name, data, metric, rate, common)
            assert a is not None
            assert b is not None
            worth = sign * (fmean(whole) - fmean(part))
            row.append(f"{_number(worth, signed=True)} ({_interval(sign * (a - b), signed=True)})")
        rows.append(row)
    head = ["changed", "from", "seeds", *(f"{metric_label(metric)}, {_rate(rate)}" for rate in ends)]
    return table([*head, *(f"worth, {_rate(rate)} (95 % interval)" for rate in ends)], rows) if rows else []


def expert_table(results: Results, data: str) -> list[str]:
    """Mutual information between expert and missing set of each model that has experts, at the largest rate."""
    suite = results.plan.suite
    rate = max(suite.rates)
    rows = []
    for entry in dict.fromkeys(item.name for item in suite.entries):
        for seed, cells in results.seeds(entry, data).items():
            for item in cells:
                found = results.experts(item, rate)
                if found is not None:
                    fold = [] if item.cell.fold is None else [f"fold {item.cell.fold}"]
                    rows.append([
                        ", ".join([entry, f"seed {seed}", *fold]), str(found.sets), f"{found.bits:.4f}",
                        f"{found.control:.4f}", f"{found.p:.3f}",
                    ])  # fmt: skip
    head = ["run", f"missing sets, {_rate(rate)}", "bits", "bits, sets permuted", "p"]
    return table(head, rows) if rows else []


def duration(seconds: float) -> str:
    """3725 -> 1 h 02 min."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _ends(rates: Sequence[float]) -> list[float]:
    return [rates[0]] if len(rates) == 1 else [rates[0], rates[-1]]


def _rate(rate: float) -> str:
    return f"{percent(rate)} missing" if rate else "complete"


def _shown(values: Sequence[float]) -> str:
    mean = fmean(values)
    return _number(mean) + (f" ± {stdev(values):.3f}" if len(values) > 1 and math.isfinite(mean) else "")


def _number(value: float, *, signed: bool = False) -> str:
    return "undefined" if math.isnan(value) else f"{value:+.3f}" if signed else f"{value:.3f}"


def _interval(values: np.ndarray | None, *, signed: bool = False) -> str:
    if values is None:
        return ""
    low, high = interval(values)
    return "" if math.isnan(low) else f"{_number(low, signed=signed)} to {_number(high, signed=signed)}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
