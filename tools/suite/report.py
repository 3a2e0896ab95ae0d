"""`RESULTS.md`, `results.json` and one picture for each data set. The same results give the same bytes."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from statistics import fmean, stdev
from typing import Any

import numpy as np

from maestro_dist.data.storage import Storage
from maestro_dist.evaluation.result import percent
from maestro_dist.evaluation.table import metric_label
from maestro_dist.system.figure_style import COLOURS, STYLE
from suite.archive import Record
from suite.collect import Results, Scores, average, metric_key
from suite.goals import Goal
from suite.schema import Suite
from suite.statistics import interval

REPORT_FILE = "RESULTS.md"
_NUMBERS = """
A number is the mean over seeds (and folds, and draws of the missing modalities) and, after ±, the standard \
deviation over the seeds. Intervals hold the middle 95 % of {resamples:,} resamples of the test subjects, the same for \
all models of a data set. The best checkpoint, ridge penalty and number of trees of each cell were chosen on \
validation data.
"""
_DIFFERENCE = "Difference: the unchanged model minus the changed one. Above 0 the change makes it worse."
Rows = list[dict[str, str]]
"""The rows of a table: texts by column."""


def write_report(results: Results, goals: list[Goal], out: str, command: str) -> None:
    """Write all files below `out`."""
    place, suite = Storage(out), results.plan.suite
    records = [item.record for item in results.finished.values()]
    unknown = "undefined" if len(results.finished) == len(results.plan.cells) else "not finished"
    lines = [f"# {suite.name}", "", suite.about.strip(), ""]
    lines += [f"Written by `{command}` from the files of the runs; do not edit.", "", *_summary(results, records)]
    lines += ["## Goals", "", *_goal_table(goals, unknown), ""] if goals else []
    for data, dataset in suite.data.items():
        lines += [f"## {data}", ""]
        if not any(results.seeds(model, data) for model in suite.models):
            lines += ["Nothing is finished yet.", ""]
            continue
        place.write(f"{data}.png", _picture(results, data))
        lines += [_test_split(results, data), ""]
        for metric in dataset.metrics:
            lines += [f"### {metric_label(metric)}", "", *_table(_scores(results, data, metric)), ""]
        lines += [f"![{data}]({data}.png)", ""]
        for title, rows in {
            "Ensembles (the seeds' probabilities averaged)\n": _ensembles(results, data),
            f"Ablations\n\n{_DIFFERENCE}\n": _ablations(results, data),
            "Experts and missing sets\n": _experts(results, data),
        }.items():
            lines += [f"### {title}", *_table(rows), ""] if rows else []
    lines += ["## Durations", "", *_table(_durations(results))]
    place.write(REPORT_FILE, ("\n".join(lines) + "\n").encode())
    newest = max(records, key=lambda record: record.finished, default=None)
    content = {
        "benchmark": suite.name,
        "machine": newest.machine | {"date": newest.finished.isoformat(timespec="seconds")} if newest else {},
        "notes": [f"{unknown}: {goal.name}" for goal in goals if goal.row is None],
        "rows": [asdict(goal.row) | ({} if goal.aim is None else {"aim": goal.aim}) for goal in goals if goal.row],
    }
    place.write("results.json", (json.dumps(content, indent=1) + "\n").encode())


def _summary(results: Results, records: list[Record]) -> list[str]:
    line = f"{len(results.finished)} of {len(results.plan.cells)} cells are finished."
    if not records:
        return [line, ""]
    days = sorted(record.finished.date().isoformat() for record in records)
    when = " to ".join(dict.fromkeys((days[0], days[-1])))
    total = _duration(sum(record.seconds for record in records))
    line += f" The sum of their times is {total} ({when}); as many ran at a time as there are cores."
    machines = dict.fromkeys(_machine(record.machine) for record in records)
    numbers = _NUMBERS.format(resamples=results.plan.suite.resamples)
    return [line, "", *(f"Machine: {text}.\n" for text in machines), numbers.strip(), ""]


def _test_split(results: Results, data: str) -> str:
    by_fold = {
        item.cell.fold: item.content for item in results.finished.values() if item.cell.data == data and item.scores
    }
    samples = sum(content["result"]["evaluation"]["samples"] for content in by_fold.values())
    subjects = sum(content["tested"]["subjects"] for content in by_fold.values())
    folds, modalities = results.plan.suite.data[data].folds, next(iter(by_fold.values()))["tested"]["modalities"]
    split = "one fixed split" if folds is None else f"{len(by_fold)} of {folds} folds by subject"
    names = f"{len(modalities)} modalities: {', '.join(modalities)}"
    return f"{samples:,} test samples of {subjects:,} subjects, {split}; {names}."


def _goal_table(goals: list[Goal], unknown: str) -> list[str]:
    """What was to be reached and what was measured; then why goals are missed. `unknown`: why a row is missing."""
    rows, missed = [], []
    for goal in goals:
        target, measured, reached = "", unknown, ""
        if goal.row is not None:
            target = "none" if goal.target is None else f"{goal.sense} {goal.target:{goal.form}}"
            target += f" ({goal.note})" if goal.note else ""
            target += "" if goal.aim is None else f"; aim {goal.aim:.3g}"
            measured = f"{goal.value:{goal.form}} {goal.unit}"
            reached = {None: "", True: "yes", False: "**no**"}[goal.row.holds]
            missed += [f"* {goal.name}: {goal.why or 'no reason is given.'}"] if goal.row.holds is False else []
        rows.append({"goal": goal.name, "target": target, "measured": measured, "reached": reached})
    return [*_table(rows), *(["", "Not reached:", "", *missed] if missed else [])]


def _scores(results: Results, data: str, metric: str) -> Rows:
    """Models x missing rates."""
    suite, rows = results.plan.suite, []
    for model in suite.models:
        if seeds := [*results.seeds(model, data).values()]:
            shown, intervals = _columns(suite, seeds, metric)
            complete, missing = (average(seeds).values[metric_key(metric, end(suite.rates))] for end in (min, max))
            lost = {f"lost at {_rate(suite.extreme_rates[-1])}": _number(complete - missing)}
            rows.append({"model": results.plan.label(model), "seeds": str(len(seeds))} | shown | lost | intervals)
    return rows


def _ensembles(results: Results, data: str) -> Rows:
    suite, rows = results.plan.suite, []
    for metric in suite.data[data].metrics:
        for model in suite.models:
            if found := results.ensembles.get((model, data)):
                row = {"ensemble": results.plan.label(model), "metric": metric_label(metric)}
                row["of"] = str(len(results.seeds(model, data)))
                shown, intervals = _columns(suite, [found], metric)
                rows.append(row | shown | intervals)
    return rows


def _columns(suite: Suite, scores: list[Scores], metric: str) -> tuple[dict[str, str], dict[str, str]]:
    """A metric at each missing rate; and its intervals at the smallest and the largest rate."""
    keys, mean = {rate: metric_key(metric, rate) for rate in sorted(suite.rates)}, average(scores)
    shown = {_rate(rate): _shown([each.values[key] for each in scores]) for rate, key in keys.items()}
    rates = suite.extreme_rates
    return shown, {f"95 % interval, {_rate(rate)}": _interval(mean.resampled[keys[rate]]) for rate in rates}


def _ablations(results: Results, data: str) -> Rows:
    """Each change, and the difference to the unchanged model on the same seeds."""
    suite, rows = results.plan.suite, []
    metric = suite.data[data].metrics[0]
    for ablation in suite.ablations:
        model = ablation.of.get(data, "")
        whole, part = results.seeds(model, data), results.seeds(ablation.name, data)
        if seeds := [seed for seed in part if seed in whole]:
            before, after = (average([scores[seed] for seed in seeds]) for scores in (whole, part))
            row = {"change": ablation.label, "model": results.plan.label(model), "seeds": str(len(seeds))}
            differences = {}
            for rate in suite.extreme_rates:
                key = metric_key(metric, rate)
                row[f"{metric_label(metric)}, {_rate(rate)}"] = _shown([part[seed].values[key] for seed in seeds])
                difference = _number(before.values[key] - after.values[key], "+")
                drawn = _interval(before.resampled[key] - after.resampled[key], "+")
                differences[f"difference, {_rate(rate)} (95 % interval)"] = f"{difference} ({drawn})"
            rows.append(row | differences)
    return rows


def _experts(results: Results, data: str) -> Rows:
    """Mutual information between expert and missing set at the largest missing rate, for models with experts."""
    rows, sets = [], f"missing sets, {_rate(results.plan.suite.extreme_rates[-1])}"
    items = sorted(results.finished.values(), key=lambda item: item.cell.seed)
    for model in results.plan.suite.models:
        for item in items:
            if (item.cell.model, item.cell.data) == (model, data) and (found := item.content["experts"]):
                fold = "" if item.cell.fold is None else f", fold {item.cell.fold}"
                row = {"run": f"{model}, seed {item.cell.seed}{fold}", sets: str(found["sets"])}
                row |= {"bits": f"{found['bits']:.4f}", "bits, permuted sets": f"{found['control']:.4f}"}
                rows.append(row | {"p": f"{found['p']:.3f}"})
    return rows


def _durations(results: Results) -> Rows:
    """How long the cells of each model took."""
    taken: dict[tuple[str, str], list[float]] = {}
    for item in results.finished.values():
        taken.setdefault((item.cell.data, item.cell.model), []).append(item.record.seconds)
    rows = []
    for data in results.plan.suite.data:
        for (of, model), each in taken.items():
            if of == data:
                row = {"data set": data, "model": results.plan.label(model), "cells": str(len(each))}
                rows.append(row | {"a cell": _duration(fmean(each)), "all": _duration(sum(each))})
    whole = _duration(sum(map(sum, taken.values())))
    return [*rows, {"data set": "all", "model": "", "cells": "", "a cell": "", "all": whole}]


def _picture(results: Results, data: str) -> bytes:
    """The first metric against the missing rate, one line for each model."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.rcsetup import cycler

    suite, lines = results.plan.suite, cycler(linestyle=["-", "--", ":"]) * cycler(color=COLOURS)
    metric, rates = suite.data[data].metrics[0], sorted(suite.rates)
    marks: dict[Any, Any] = {"lines.marker": "o", "lines.markersize": 4, "lines.linewidth": 1.6}
    with rc_context({**dict[Any, Any](STYLE), **marks, "axes.prop_cycle": lines}):
        figure = Figure(figsize=(7.2, 3.6), layout="constrained")
        axes = figure.add_subplot(title=f"{data}, sensors missing", xlabel="modalities missing (%)")
        axes.set(ylabel=metric_label(metric), xticks=[100 * rate for rate in rates])
        for model in suite.models:
            if seeds := results.seeds(model, data).values():
                by_rate = [[seed.values[metric_key(metric, rate)] for seed in seeds] for rate in rates]
                spread = [stdev(v) if len(v) > 1 and np.isfinite(v).all() else 0.0 for v in by_rate]
                means, label = [fmean(values) for values in by_rate], results.plan.label(model)
                axes.errorbar([100 * rate for rate in rates], means, yerr=spread, elinewidth=1.0, label=label)
        figure.legend(loc="outside right center", frameon=False, fontsize=9)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=110, metadata={"Software": None})
        return file.getvalue()


def _table(rows: Rows) -> list[str]:
    """A Markdown table with the keys of the rows as its head."""
    texts = [[text.replace("|", "\\|") for text in row] for row in (rows[0], *(row.values() for row in rows))]
    head, *lines = (f"| {' | '.join(row)} |" for row in texts)
    return [head, "|" + "---|" * len(rows[0]), *lines]


def _duration(seconds: float) -> str:
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


def _number(value: float, sign: str = "") -> str:
    return "undefined" if math.isnan(value) else f"{value:{sign}.3f}"


def _interval(values: np.ndarray, sign: str = "") -> str:
    low, high = interval(values)
    return "" if math.isnan(low) else f"{_number(low, sign)} to {_number(high, sign)}"


def _machine(machine: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    gpu = f", {machine['gpu']}" if "gpu" in machine else ""
    return f"{machine['processor']}, {machine['cores']} cores{gpu}, {machine['system']}; {versions}"
