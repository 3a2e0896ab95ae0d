"""`RESULTS.md`, `results.json` and one picture for each data set. The same results give the same bytes."""

from __future__ import annotations

import datetime
import io
import json
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

import numpy as np

from maestro_dist.data.storage import Storage
from maestro_dist.errors import ConfigError
from maestro_dist.evaluation.table import metric_label
from maestro_dist.tracking.plots import COLOURS, STYLE
from suite.archive import Record
from suite.collect import Results
from suite.goals import Goal, Judgement, judge
from suite.matrix import Plan
from suite.tables import (
    ablation_table,
    duration,
    duration_table,
    ensemble_table,
    expert_table,
    goal_table,
    score_tables,
)

REPORT_FILE, ROWS_FILE = "RESULTS.md", "results.json"
_DPI = 110


def write_report(results: Results, goals: Sequence[Goal], out: str, command: str) -> None:
    """Write all files below `out`."""
    place = Storage(out)
    judgements = [judge(goal, results) for goal in goals]
    pictures = {data: content for data in results.plan.suite.data if (content := _picture(results, data))}
    for data, content in pictures.items():
        place.write(f"{data}.png", content)
    found = [item.record for item in results.finished.values()]
    records = [record for record in found if record is not None]
    place.write(REPORT_FILE, _markdown(results, judgements, list(pictures), records, command).encode())
    place.write(ROWS_FILE, (json.dumps(_rows(results.plan, judgements, records), indent=1) + "\n").encode())


def check_place(suite: str, out: str) -> None:
    """Raise ConfigError where `out` has the report of another suite."""
    place = Storage(out)
    if place.exists(REPORT_FILE) and not place.read(REPORT_FILE).startswith(f"# {suite}\n".encode()):
        raise ConfigError(f"{place.name(REPORT_FILE)} is of another suite than {suite}; choose another --out")


def _markdown(
    results: Results, judgements: Sequence[Judgement], pictures: Sequence[str], records: Sequence[Record], command: str
) -> str:
    suite = results.plan.suite
    lines = [f"# {suite.name}", ""]
    lines += [suite.about.strip(), ""] if suite.about else []
    lines += [f"Written by `{command}` from the files of the runs; do not edit.", ""]
    lines += _summary(results, records)
    lines += ["## Goals", "", *goal_table(judgements), ""] if judgements else []
    for data in suite.data:
        lines += [f"## {data}", "", *_test_split(results, data), ""]
        scores = score_tables(results, data)
        ablations = ablation_table(results, data)
        if ablations:
            said = "Difference: the unchanged model minus the changed one. Above 0 the change makes it worse."
            ablations = [said, "", *ablations]
        tables = {
            **scores,
            "": [f"![{data}]({data}.png)"] if data in pictures else [],
            "Ensembles (the seeds' probabilities averaged)": ensemble_table(results, data),
            "Ablations": ablations,
            "Experts and missing sets": expert_table(results, data),
        }
        for title, rows in tables.items() if scores else ():
            lines += [*([f"### {title}", ""] if title else []), *rows, ""] if rows else []
        lines += [] if scores else ["Nothing is finished yet.", ""]
    lines += ["## Durations", "", *duration_table(results), ""]
    return "\n".join(lines).rstrip() + "\n"


def _summary(results: Results, records: Sequence[Record]) -> list[str]:
    lines = [f"{len(results.finished)} of {len(results.plan.cells)} cells are finished."]
    if records:
        days = sorted({_time(record.finished).date().isoformat() for record in records})
        when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
        total = duration(sum(record.seconds for record in records))
        lines[0] += f" The sum of their times is {total} ({when}); as many ran at a time as there are cores."
        for text in dict.fromkeys(_machine(record.machine) for record in records):
            lines += ["", f"Machine: {text}."]
    return [
        *lines,
        "",
        "A number is the mean over seeds (and folds, and draws of the missing modalities) and, after ±, the standard "
        f"deviation over the seeds. Intervals hold the middle 95 % of {results.plan.suite.resamples:,} resamples of "
        "the test subjects, the same for all models of a data set. Each cell chose its weights, penalties and trees on "
        "validation data.",
        "",
    ]


def _test_split(results: Results, data: str) -> list[str]:
    items = [item for item in results.finished.values() if item.cell.data == data and item.cell.scored]
    if not items:
        return []
    by_fold = {item.cell.fold: item for item in items}
    samples = sum(item.evaluation.samples for item in by_fold.values())
    subjects = sum(item.content["tested"]["subjects"] for item in by_fold.values())
    folds = results.plan.suite.data[data].folds
    split = "one fixed split" if folds is None else f"{len(by_fold)} of {folds} folds by subject"
    modalities = items[0].content["tested"]["modalities"]
    return [
        f"{samples:,} test samples of {subjects:,} subjects, {split}; "
        f"{len(modalities)} modalities: {', '.join(modalities)}."
    ]


def _rows(plan: Plan, judgements: Sequence[Judgement], records: Sequence[Record]) -> dict[str, Any]:
    newest = max(records, key=lambda record: record.finished, default=None)
    machine = {} if newest is None else newest.machine | {"date": _time(newest.finished).isoformat(timespec="seconds")}
    notes = [f"{item.note}: {item.goal.name}" for item in judgements if item.row is None]
    rows = [item.to_json() for item in judgements if item.row is not None]
    return {"benchmark": plan.suite.name, "machine": machine, "notes": notes, "rows": rows}


def _picture(results: Results, data: str) -> bytes | None:
    """The first metric against the missing rate, one line for each model; None where nothing is finished."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    suite = results.plan.suite
    metric, rates = suite.data[data].metrics[0], sorted(suite.rates)
    lines = {model: [results.values(model, data, metric, rate) for rate in rates] for model in suite.models}
    lines = {model: by_rate for model, by_rate in lines.items() if by_rate[0]}
    if not lines or len(rates) < 2:
        return None
    style: Any = STYLE
    with rc_context(style):
        figure = Figure(figsize=(7.2, 3.6), layout="constrained")
        axes = figure.add_subplot()
        for number, (model, by_rate) in enumerate(lines.items()):
            axes.errorbar(
                [100 * rate for rate in rates],
                [fmean(values) for values in by_rate],
                yerr=[stdev(values) if len(values) > 1 and np.isfinite(values).all() else 0.0 for values in by_rate],
                color=COLOURS[number % len(COLOURS)],
                linestyle=("-", "--", ":")[number // len(COLOURS) % 3],
                marker="o",
                markersize=4,
                linewidth=1.6,
                elinewidth=1.0,
                label=results.plan.label(model),
            )
        axes.set_xticks([100 * rate for rate in rates])
        axes.set(title=f"{data}, sensors missing", xlabel="modalities missing (%)", ylabel=metric_label(metric))
        figure.legend(loc="outside right center", frameon=False, fontsize=9)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=_DPI, metadata={"Software": None})
        return file.getvalue()


def _machine(machine: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    gpu = f", {machine['gpu']}" if "gpu" in machine else ""
    return f"{machine['processor']}, {machine['cores']} cores{gpu}, {machine['system']}; {versions}"


def _time(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)
