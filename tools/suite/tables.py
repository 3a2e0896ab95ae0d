"""The tables of the report, as lines of Markdown. Empty where there is nothing to show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev

import numpy as np

from maestro_dist.evaluation.result import percent
from maestro_dist.evaluation.table import metric_label
from maestro_dist.task.base import higher_is_better
from suite.bootstrap import interval
from suite.collect import Results, metric_key
from suite.goals import Judgement


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    return [_line(head), "|" + "---|" * len(head), *map(_line, rows)] if rows else []


def goal_table(judgements: Sequence[Judgement]) -> list[str]:
    """What was to be reached and what was measured; then why goals are missed."""
    rows, missed = [], []
    for found in judgements:
        goal, row = found.goal, found.row
        if row is None:
            rows.append([goal.name, "", found.note, ""])
            continue
        sense = goal.sense if goal.sense == "less than" else row.sense
        target = "none" if row.reach is None else f"{sense} {row.reach:{goal.form}}"
        target += f" ({found.note})" if found.note else ""
        target += "" if found.aim is None else f"; aim {found.aim:.3g}"
        holds = "" if row.holds is None else "yes" if row.holds else "**no**"
        rows.append([goal.name, target, f"{row.value:{goal.form}} {row.unit}".strip(), holds])
        if row.holds is False:
            missed.append(f"* {goal.name}: {goal.why or 'no reason is given.'}")
    lines = table(["goal", "target", "measured", "reached"], rows)
    return [*lines, "", "Not reached:", "", *missed] if missed else lines


def score_tables(results: Results, data: str) -> dict[str, list[str]]:
    """By title, one table for each metric: models x missing rates."""
    suite = results.plan.suite
    rates, ends = sorted(suite.rates), suite.ends
    head = ["model", "seeds", *map(_rate, rates)]
    head += [f"lost at {_rate(rates[-1])}"] if len(ends) > 1 else []
    head += [f"95 % interval, {_rate(rate)}" for rate in ends]
    found = {}
    for metric in suite.data[data].metrics:
        rows = []
        for model in suite.models:
            by_rate = [results.values(model, data, metric, rate) for rate in rates]
            if not by_rate[0]:
                continue
            row = [results.plan.label(model), str(len(by_rate[0])), *map(_shown, by_rate)]
            row += [_number(fmean(by_rate[0]) - fmean(by_rate[-1]))] if len(ends) > 1 else []
            rows.append([*row, *(_interval(results.bootstrap(model, data, metric, rate)) for rate in ends)])
        if rows:
            found[metric_label(metric)] = table(head, rows)
    return found


def ensemble_table(results: Results, data: str) -> list[str]:
    """Models with several seeds."""
    suite = results.plan.suite
    rates, ends = sorted(suite.rates), suite.ends
    rows = []
    for metric in suite.data[data].metrics:
        for model in suite.models:
            found = results.ensembles.get((model, data))
            if found is None:
                continue
            row = [results.plan.label(model), metric_label(metric), str(len(results.seeds(model, data)))]
            row += [_number(found.values[metric_key(metric, rate)]) for rate in rates]
            rows.append([*row, *(_interval(found.resampled[metric_key(metric, rate)]) for rate in ends)])
    head = ["ensemble", "metric", "of", *map(_rate, rates), *(f"95 % interval, {_rate(rate)}" for rate in ends)]
    lines = table(head, rows)
    several = [model for model in suite.models if len(results.seeds(model, data)) > 1]
    gone = [results.plan.label(model) for model in several if (model, data) not in results.ensembles]
    if gone:
        lines += ["", f"Not shown: {', '.join(gone)}. The predictions of some seeds are gone; to have these ensembles, "
                  "run all seeds again with results=null."]  # fmt: skip
    return lines


def ablation_table(results: Results, data: str) -> list[str]:
    """Each change, and the difference to the unchanged model on the same seeds."""
    suite = results.plan.suite
    metric, ends = suite.data[data].metrics[0], suite.ends
    sign = 1 if higher_is_better(metric) else -1
    rows = []
    for ablation in suite.ablations:
        model = ablation.of.get(data, "")
        whole, part = (list(results.seeds(name, data)) for name in (model, ablation.name))
        seeds = [seed for seed in part if seed in whole]
        if not seeds:
            continue
        row = [ablation.label, results.plan.label(model), str(len(seeds))]
        row += [_shown(results.values(ablation.name, data, metric, rate, seeds)) for rate in ends]
        for rate in ends:
            values = [results.values(name, data, metric, rate, seeds) for name in (model, ablation.name)]
            drawn = [results.bootstrap(name, data, metric, rate, seeds) for name in (model, ablation.name)]
            assert drawn[0] is not None
            assert drawn[1] is not None
            effect = sign * (fmean(values[0]) - fmean(values[1]))
            row.append(f"{_number(effect, signed=True)} ({_interval(sign * (drawn[0] - drawn[1]), signed=True)})")
        rows.append(row)
    head = ["change", "model", "seeds", *(f"{metric_label(metric)}, {_rate(rate)}" for rate in ends)]
    return table([*head, *(f"difference, {_rate(rate)} (95 % interval)" for rate in ends)], rows)


def expert_table(results: Results, data: str) -> list[str]:
    """Mutual information between expert and missing set at the largest missing rate, for models with experts."""
    rows = []
    for model in results.plan.suite.models:
        for seed, cells in results.seeds(model, data).items():
            for item in cells:
                found = item.experts
                if found is None:
                    continue
                run = f"{model}, seed {seed}" + ("" if item.cell.fold is None else f", fold {item.cell.fold}")
                rows.append([run, str(found.sets), f"{found.bits:.4f}", f"{found.control:.4f}", f"{found.p:.3f}"])
    rate = _rate(results.plan.suite.ends[-1])
    return table(["run", f"missing sets, {rate}", "bits", "bits, permuted sets", "p"], rows)


def duration_table(results: Results) -> list[str]:
    """How long the cells of each model took."""
    rows, whole = [], 0.0
    for data in results.plan.suite.data:
        for model in dict.fromkeys(cell.model for cell in results.plan.cells if cell.data == data):
            cells = [results.finished.get(cell.name) for cell in results.plan.cells_of(model, data)]
            records = [item.record for item in cells if item is not None]
            taken = [record.seconds for record in records if record is not None]
            if taken:
                mean = duration(sum(taken) / len(taken))
                rows.append([data, results.plan.label(model), str(len(taken)), mean, duration(sum(taken))])
                whole += sum(taken)
    return table(["data set", "model", "cells", "a cell", "all"], [*rows, ["all", "", "", "", duration(whole)]])


def duration(seconds: float) -> str:
    """3725 -> 1 h 02 min."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


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
